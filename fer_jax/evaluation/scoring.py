"""One predictions table to all that is said of it: by image, clip and subject, with intervals."""

from typing import Any

import numpy as np

from fer_jax.evaluation import baselines, bootstrap, calibration, metrics, predictions

AGE_BANDS = ("under 18", "18-29", "30-44", "45-59", "60 and over")
AGE_EDGES = (18, 30, 45, 60)
SLICED = ("gender", "age", "content", "source")
UNKNOWN_VALUE = "unknown"


def score_table(
    table: predictions.Table,
    num_classes: int,
    *,
    fitted: dict[str, Any] | None = None,
    counts: baselines.LabelCounts | None = None,
) -> dict[str, Any]:
    """Everything results.json says of one test set.

    Args:
      table: labelled rows only.
      num_classes: k.
      fitted: from `calibration.from_validation`; None leaves `calibrated` out.
      counts: of the training labels; None leaves `no_pixels` out.

    Returns:
      `metrics.score` and `bootstrap.score` of the images, and `cluster` (what was resampled),
      `n_subjects`, `n_clips`, `reliability`, `majority`; `no_pixels` (scores, and in `gain` the
      model less it, with intervals) and `calibrated` (ECE and loss at the temperature), None
      where they cannot be computed; `by_clip`, `by_subject`, None where none is named;
      `slices`: {column: [{"value", ...scores}]}.
    """
    labels, probabilities = table["label"], table["probabilities"]
    cluster, kind = bootstrap.clusters(table)
    of = bootstrap.sample(labels, cluster, num_classes)
    predictors, areas = [probabilities], [True]
    if counts is not None:
        predictors.append(baselines.no_pixels(counts, table["source"], table["content"]))
        areas.append(True)
    if fitted is not None:
        predictors.append(calibration.with_temperature(probabilities, fitted["temperature"]))
        areas.append(False)
    scores, drawn = bootstrap.score(of, predictors, areas=areas)
    no_pixels, calibrated = None, None
    if counts is not None:
        no_pixels = _headline(scores[1]) | {"gain": _gain(of, scores[:2], drawn[:2])}
    if fitted is not None:
        calibrated = {"temperature": fitted["temperature"]} | {
            name: scores[-1][name] for name in ("ece", "loss")
        }
        calibrated["intervals"] = {name: scores[-1]["intervals"][name] for name in ("ece", "loss")}
    return scores[0] | {
        "cluster": kind,
        "n_subjects": len(set(table["subject_id"]) - {""}),
        "n_clips": len(set(table["clip_id"]) - {""}),
        "reliability": metrics.reliability(labels, probabilities),
        "majority": baselines.majority(labels, num_classes),
        "no_pixels": no_pixels,
        "calibrated": calibrated,
        "by_clip": _by_clip(table, num_classes),
        "by_subject": _by_subject(table, num_classes),
        "slices": _slices(table, num_classes),
    }


def _gain(
    of: bootstrap.Sample, scores: list[dict[str, Any]], drawn: list[bootstrap.Replicates]
) -> dict[str, Any]:
    """The first predictor less the second, in the same draws."""
    degrees, _ = of.degrees()
    found = {}
    for name in baselines.COMPARABLE:
        estimate = scores[0][name] - scores[1][name]
        error = bootstrap.standard_error(
            estimate,
            drawn[0].draws[name] - drawn[1].draws[name],
            drawn[0].left_out[name] - drawn[1].left_out[name],
        )
        found[name] = bootstrap.difference(estimate, error, degrees)
    return found


def _headline(scored: dict[str, Any]) -> dict[str, Any]:
    """The scores of a table that are one number each, with their intervals."""
    kept = ("n", "n_clusters", "effective_clusters", *bootstrap.SCALARS)
    intervals = {name: scored["intervals"][name] for name in bootstrap.SCALARS}
    return {name: scored[name] for name in kept} | {"intervals": intervals}


def _rows(table: predictions.Table, chosen: np.ndarray) -> predictions.Table:
    return {name: column[chosen] for name, column in table.items()}


def _by_clip(table: predictions.Table, num_classes: int) -> dict[str, Any] | None:
    """Clips as the units: the mean of a clip's probabilities answers for it.

    A clip whose images have several labels is one unit for each label.
    """
    named = table["clip_id"] != ""
    if not named.any():
        return None
    table = _rows(table, named)
    keys = np.stack([np.unique(table["clip_id"], return_inverse=True)[1], table["label"]])
    _, first, unit = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    images = np.bincount(unit)
    means = np.stack([np.bincount(unit, p) / images for p in table["probabilities"].T], axis=1)
    units = _rows(table, first)
    cluster, _ = bootstrap.clusters(units)
    of = bootstrap.sample(units["label"], cluster, num_classes)
    (scored,), _ = bootstrap.score(of, [means])
    clips, labels_of_clip = np.unique(keys[0][first], return_counts=True)
    return _headline(scored) | {
        "n_clips": len(clips),
        "n_clips_of_several_labels": int((labels_of_clip > 1).sum()),
        "n_images_without_clip": int((~named).sum()),
    }


def _by_subject(table: predictions.Table, num_classes: int) -> dict[str, Any] | None:
    """Every subject weighs the same: the accuracy is the mean of the subjects' accuracies."""
    named = table["subject_id"] != ""
    if not named.any():
        return None
    table = _rows(table, named)
    subject = np.unique(table["subject_id"], return_inverse=True)[1]
    of = bootstrap.sample(table["label"], subject, num_classes, equal_clusters=True)
    (scored,), _ = bootstrap.score(of, [table["probabilities"]])
    correct = table["probabilities"].argmax(axis=1) == table["label"]
    accuracies = np.bincount(subject, correct) / np.bincount(subject)
    return _headline(scored) | {
        "accuracy_quartiles": np.quantile(accuracies, [0, 0.25, 0.5, 0.75, 1]),
        "n_images_without_subject": int((~named).sum()),
    }


def _slices(table: predictions.Table, num_classes: int) -> dict[str, list[dict[str, Any]]]:
    """Scores of parts of a table, for every column of `SLICED` that is known of some image."""
    found = {}
    cluster, _ = bootstrap.clusters(table)
    for column in SLICED:
        values = _age_bands(table["age"]) if column == "age" else table[column]
        values = np.where(values == "", UNKNOWN_VALUE, values)
        if (values == UNKNOWN_VALUE).all():
            continue
        found[column] = []
        for value in sorted(set(values.tolist()), key=lambda v: (v == UNKNOWN_VALUE, v)):
            rows = values == value
            of = bootstrap.sample(table["label"][rows], cluster[rows], num_classes)
            (scored,), _ = bootstrap.score(of, [table["probabilities"][rows]])
            found[column].append({"value": value} | _headline(scored))
    return found


def _age_bands(ages: np.ndarray) -> np.ndarray:
    """The band of each age in years, "" where it is not known: str [n]."""
    return np.where(ages >= 0, np.asarray(AGE_BANDS)[np.searchsorted(AGE_EDGES, ages, "right")], "")
