"""The scores of a run, from its predictions tables alone: the content of its results.json."""

import collections
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import access_log, checkpoints, forms, results, storage
from fer_jax.config import Config, read_config, read_environment
from fer_jax.data.audit.findings import LOOKED_FOR, leaks_in_words
from fer_jax.data.experiment import as_source
from fer_jax.errors import InputError
from fer_jax.evaluation import (
    baselines,
    bootstrap,
    calibration,
    certainty,
    metrics,
    predictions,
    relations,
    scoring,
)
from fer_jax.evaluation.predictions import Table
from fer_jax.evaluation.relations import RELATIONS
from fer_jax.results import HEADLINE, interval, number, set_name
from fer_jax.schema import TASKS

# Predictions file -> `experiment.leaks_into` the training data; null where it was not audited.
LEAKS_FILE = "leaks.json"
WORST_ERRORS = 12
CURVE_POINTS, CURVE_DECIMALS = 100, 5


def score_run(workdir: Path) -> dict[str, Any]:
    """Scores all tables in workdir/predictions; a table of several datasets by each of them.

    Everything but "apart" is of one checkpoint, the one that was evaluated last. Returns {"task",
    "classes", "seed", "commit", "checkpoint" ("step", "checksum" and how it was "chosen", as in
    `predictions`; None each where the tables do not say), "apart" (sets of other checkpoints,
    without curves and errors), "datasets", "leaks" (within the training data, by kind), "warnings"
    (all leaks, a line each), "left_out", "sets", "validation" (the parts that checkpoints are
    selected on, which are not tests), "calibration" (`from_validation`), "certainty"
    (`certainty.fit` of the validation people, {"source": it, or None}), "means" (of the headline
    metrics over the sets of each relation, without variants and repeated images), "generalization",
    "test_access", "test_access_hash" (of the log), "best_step", "reproduce"}. Each set has step (of
    the checkpoint), table (the predictions file), dataset, split, variant, relation (one of
    `RELATIONS`; None where it is of several kinds or not known), chance (1 / number of its
    classes), not_in_means (why it is in no
    mean, else None), leaks (of it into the training data; None where that was not audited; and
    seen, unknown_people, near_duplicates of `experiment.leaks_into`), n_unlabelled, n_by_class
    (images), annotators (`baselines.annotators`), certainty (`certainty.score`, by the kind of
    groups; None for a variant or validation), errors (the most confident ones;
    `explain_errors` adds the names of their pictures), caveats, curves and everything of
    `scoring.score_table`. InputError without a run or predictions.
    """
    config = read_config(workdir)
    environment = read_environment(workdir)
    metric = config.selection_metric
    logged = storage.read_json_lines(workdir / "metrics.jsonl", forms.METRICS_ROW)
    validated = [row for row in logged if row.get(metric) is not None]
    tables = _read_tables(workdir, TASKS[config.task])
    selected_on = calibration.validation_files(workdir, config)
    current = evaluated_checkpoint(workdir)
    now = [(file, table) for file, table in tables if checkpoint_of(file) == current]
    validated_on = [predictions.labelled(table) for file, table in now if file in selected_on]
    fitted = calibration.from_validation(validated_on)
    sure = certainty.fit(validated_on)
    scored = _score_tables(workdir, config, now, fitted, sure)
    others = [(file, table) for file, table in tables if checkpoint_of(file) != current]
    apart = [
        one | {"curves": [], "errors": []}
        for _, _, one, _ in _score_tables(workdir, config, others, None, None)
    ]
    tests = [entry for entry in scored if entry[0] not in selected_on]
    # A variant comes after the plain predictions.
    tests.sort(
        key=lambda entry: [
            [*RELATIONS, None].index(entry[2]["relation"]),
            *(entry[2][name] for name in ("dataset", "split", "variant")),
        ]
    )
    known = [(set_name(one), table) for file, table, one, _ in scored if file in selected_on]
    _mark_repeated([(one, table) for _, table, one, _ in tests], known, config)
    sets = [one for _, _, one, _ in tests]
    plain = [one for one in sets if not one["variant"]]
    averaged = [
        (one, resampled)
        for _, _, one, resampled in tests
        if one["relation"] and not (one["variant"] or one["not_in_means"])
    ]
    return {
        "task": config["task"],
        "classes": list(TASKS[config.task]),
        "seed": config["seed"],
        "commit": environment.get("commit"),
        "checkpoint": {"step": current[0], "checksum": current[1]} | {"chosen": _chosen(now)},
        "apart": apart,
        "datasets": environment.get("datasets", {}),
        "leaks": environment.get("leaks", {}),
        "warnings": _leak_warnings(environment, [*plain, *apart]),
        "looked_for": LOOKED_FOR,
        "unknown_people": sorted(
            {what for one in sets for what in one["unknown_people"] or ()}.union(
                environment.get("unknown_people", [])
            )
        ),
        "left_out": environment.get("left_out", {}),
        "sets": sets,
        "validation": [one for file, _, one, _ in scored if file in selected_on],
        "calibration": fitted,
        "certainty": {"source": sure},
        "means": {
            relation: {
                name: metrics.mean_defined(
                    np.asarray([s[name] for s, _ in averaged if s["relation"] == relation], float)
                )
                for name in HEADLINE
            }
            for relation in RELATIONS
        },
        "generalization": generalization(averaged, TASKS[config.task]),
        "test_access": read_test_access(workdir),
        "test_access_hash": next(reversed(access_log.read(workdir)[1]), None),
        "best_step": checkpoints.best_step(validated, metric),
        "reproduce": {
            "command": environment.get("command"),
            "config": config.to_dict(),
            "versions": environment.get("versions", {}),
            "devices": environment.get("devices", []),
            "cpu_cores": environment.get("cpu_cores"),
        },
    }


