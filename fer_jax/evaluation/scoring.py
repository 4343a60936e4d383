"""The scores of one predictions table: by image, clip and subject, with intervals and caveats."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from fer_jax import results
from fer_jax.evaluation import baselines, bootstrap, calibration, metrics
from fer_jax.evaluation.predictions import Table, count_named, take

AGE_BANDS = ("under 18", "18-29", "30-44", "45-59", "60 and over")
AGE_EDGES = (18, 30, 45, 60)
SLICED = ("gender", "age", "content", "source")
UNKNOWN_VALUE = "unknown"
# A gap between groups of fewer people would mostly be a difference between persons.
MIN_PEOPLE = 10


def score_table(
    table: Table,
    num_classes: int,
    *,
    fitted: dict[str, Any] | None = None,
    counts: baselines.LabelCounts | None = None,
) -> tuple[dict[str, Any], bootstrap.Resampled]:
    """Computes everything that results.json says of one test set.

    `table` has labelled rows only; without `fitted`, of `calibration.from_validation`, there is no
    `calibrated`, without `counts`, of the training labels, no `pixel_free`. Returns `metrics.score`
    and `bootstrap.score` of the images, `n_subjects`, `n_clips`, `reliability`, `majority`;
    `pixel_free` (scores, and in `gain` the model's difference from it, with intervals) and
    `calibrated` (ECE and loss at the temperature), None where they cannot be computed; `by_clip`,
    `by_subject`, None where none is named; `slices`: {column: [{"value", ...scores}]}; `gaps`:
    {column: of `_gap`}, between groups of at least `min_people`. And the images resampled, with the
    model first.
    """
    labels, probabilities = table["label"], table["probabilities"]
    of = bootstrap.sample_table(table, num_classes)
    predictors, pixel_free, calibrated = [probabilities], None, None
    if counts is not None:
        predictors.append(baselines.pixel_free(counts, table["source"], table["content"]))
    resampled = bootstrap.resample(of, predictors)
    scores = bootstrap.score(resampled)
    if counts is not None:
        pixel_free = _headline(scores[1]) | {"gain": _gain(resampled)}
    if fitted is not None:
        names, temperature = ("ece", "loss"), fitted["temperature"]
        scaled = calibration.with_temperature(probabilities, temperature)
        (scored,) = bootstrap.score(bootstrap.resample(of, [scaled], areas=False))
        calibrated = {"temperature": temperature} | {name: scored[name] for name in names}
        calibrated["intervals"] = {name: scored["intervals"][name] for name in names}
    slices, gaps = _slices(table, num_classes)
    scored = scores[0] | {
        "n_subjects": count_named(table, "subject_id"),
        "n_clips": count_named(table, "clip_id"),
        "reliability": metrics.reliability(labels, probabilities),
        "majority": baselines.majority(labels, num_classes),
        "pixel_free": pixel_free,
        "calibrated": calibrated,
        "by_clip": _by_clip(table, num_classes),
        "by_subject": _by_subject(table, num_classes),
        "slices": slices,
        "gaps": gaps,
        "min_people": MIN_PEOPLE,
    }
    return scored, resampled


def _gain(resampled: bootstrap.Resampled) -> dict[str, Any]:
    """Computes the differences of the first predictor from the second, in the same draws."""

    def gain(name: str) -> bootstrap.Estimate:
        own, other = (bootstrap.estimate(resampled, name, [n], str(n)) for n in (0, 1))
        return bootstrap.subtract(own, other)

    return {name: bootstrap.difference(gain(name)) for name in baselines.COMPARABLE}


def _headline(scored: dict[str, Any]) -> dict[str, Any]:
    """Returns the scores that are one number each, with their intervals."""
    kept = ("n", "n_clusters", "effective_clusters", *bootstrap.SCALARS)
    intervals = {name: scored["intervals"][name] for name in bootstrap.SCALARS}
    return {name: scored[name] for name in kept} | {"intervals": intervals}


def _score(of: bootstrap.Sample, probabilities: np.ndarray) -> dict[str, Any]:
    (scored,) = bootstrap.score(bootstrap.resample(of, [probabilities]))
    return _headline(scored)


def _by_clip(table: Table, num_classes: int) -> dict[str, Any] | None:
    """Scores clips: a clip's prediction is the mean of its images' probabilities.

    A clip whose images have several labels is one unit for each label.
    """
    named = table["clip_id"] != ""
    if not named.any():
        return None
    table = take(table, named)
    keys = np.stack([np.unique(table["clip_id"], return_inverse=True)[1], table["label"]])
    _, first, unit = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    images = np.bincount(unit)
    means = np.stack([np.bincount(unit, p) / images for p in table["probabilities"].T], axis=1)
    units = take(table, first)
    clips, labels_of_clip = np.unique(keys[0][first], return_counts=True)
    return _score(bootstrap.sample_table(units, num_classes), means) | {
        "n_clips": len(clips),
        "n_clips_of_several_labels": int((labels_of_clip > 1).sum()),
        "n_images_without_clip": int((~named).sum()),
    }


def _by_subject(table: Table, num_classes: int) -> dict[str, Any] | None:
    """Scores with equal weight of every subject: accuracy is the mean of their accuracies."""
    named = table["subject_id"] != ""
    if not named.any():
        return None
    table = take(table, named)
    subject = np.unique(table["subject_id"], return_inverse=True)[1]
    people = bootstrap.clusters(table)[0]
    of = bootstrap.sample(table["label"], people, num_classes, equal_clusters=True)
    correct = table["probabilities"].argmax(axis=1) == table["label"]
    accuracies = np.bincount(subject, correct) / np.bincount(subject)
    return _score(of, table["probabilities"]) | {
        "accuracies": np.sort(accuracies),
        "accuracy_quartiles": np.quantile(accuracies, [0, 0.25, 0.5, 0.75, 1]),
        "n_images_without_subject": int((~named).sum()),
    }


def _slices(
    table: Table, num_classes: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, dict[str, Any]]]:
    """Returns the slices and the gaps of `score_table` for the known columns of `SLICED`."""
    found, gaps = {}, {}
    for column in SLICED:
        values = table[column]
        if column == "age":
            band = np.searchsorted(AGE_EDGES, values, "right")
            values = np.where(values >= 0, np.asarray(AGE_BANDS)[band], "")
        values = np.where(values == "", UNKNOWN_VALUE, values)
        if (values == UNKNOWN_VALUE).all():
            continue
        found[column], groups = [], {}
        for value in sorted(set(values.tolist()), key=lambda v: (v == UNKNOWN_VALUE, v)):
            rows = take(table, values == value)
            of = bootstrap.sample_table(rows, num_classes)
            resampled = bootstrap.resample(of, [rows["probabilities"]])
            (scored,) = bootstrap.score(resampled)
            n_subjects = count_named(rows, "subject_id")
            found[column].append({"value": value, "n_subjects": n_subjects} | _headline(scored))
            if value != UNKNOWN_VALUE and n_subjects >= MIN_PEOPLE:
                groups[value] = resampled
        gaps[column] = _gap(groups)
    return found, gaps


def _gap(groups: dict[str, bootstrap.Resampled]) -> dict[str, Any] | None:
    """Computes the largest difference in balanced accuracy between groups.

    It is over the classes that both groups have; its interval is corrected for having been chosen
    among all pairs, of `n_pairs`. Returns {"high", "low": the groups, "n_classes", "n_pairs", and
    of `bootstrap.difference`}; None if no pair of groups has two classes in common.
    """
    pairs = []
    for names in combinations(groups, 2):
        classes = bootstrap.common_classes([groups[name].of for name in names])
        if len(classes) > 1:
            own = [
                bootstrap.estimate_mean(groups[name], "balanced_accuracy", classes)
                for name in names
            ]
            gap = bootstrap.subtract(*own)
            sign = -1.0 if gap.value < 0 else 1.0
            high, low = names[:: int(sign)]
            pairs.append((bootstrap.combine([(gap, sign)]), high, low, len(classes)))
    if not pairs:
        return None
    gap, high, low, n_classes = max(pairs, key=lambda pair: pair[0].value)
    return {
        **{"high": high, "low": low, "n_classes": n_classes, "n_pairs": len(pairs)},
        **bootstrap.difference(gap, num_compared=len(pairs)),
    }


def caveats(scored: dict[str, Any], classes: Sequence[str]) -> list[str]:
    """Returns what a reader of a set's scores must know, in a line each."""
    absent = [name for name, share in zip(classes, scored["prevalence"], strict=True) if not share]
    found = [f"no image of {', '.join(absent)}; means are over the other classes"] if absent else []
    predicted = [
        n for n, total in zip(classes, np.sum(scored["confusion"], 0), strict=True) if total
    ]
    if len(predicted) == 1 and scored["n"] > 1:
        found.append(f"every image is predicted as {predicted[0]}; more training may help")
    low, _ = bounds = scored["intervals"]["balanced_accuracy"]
    chance = 1 / np.count_nonzero(scored["prevalence"])
    if results.interval(bounds) != "n/a" and low <= chance < 1:
        found.append(
            f"the balanced accuracy is not significantly above the chance level {chance:.3f}"
        )
    found += interval_caveats(scored, bounds)
    return found


def interval_caveats(scored: dict[str, Any], bounds: Sequence[float | None]) -> list[str]:
    """Returns what few clusters mean for an interval, and why there may be none."""
    cluster = scored["cluster"]
    if scored["n_clusters"] < 2:
        return [f"no interval: there is only one {cluster}"]
    if scored["effective_clusters"] < 2:
        return [f"no interval: one {cluster} has most of the images"]
    found, same = [], results.interval(bounds) == "n/a"
    if scored["n_clusters"] < bootstrap.FEW_CLUSTERS:
        few = f"only {scored['n_clusters']} clusters (by {cluster}): rough intervals"
        found.append(few + f", and none where all {cluster}s of a class score alike" * same)
    elif same:
        found.append(f"no interval: within each class, all {cluster}s score alike")
    if 1 in scored["class_clusters"] and not same:
        number = scored["class_clusters"].count(1)
        what = "1 class is" if number == 1 else f"{number} classes are"
        found.append(f"{what} of one {cluster}; the error is taken from the other classes")
    if cluster != "subject":
        found.append(
            f"{'not all ' if 'subject' in cluster else 'no '}people are named: one who is in "
            f"several {cluster.rpartition('+')[2]}s makes the intervals too narrow, and one who is "
            "also in the training data makes the scores too high"
        )
    return found
