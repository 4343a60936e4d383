"""results.json: every number of a run, computed from its predictions tables alone."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.config import read_config
from fer_jax.errors import InputError
from fer_jax.evaluation import metrics, predictions

# Predictions file -> leaks by kind into what the run learned on; null where it was not looked at.
LEAKS_FILE = "leaks.json"
HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "pr_auc", "roc_auc", "ece")


def results(workdir: Path) -> dict[str, Any]:
    """Scores of all tables in workdir/predictions.

    Returns:
      {"task", "classes", "seed", "commit", "datasets", "leaks" (by kind, in what was trained
      on), "left_out", "sets": [...], "means": {...}}. Each set has dataset, split, variant,
      relation ("within" where the run trained on that dataset, else "cross"), leaks (of it into
      what was trained on; None where that was not looked at), n (images with a label: those
      that are scored), n_unlabelled, n_subjects, n_clips, everything of `metrics.score`, and
      "majority": the accuracy and balanced accuracy of always answering its commonest class.
      "means" averages the headline metrics over the sets of each relation.

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
    trained_on = {entry if isinstance(entry, str) else entry["name"] for entry in config["sources"]}
    sets, classes = [], ()
    for file in files:
        table, classes = predictions.read(file)
        sets.append(_score_table(file, table, trained_on) | {"leaks": leaks.get(file.name)})
    sets.sort(key=lambda scored: (scored["relation"] != "within", scored["dataset"]))
    return {
        "task": config["task"],
        "classes": list(classes),
        "seed": config["seed"],
        "commit": environment.get("commit"),
        "datasets": environment.get("datasets", {}),
        "leaks": environment.get("leaks", {}),
        "left_out": environment.get("left_out", {}),
        "sets": sets,
        "means": {
            relation: {name: _mean(sets, relation, name) for name in HEADLINE}
            for relation in ("within", "cross")
        },
    }


def read_leaks(workdir: Path) -> dict[str, Any]:
    """What `evaluate` found to leak into each set: predictions file -> leaks by kind."""
    file = workdir / LEAKS_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def _score_table(file: Path, table: predictions.Table, trained_on: set[str]) -> dict[str, Any]:
    known = table["label"] >= 0
    labels, probabilities = table["label"][known], table["probabilities"][known]
    if not len(labels):
        raise InputError(f"{file}: no image has a label")
    dataset, split = str(table["dataset"][0]), str(table["split"][0])
    plain = predictions.file_name(dataset, split).removesuffix(".csv")
    scored = metrics.score(labels, probabilities)
    commonest = scored["prevalence"].max()
    # A dataset may be named with or without its config.
    names = {dataset, dataset.split("/")[0]}
    return {
        "dataset": dataset,
        "split": split,
        "variant": file.name.removesuffix(".csv").removeprefix(plain).removeprefix("."),
        "relation": "within" if names & trained_on else "cross",
        "n_unlabelled": int((~known).sum()),
        "n_subjects": len(set(table["subject_id"][known]) - {""}),
        "n_clips": len(set(table["clip_id"][known]) - {""}),
        "majority": {
            "accuracy": commonest,
            "balanced_accuracy": 1 / (scored["prevalence"] > 0).sum(),
        },
    } | scored


def _mean(sets: list[dict[str, Any]], relation: str, name: str) -> float:
    values = [scored[name] for scored in sets if scored["relation"] == relation]
    return metrics.mean_defined(np.asarray(values, np.float64))


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


def number(value: float | None) -> str:
    """Three decimals, or "n/a" where a number does not exist."""
    return "n/a" if value is None or math.isnan(value) else f"{value:.3f}"


def summary(scored: dict[str, Any]) -> str:
    """The headline metrics as a table for a terminal.

    Args:
      scored: from `results`, or results.json.
    """
    columns = ["", "set", "images", "subjects", *HEADLINE, "majority"]
    rows = [columns]
    for one in scored["sets"]:
        variant = f" {one['variant']}" if one["variant"] else ""
        rows.append(
            [
                one["relation"],
                f"{one['dataset']} {one['split']}{variant}",
                f"{one['n']:.0f}",
                str(one["n_subjects"] or "n/a"),
                *(number(one[name]) for name in HEADLINE),
                number(one["majority"]["accuracy"]),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