def _read_tables(workdir: Path, classes: tuple[str, ...]) -> list[tuple[Path, Table]]:
    found = []
    for file in sorted((workdir / "predictions").glob("*.csv")):
        for table in predictions.split_by_dataset(predictions.read(file, classes)[0]):
            if not (table["label"] >= 0).any():
                about = predictions.description(file, table)
                raise InputError(f"{file}: no image of {set_name(about)} has a label")
            found.append((file, table))
    if not found:
        raise InputError(f"'{workdir}' has no predictions; run `fer-jax evaluate` first")
    return found


def checkpoint_of(file: Path) -> tuple[int | None, str | None]:
    """Returns the (step, checksum) of the checkpoint that made a table; None where unknown."""
    origin = predictions.read_origin(file)
    return origin.get("step"), origin.get("checksum")


def evaluated_checkpoint(workdir: Path) -> tuple[int | None, str | None]:
    """Returns the `checkpoint_of` the run's tables that was evaluated last.

    Without a log of that it is one that was chosen by validation, of these the one of most steps.
    """
    files = list((workdir / "predictions").glob("*.csv"))
    made_by = {checkpoint_of(file) for file in files}
    for row in reversed(access_log.read(workdir)[0]):
        if (last := (row["checkpoint"], row.get("checksum"))) in made_by:
            return last
    origins = [predictions.read_origin(file) for file in files]
    ranked = [(one.get("chosen") == "best", one.get("step") or 0) for one in origins]
    return checkpoint_of(files[ranked.index(max(ranked))]) if files else (None, None)


def _chosen(tables: Sequence[tuple[Path, Table]]) -> str | None:
    """Returns how the checkpoint of the tables was chosen, "best" if it was so for one of them."""
    found = {predictions.read_origin(file).get("chosen") for file, _ in tables}
    return next((one for one in ("best", "last", "step") if one in found), None)


def _score_tables(
    workdir: Path,
    config: Config,
    tables: Sequence[tuple[Path, Table]],
    fitted: dict[str, Any] | None,
    sure: dict[str, Any] | None,
) -> list[tuple[Path, Table, dict[str, Any], bootstrap.Resampled]]:
    """Scores tables, with what `evaluate` found in their test sets.

    `fitted` calibrates them; `sure`, of `certainty.fit`, has the thresholds of their certainty.
    """
    leaks, about_sets = read_leaks(workdir), predictions.read_test_sets(workdir)
    selected_on = calibration.validation_files(workdir, config)
    counts = baselines.read(workdir, TASKS[config.task])
    related = relations.of_run(workdir, TASKS[config.task])
    found = []
    for file, table in tables:
        one, resampled = _score_table(file, table, config, fitted, counts)
        plain = sure if not one["variant"] and file not in selected_on else None
        labelled, size = predictions.labelled(table), len(TASKS[config.task])
        one["certainty"] = plain and {"source": certainty.score(labelled, size, plain)}
        about = about_sets.get(predictions.file_name(one["dataset"], one["split"]), {})
        one["relation"] = "validation" if file in selected_on else related(table)
        one["annotators"] = about.get("annotators")
        one["caveats"] += about.get("differences", [])
        found.append((file, table, one | _leaks(leaks.get(one["table"])), resampled))
    return found


