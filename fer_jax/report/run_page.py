"""The page and the figures of one run, from its results.json, predictions and metrics.jsonl."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_jax import checkpoints, figures
from fer_jax.data.audit.findings import leaks_in_words
from fer_jax.evaluation import metrics, predictions, results
from fer_jax.figures import Line
from fer_jax.report.layout import interval, number, render
from fer_jax.training.log import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE_POINTS = 100
PAGE_FIGURES = ("precision_recall", "roc", "reliability")


def run_page(workdir: Path, scored: dict[str, Any], galleries: dict[str, dict[str, Any]]) -> str:
    """Returns the page's HTML; `galleries` has the pictures of each predictions file's errors."""
    config = scored["reproduce"]["config"]
    drawn = run_figures(workdir, scored)
    sets = []
    for index, one in enumerate(scored["sets"], 1):
        name = predictions.file_name(one["dataset"], one["split"], one["variant"])
        shown = galleries.get(name) or {"pictures": [{}] * len(one["errors"]), "why": None}
        stem = name.removesuffix(".csv")
        sets.append(
            one
            | {
                "id": f"set{index}",
                "title": f"{one['dataset']} {one['split']}",
                "caveats": results.doubts(one, scored["classes"]),
                "figures": [drawn[f"{stem}.{figure}"] for figure in PAGE_FIGURES],
                "gallery": list(zip(one["errors"], shown["pictures"], strict=True)),
                "no_pictures": shown["why"],
            }
        )
    return render(
        "run.html",
        scored=scored,
        sets=sets,
        answer=_answer(scored),
        warnings=_leaks(scored),
        unaudited=[s["title"] for s in sets if s["leaks"] is None and not s["variant"]],
        left_out=", ".join(f"{n} records of {name}" for name, n in scored["left_out"].items()),
        training=[figure for name, figure in drawn.items() if name.startswith("training.")],
        config=json.dumps(config, indent=2),
    )


def _answer(scored: dict[str, Any]) -> str:
    """Answers the page's question in one or two sentences."""
    found = scored["generalization"]

    def said(name: str) -> str:
        one = found[name]
        bounds = interval(one["interval"])
        return number(one["value"]) + ("" if bounds == "n/a" else f" {bounds}")

    notes = f"chance level {number(found['chance'])}"
    if any(bound is not None for name in ("within", "cross") for bound in found[name]["interval"]):
        notes = f"95 % intervals; {notes}"
    if found["why"]:
        notes += f"; no interval where {found['why']}"
    where = {
        "within": "on held-out people of the datasets that it was trained on",
        "cross": "on unseen datasets",
    }
    missing = [name for name in where if found[name]["value"] is None]
    if missing:
        only = next(name for name in where if name not in missing)
        return (
            f"Balanced accuracy is {said(only)} {where[only]} ({notes}). It was not evaluated "
            f"{where[missing[0]]}."
        )
    return (
        f"The balanced accuracy is {said('within')} {where['within']} and {said('cross')} "
        f"{where['cross']}: a loss of {said('loss')} ({notes})."
    )


def _leaks(scored: dict[str, Any]) -> list[str]:
    """Says in a line each what makes the scores untrustworthy."""
    found = [("the training and validation splits", scored["leaks"])]
    found += [
        (f"{one['dataset']} {one['split']}", one["leaks"])
        for one in scored["sets"]
        if not one["variant"]
    ]
    return [f"{where}: {leaks_in_words(counts)}" for where, counts in found if counts]


def run_figures(workdir: Path, scored: dict[str, Any]) -> dict[str, "Figure"]:
    """Returns {name: figure} of each evaluated split and of the training."""
    found = {}
    for one in scored["sets"]:
        name = predictions.file_name(one["dataset"], one["split"], one["variant"])
        drawn = _set_figures(workdir / "predictions" / name, one, scored["classes"])
        found |= {f"{name.removesuffix('.csv')}.{key}": figure for key, figure in drawn.items()}
    metric = scored["reproduce"]["config"]["selection_metric"]
    return found | _training_figures(workdir, metric)


def _set_figures(file: Path, one: dict[str, Any], classes: Sequence[str]) -> dict[str, "Figure"]:
    table, _ = predictions.read(file)
    labelled = table["label"] >= 0
    labels, probabilities = table["label"][labelled], table["probabilities"][labelled]
    recall, roc = [], []
    for index, points in enumerate(metrics.curves(labels, probabilities, CURVE_POINTS)):
        if points is None:
            continue
        name, colour = classes[index], f"c{index % figures.NUM_COLOURS}"
        recall.append(Line(name, points["recall"], points["precision"], colour))
        rates = np.append(0, points["false_positive_rate"])
        if np.isfinite(rates).all():
            roc.append(Line(name, rates, np.append(0, points["recall"]), colour))
    title = f"{one['dataset']} {one['split']} {one['variant']}".strip()
    return {
        "precision_recall": figures.chart(
            recall, f"Precision-recall curves of {title}", "recall", "precision"
        ),
        "roc": figures.chart(
            roc,
            f"ROC curves of {title}",
            "false positive rate",
            "recall",
            diagonal="chance level",
        ),
        "reliability": _reliability(one["reliability"], title),
        "confusion": _confusion(one, classes, title),
    }


def _reliability(reliability: dict[str, list[float | None]], title: str) -> "Figure":
    bins = {
        name: np.asarray([math.nan if value is None else value for value in values])
        for name, values in reliability.items()
    }
    filled = bins["weight"] > 0
    line = Line(
        "accuracy by confidence",
        bins["confidence"][filled],
        bins["accuracy"][filled],
        "within",
        True,
    )
    return figures.chart(
        [line],
        f"Reliability of {title}: accuracy by confidence",
        "confidence",
        "accuracy",
        diagonal="perfect calibration",
        bars=("share of images", bins["weight"] / bins["weight"].sum()),
    )


def _confusion(one: dict[str, Any], classes: Sequence[str], title: str) -> "Figure":
    counts = np.asarray(one["confusion"], float)
    totals = np.asarray(one["n_by_class"], float)[:, None]
    shares = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    texts = [[f"{value:.0f}" for value in row] for row in counts]
    return figures.heatmap(
        shares,
        texts,
        f"Confusion matrix of {title}",
        rows=classes,
        columns=classes,
        x_label="predicted class",
        y_label="true class",
    )


def _training_figures(workdir: Path, metric: str) -> dict[str, "Figure"]:
    """Returns loss and accuracy by step, or nothing without a log."""
    rows = read_metrics(workdir)
    if not rows:
        return {}
    best = checkpoints.best_step([row for row in rows if row.get(metric) is not None], metric)
    chosen = f"best checkpoint, by {metric.replace('_', ' ')}"
    found = {}
    for name in ("loss", "accuracy"):
        lines = [
            line
            for part, colour in (("train", "soft"), ("validation", "within"))
            if (line := logged(rows, f"{part}_{name}", part, colour, points=part == "validation"))
        ]
        found[f"training.{name}"] = figures.chart(
            lines,
            f"{name.capitalize()} during training",
            "step",
            name,
            x_end=rows[-1]["step"],
            y_end=None if name == "loss" else 1,
            vertical=None if best is None else (chosen, best),
        )
    return found


def logged(
    rows: Sequence[dict[str, Any]], key: str, name: str, colour: str, *, points: bool = False
) -> Line | None:
    """Returns a logged quantity by step, or None if it was never logged."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    if not found:
        return None
    steps, values = zip(*found, strict=True)
    return Line(name, steps, values, colour, points)
