"""results.json: every number of a run, computed from its predictions tables alone."""

import collections
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.config import Config, read_config
from fer_jax.data.experiment import as_source
from fer_jax.errors import InputError
from fer_jax.evaluation import (
    baselines,
    bootstrap,
    calibration,
    metrics,
    predictions,
    scoring,
)
from fer_jax.schema import TASKS

# Predictions file -> leaks by kind into what the run learned on; null where it was not looked at.
LEAKS_FILE = "leaks.json"
# A row for every time that a test set was predicted.
OPENINGS_FILE = "openings.jsonl"
HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "pr_auc", "roc_auc", "ece")
WORST_ERRORS = 12


def results(workdir: Path) -> dict[str, Any]:
    """Scores of all tables in workdir/predictions.

    Returns:
      {"task", "classes", "seed", "commit", "datasets", "leaks" (by kind, in what was trained
      on), "left_out", "sets": [...], "validation": [...], "calibration": what
      `calibration.from_validation` returns, "means": {...}, "generalization": what
      `generalization` returns, "openings": what `openings` returns, "reproduce": {...}}. Each
      set has dataset, split, variant, relation ("within" where the run trained on that dataset,
      else "cross"), leaks (of it into what was trained on; None where that was not looked at),
      n_unlabelled, n_by_class (images), errors (the most confident ones) and everything of
      `scoring.score_table`. "validation" has the parts that the checkpoint was selected on: they
      are no test. "means" averages the headline metrics over the sets of each relation, variants
      left out. "reproduce" has the command, config and versions.

    Raises:
      InputError: no run, or no predictions yet.
    """
    config = read_config(workdir)
    environment_file = workdir / "environment.json"
    environment = json.loads(environment_file.read_text()) if environment_file.is_file() else {}
    files = sorted((workdir / "predictions").glob("*.csv"))
    if not files:
        raise InputError(f"'{workdir}' has no predictions; run `fer-jax evaluate` first")
    leaks = read_leaks(workdir)
    trained_on = {as_source(entry).name for entry in config.sources}
    classes = TASKS[config.task]
    fitted = read_calibration(workdir, config)
    counts = baselines.read(workdir, classes)
    scored = {
        file: _score_table(file, classes, trained_on, fitted, counts)
        | {"leaks": leaks.get(file.name)}
        for file in files
    }
    selected_on = validation_files(workdir, config)
    sets = [one for file, one in scored.items() if file not in selected_on]
    # A variant after what it is a variant of, which has none.
    sets.sort(key=lambda s: (s["relation"] != "within", s["dataset"], s["split"], s["variant"]))
    return {
        "task": config["task"],
        "classes": list(classes),
        "seed": config["seed"],
        "commit": environment.get("commit"),
        "datasets": environment.get("datasets", {}),
        "leaks": environment.get("leaks", {}),
        "left_out": environment.get("left_out", {}),
        "sets": sets,
        "validation": [scored[file] | {"relation": "validation"} for file in selected_on],
        "calibration": fitted,
        "means": {
            relation: {name: _mean(sets, relation, name) for name in HEADLINE}
            for relation in ("within", "cross")
        },
        "generalization": generalization(
            sets, len(classes), shared_people=_share_people(workdir, sets)
        ),
        "openings": openings(workdir),
        "reproduce": {
            "command": environment.get("command"),
            "config": config.to_dict(),
            "versions": environment.get("versions", {}),
            "devices": environment.get("devices", []),
            "cpu_cores": environment.get("cpu_cores"),
        },
    }