def _score_table(
    file: Path,
    table: Table,
    config: Config,
    fitted: dict[str, Any] | None,
    counts: baselines.LabelCounts | None,
) -> tuple[dict[str, Any], bootstrap.Resampled]:
    classes = TASKS[config.task]
    labelled = predictions.labelled(table)
    about = predictions.description(file, table)
    # The temperature is of the plain predictions.
    scored, resampled = scoring.score_table(
        labelled, len(classes), fitted=None if about["variant"] else fitted, counts=counts
    )
    n_by_class = np.bincount(labelled["label"], minlength=len(classes))
    return (
        about
        | scored
        | {
            "step": predictions.read_origin(file).get("step"),
            "table": predictions.file_name(**about),
            "chance": 1 / np.count_nonzero(n_by_class),
            "not_in_means": None,
            "n_unlabelled": len(table["label"]) - len(labelled["label"]),
            "n_by_class": n_by_class,
            "errors": _worst_errors(labelled, classes),
            "no_pictures": None,
            "caveats": scoring.caveats(scored, classes),
            "curves": _curves(labelled),
        },
        resampled,
    )


def _mark_repeated(
    tests: Sequence[tuple[dict[str, Any], Table]],
    known: Sequence[tuple[str, Table]],
    config: Config,
) -> None:
    """Says of each test set that has images of another one why it is in no mean.

    A test set of the config comes before the others; `known` are the validation parts.
    """
    own = [as_source(entry) for entry in config.test_sets]
    named = {(source.name, source.test) for source in own}
    first = {record: where for where, table in known for record in table["record_id"].tolist()}
    plain = [(one, table) for one, table in tests if not one["variant"]]
    for one, table in sorted(plain, key=lambda e: (e[0]["dataset"], e[0]["split"]) not in named):
        records = table["record_id"].tolist()
        shared = collections.Counter(first[record] for record in records if record in first)
        if shared:
            parts = ", ".join(f"{count} images of {where}" for where, count in shared.items())
            one["not_in_means"] = f"has {parts}"
            one["caveats"].append(f"in no mean: it has {parts}")
        else:
            first |= dict.fromkeys(records, set_name(one))