def generalization(
    sets: Sequence[dict[str, Any]], num_classes: int, *, shared_people: bool = False
) -> dict[str, Any]:
    """Balanced accuracy within and across sources, and the loss from one to the other.

    The squared arms of the intervals of independent estimates add up as their variances do
    (Zou and Donner 2008), each arm by its own side's.

    Args:
      sets: scored, as in `results`; variants are left out.
      num_classes: k.
      shared_people: whether somebody is in several of the sets, which then are not independent.

    Returns:
      {"metric", "chance", "within", "cross", "loss": {"value", "interval", "n_sets"}, "why":
      the reason if intervals are missing, else None}; NaN where a side has not been scored.
    """
    metric = "balanced_accuracy"
    of_relation = {
        relation: [s for s in sets if s["relation"] == relation and not s["variant"]]
        for relation in ("within", "cross")
    }

    def combined(signs: dict[str, float]) -> dict[str, Any]:
        value, below, above, n = 0.0, 0.0, 0.0, 0
        for relation, sign in signs.items():
            chosen = of_relation[relation]
            n += len(chosen)
            if not chosen:
                value = math.nan
            for one in chosen:
                weight = sign / len(chosen)
                arms = [weight * (bound - one[metric]) for bound in one["intervals"][metric]]
                value += weight * one[metric]
                below += min(arms) ** 2
                above += max(arms) ** 2
        bounds = [value - math.sqrt(below), value + math.sqrt(above)]
        return {
            "value": value,
            "interval": [math.nan, math.nan] if shared_people and n > 1 else bounds,
            "n_sets": n,
        }

    found = {
        "within": combined({"within": 1.0}),
        "cross": combined({"cross": 1.0}),
        "loss": combined({"within": 1.0, "cross": -1.0}),
    }
    why = None
    if shared_people:
        why = "somebody is in several of the test sets, which therefore are not independent"
    elif any(math.isnan(one["interval"][0]) for one in found.values() if one["n_sets"]):
        why = "one of the test sets has none"
    return {"metric": metric, "chance": 1 / num_classes} | found | {"why": why}


def _share_people(workdir: Path, sets: Sequence[dict[str, Any]]) -> bool:
    """Whether a subject (where none is named, a record) is in two of the plain tables."""
    seen: set[str] = set()
    for one in sets:
        if one["variant"]:
            continue
        name = predictions.file_name(one["dataset"], one["split"])
        table, _ = predictions.read(workdir / "predictions" / name)
        subjects = table["subject_id"]
        people = set(np.where(subjects != "", subjects, table["record_id"]).tolist())
        if seen & people:
            return True
        seen |= people
    return False


def read_leaks(workdir: Path) -> dict[str, Any]:
    """What `evaluate` found to leak into each set: predictions file -> leaks by kind."""
    file = workdir / LEAKS_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def openings(workdir: Path) -> list[dict[str, Any]]:
    """How often `evaluate` opened each test set of a run.

    Returns:
      {"dataset", "split", "times"} each, and of the last time "time" (ISO 8601, UTC),
      "checkpoint" (its step) and "fingerprint" (of the dataset).
    """
    file = workdir / OPENINGS_FILE
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    times = collections.Counter((row["dataset"], row["split"]) for row in rows)
    last = {(row["dataset"], row["split"]): row for row in rows}
    return [last[opened] | {"times": count} for opened, count in times.items()]


def validation_files(workdir: Path, config: Config) -> list[Path]:
    """The tables of the parts that the run's checkpoint was selected on, where there are any."""
    sources = [as_source(entry) for entry in config.sources]
    names = [predictions.file_name(source.name, source.validation) for source in sources]
    files = [workdir / "predictions" / name for name in dict.fromkeys(names)]
    return [file for file in files if file.is_file()]


def read_calibration(workdir: Path, config: Config) -> dict[str, Any] | None:
    """`calibration.from_validation` of a run; None where validation was not scored."""
    files = validation_files(workdir, config)
    return calibration.from_validation([predictions.read(file)[0] for file in files])


def _score_table(
    file: Path,
    classes: tuple[str, ...],
    trained_on: set[str],
    fitted: dict[str, Any] | None,
    counts: baselines.LabelCounts | None,
) -> dict[str, Any]:
    table, of_table = predictions.read(file)
    if of_table != classes:
        raise InputError(
            f"{file} is about {', '.join(of_table)}; the run's task has {', '.join(classes)}"
        )
    known = table["label"] >= 0
    if not known.any():
        raise InputError(f"{file}: no image has a label")
    dataset, split = str(table["dataset"][0]), str(table["split"][0])
    plain = predictions.file_name(dataset, split).removesuffix(".csv")
    variant = file.name.removesuffix(".csv").removeprefix(plain).removeprefix(".")
    # A dataset may be named with or without its config.
    names = {dataset, dataset.split("/")[0]}
    labelled = {name: column[known] for name, column in table.items()}
    return {
        "dataset": dataset,
        "split": split,
        "variant": variant,
        "relation": "within" if names & trained_on else "cross",
        "n_unlabelled": int((~known).sum()),
        "n_by_class": np.bincount(labelled["label"], minlength=len(classes)),
        "errors": _worst_errors(labelled, classes),
    } | scoring.score_table(
        labelled,
        len(classes),
        # The temperature is of the plain predictions.
        fitted=None if variant else fitted,
        counts=counts,
    )


def _worst_errors(table: predictions.Table, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The wrong answers with the highest probability, at most one of each clip.

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
        }
        for row in ranked[np.sort(first)][:WORST_ERRORS]
    ]


def _mean(sets: list[dict[str, Any]], relation: str, name: str) -> float:
    values = [
        scored[name] for scored in sets if scored["relation"] == relation and not scored["variant"]
    ]
    return float(metrics.mean_defined(np.asarray(values, np.float64)))


def write(workdir: Path) -> Path:
    """Writes workdir/results.json; NaN becomes null."""
    path = workdir / "results.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(plain(results(workdir)), indent=2) + "\n")
    temporary.replace(path)
    return path


def plain(value: Any) -> Any:
    """Arrays as lists and NaN as None, so that it is JSON."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and math.isnan(value) else value


def number(value: float | None, *, signed: bool = False) -> str:
    """Three decimals, or "n/a" where a number does not exist."""
    if value is None or math.isnan(value):
        return "n/a"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def interval(bounds: Sequence[float | None], *, signed: bool = False) -> str:
    """An interval for people: "[0.421, 0.533]", or "n/a" where it does not exist."""
    low, high = (number(bound, signed=signed) for bound in bounds)
    return "n/a" if "n/a" in (low, high) else f"[{low}, {high}]"


def p_value(p: float | None) -> str:
    """A p-value for people: three decimals, "<0.001" or "n/a"."""
    return "<0.001" if p is not None and p < 0.001 else number(p)


def summary(scored: dict[str, Any]) -> str:
    """The headline metrics as a table for a terminal, and what is doubtful about them.

    Args:
      scored: from `results`, or results.json.
    """
    columns = ["", "set", "images", "clips", "subjects", "accuracy", "balanced_accuracy", "95 %"]
    columns += ["macro_f1", "pr_auc", "chance", "roc_auc", "ece", "at T", "no pixels", "majority"]
    rows, notes = [columns], []
    for one in [*scored["sets"], *scored["validation"]]:
        name = f"{one['dataset']} {one['split']} {one['variant']}".strip()
        rows.append(
            [
                one["relation"],
                name,
                f"{one['n']:.0f}",
                str(one["n_clips"] or "n/a"),
                str(one["n_subjects"] or "n/a"),
                number(one["accuracy"]),
                number(one["balanced_accuracy"]),
                interval(one["intervals"]["balanced_accuracy"]),
                number(one["macro_f1"]),
                number(one["pr_auc"]),
                number(one["majority"]["pr_auc"]),
                number(one["roc_auc"]),
                number(one["ece"]),
                number((one["calibrated"] or {}).get("ece")),
                number((one["no_pixels"] or {}).get("balanced_accuracy")),
                number(one["majority"]["balanced_accuracy"]),
            ]
        )
        notes += [f"{name}: {doubt}" for doubt in doubts(one, scored["classes"])]
    return "\n".join([*aligned(rows, num_left=2), *notes])


def aligned(rows: Sequence[Sequence[str]], *, num_left: int) -> list[str]:
    """Rows of cells as lines, the first `num_left` columns flush left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < num_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def doubts(one: dict[str, Any], classes: Sequence[str]) -> list[str]:
    """What a reader of a set's numbers must know, in a line each."""
    found = []
    absent = [name for name, share in zip(classes, one["prevalence"], strict=True) if not share]
    if absent:
        found.append(f"no image of {', '.join(absent)}; means are over the other classes")
    found += doubts_of_interval(one, one["intervals"]["balanced_accuracy"])
    shares = one["undefined_draws"].get("class_pr_auc", [0.0] * len(classes))
    rare = {
        name: share
        for name, share in zip(classes, shares, strict=True)
        if name not in absent and share > bootstrap.MUCH_UNDEFINED
    }
    if rare:
        found.append(f"{', '.join(rare)} missing from up to {max(rare.values()):.0%} of the draws")
    return found


def doubts_of_interval(one: dict[str, Any], bounds: Sequence[float | None]) -> list[str]:
    """What few clusters mean for an interval of a set, and why there may be none."""
    if one["n_clusters"] < 2:
        return [f"a single {one['cluster']}: nothing says how another one would score"]
    doubts = []
    if one["n_clusters"] < bootstrap.FEW_CLUSTERS:
        doubts.append(f"only {one['n_clusters']} clusters (by {one['cluster']}): rough intervals")
    if one["effective_clusters"] < 2:
        doubts.append(f"no interval: one {one['cluster']} has most of the images")
    elif interval(bounds) == "n/a":
        doubts.append("no interval: nothing varies among the clusters")
    return doubts