def _worst_errors(table: Table, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the wrong predictions with the highest probability, at most one of each clip.

    The frames of a clip fail together: without that limit a few clips would fill the list.
    """
    probabilities, labels = table["probabilities"], table["label"]
    given = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(given != labels)
    ranked = wrong[np.argsort(-probabilities[wrong, given[wrong]], kind="stable")]
    clips = np.where(table["clip_id"] != "", table["clip_id"], table["record_id"])[ranked]
    _, first = np.unique(clips, return_index=True)
    return [
        {
            "record_id": str(table["record_id"][row]),
            "label": classes[int(labels[row])],
            "given": classes[int(given[row])],
            "probability": float(probabilities[row, given[row]]),
            "probability_of_label": float(probabilities[row, labels[row]]),
            "face": None,
            "heatmap": None,
        }
        for row in ranked[np.sort(first)][:WORST_ERRORS]
    ]


def _curves(table: Table) -> list[dict[str, Any] | None]:
    """Returns the points of every class's curves, rounded for a figure."""
    found = metrics.curves(table["label"], table["probabilities"], CURVE_POINTS)
    return [
        points and {name: np.round(values, CURVE_DECIMALS) for name, values in points.items()}
        for points in found
    ]


def _leaks(found: dict[str, Any] | None) -> dict[str, Any]:
    """Returns what results.json says of a set's leaks; None each where it was not audited."""
    names = {"leaks": "counts", "seen": "seen", "unknown_people": "unknown"}
    own = {name: found and found[key] for name, key in names.items()}
    return own | {"near_duplicates": found and found["near_duplicates"]}


def _leak_warnings(environment: dict[str, Any], sets: Sequence[dict[str, Any]]) -> list[str]:
    found = [("the data of the training", environment.get("leaks"), environment.get("seen"))]
    found += [(set_name(one), one["leaks"], one["seen"]) for one in sets]
    return [
        f"{where}: {'; '.join([leaks_in_words(counts), *(seen or ())])}"
        for where, counts, seen in found
        if counts
    ]


def leak_notes(workdir: Path, tables: Iterable[str]) -> list[str]:
    """Returns a line for each leak into the data of a run, and for tables not audited for them."""
    leaks = read_leaks(workdir)
    sets = [{"dataset": table, "split": ""} | _leaks(leaks.get(table)) for table in tables]
    notes = [f"LEAKS, {note}" for note in _leak_warnings(read_environment(workdir), sets)]
    unaudited = [one["dataset"] for one in sets if one["leaks"] is None]
    return notes + [f"not audited for leaks: {', '.join(unaudited)}"] * bool(unaudited)


def generalization(
    sets: Sequence[tuple[dict[str, Any], bootstrap.Resampled]], classes: Sequence[str]
) -> dict[str, Any]:
    """Computes balanced accuracy for each relation, and the loss from "within" to the others.

    It is the mean recall of the classes that all sets have, averaged over the sets, and a person
    has the same weight in all sets in each draw. `sets` are those of `score_run` that are in its
    means, as they were resampled. Returns {"metric", "classes" (the names of those), "chance", each
    of `RELATIONS`: {"value", "interval", "sets": their names, "loss": {"value", "interval"}},
    "why": the reason if intervals are missing, else None}; NaN where nothing was evaluated.
    """
    metric = "balanced_accuracy"
    common = bootstrap.common_classes([resampled.of for _, resampled in sets]) if sets else []
    found: dict[str, Any] = {}
    means: dict[str, bootstrap.Estimate] = {}
    nothing = {"value": math.nan, "interval": [math.nan] * 2}
    for related in RELATIONS:
        chosen = [entry for entry in sets if entry[0]["relation"] == related]
        found[related] = nothing | {"sets": [set_name(one) for one, _ in chosen], "loss": nothing}
        if chosen and len(common) > 1:
            own = [bootstrap.estimate_mean(resampled, metric, common) for _, resampled in chosen]
            means[related] = mean = bootstrap.average(own)
            found[related] |= {"value": mean.value, "interval": bootstrap.interval(metric, mean)}
            if related != "within" and "within" in means:
                loss = bootstrap.difference(bootstrap.subtract(means["within"], mean))
                found[related]["loss"] = {"value": loss["difference"], "interval": loss["interval"]}
    why = None
    if not sets:
        why = "none of them is within, cross content or cross domain as a whole"
    elif len(common) < 2:
        why = "the test sets have fewer than two classes in common"
    elif any(math.isnan(found[one]["interval"][0]) for one in RELATIONS if found[one]["sets"]):
        why = "a test set has too few people or images"
    return {
        "metric": metric,
        "classes": [classes[label] for label in common],
        "chance": 1 / len(common) if common else math.nan,
        "why": why,
    } | found


def read_leaks(workdir: Path) -> dict[str, Any]:
    """Returns the leaks that `evaluate` found into each set, as in `LEAKS_FILE`."""
    found = storage.read_json(workdir / LEAKS_FILE, "evaluate again", forms.LEAKS)
    # Of an earlier version, which looked for less.
    return {table: one if one and "counts" in one else None for table, one in found.items()}


def read_test_access(workdir: Path) -> list[dict[str, Any]]:
    """Counts how often `evaluate` accessed each test set of a run.

    Returns {"dataset", "split", "times"} each, and of the last time "time" (ISO 8601, UTC),
    "checkpoint" (its step) and "fingerprint" (of the dataset).
    """
    rows, _ = access_log.read(workdir)
    times = collections.Counter((row["dataset"], row["split"]) for row in rows)
    last = {(row["dataset"], row["split"]): row for row in rows}
    return [last[pair] | {"times": count} for pair, count in times.items()]


def summary(scored: dict[str, Any]) -> str:
    """Returns the headline metrics of results.json as a text table, with its caveats."""
    columns = ["", "set", "step", "images", "clips", "subjects", "balanced accuracy", "95 %"]
    columns += ["pixel-free", "majority", "accuracy", "macro-F1", "PR-AUC", "prevalence"]
    rows, notes = [[*columns, "ROC-AUC", "ECE", "temperature-scaled ECE"]], []
    for one in [*scored["sets"], *scored["validation"], *scored["apart"]]:
        values = [(one["pixel_free"] or {}).get("balanced_accuracy")]
        values += [one["majority"]["balanced_accuracy"], one["accuracy"], one["macro_f1"]]
        values += [one["pr_auc"], one["majority"]["pr_auc"], one["roc_auc"], one["ece"]]
        values += [(one["calibrated"] or {}).get("ece")]
        sizes = (f"{one['n']:.0f}", one["n_clips"] or "n/a", one["n_subjects"] or "n/a")
        balanced = number(one["balanced_accuracy"])
        bounds = interval(one["intervals"]["balanced_accuracy"])
        kind = (one["relation"] or "mixed").replace("_", " ")
        step = "n/a" if one["step"] is None else str(one["step"])
        row = [kind, set_name(one), step, *map(str, sizes), balanced, bounds]
        rows.append([*row, *map(number, values)])
        notes += [f"{set_name(one)}: {caveat}" for caveat in one["caveats"]]
    notes += [f"LEAKS, {warning}" for warning in scored["warnings"]]
    notes += [f"unknown people are behind: {what}" for what in scored["unknown_people"]]
    if scored["apart"]:
        notes.append("in no mean and not temperature-scaled: the last rows, of other checkpoints")
    return "\n".join([results.align(rows, left=(0, 1)), *notes])
