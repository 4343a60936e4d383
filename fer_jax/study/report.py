"""report.html: what a run shows, in one self-contained page computed from its files."""

import argparse
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from fer_jax.config import OneLineParser, read_config
from fer_jax.data.audit import leaks_in_words
from fer_jax.evaluation import metrics, predictions, results

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
WITHIN, CROSS = COLOURS[0], COLOURS[1]


def report(workdir: Path) -> Path:
    """Writes workdir/report.html (and results.json beside it, from the same tables).

    Raises:
      InputError: no run, or no predictions yet.
    """
    results.write(workdir)
    scored = json.loads((workdir / "results.json").read_text())
    environment = workdir / "environment.json"
    history = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in _lines(history)]
    config = read_config(workdir).to_dict()
    sets = []
    for one in scored["sets"]:
        name = predictions.file_name(one["dataset"], one["split"], one["variant"])
        table, _ = predictions.read(workdir / "predictions" / name)
        known = table["label"] >= 0
        labels, probabilities = table["label"][known], table["probabilities"][known]
        title = f"{one['dataset']} {one['split']} {one['variant']}".strip()
        curves = metrics.curves(labels, probabilities)
        bins = metrics.reliability(labels, probabilities)
        plots = {
            "title": title,
            "curves": _curves_plot(curves, scored["classes"], title),
            "reliability": _reliability_plot(bins, title),
        }
        sets.append(one | plots)
    environment_values = json.loads(environment.read_text()) if environment.is_file() else {}
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (Path(__file__).parent / "report.html").read_text()
    )
    page = template.render(
        scored=scored,
        sets=sets,
        answer=_answer(scored),
        warnings=_leaks(scored),
        left_out=", ".join(f"{n} records of {name}" for name, n in scored["left_out"].items()),
        overview=_overview_plot(scored),
        training=_training_plot(rows, config["selection_metric"]) if rows else None,
        config=json.dumps(config, indent=2),
        environment=environment_values,
        number=results.number,
        headline=results.HEADLINE,
    )
    path = workdir / "report.html"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page)
    temporary.replace(path)
    return path


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


def _answer(scored: dict[str, Any]) -> str:
    """The question's answer in one sentence."""
    within = scored["means"]["within"]["balanced_accuracy"]
    cross = scored["means"]["cross"]["balanced_accuracy"]
    chance = results.number(1 / len(scored["classes"]))
    if within is None or cross is None:
        only, value = ("within", within) if cross is None else ("cross", cross)
        where = {
            "within": "on held-out people of the sources it trained on",
            "cross": "on sources it never saw",
        }[only]
        return (
            f"Balanced accuracy is {results.number(value)} {where} (chance is {chance}); the "
            "other side of the comparison has not been scored."
        )
    return (
        f"On held-out people of the sources it trained on the model reaches a balanced accuracy "
        f"of {results.number(within)}; on sources it never saw, {results.number(cross)}: "
        f"a loss of {results.number(within - cross)} (chance is {chance})."
    )


def _leaks(scored: dict[str, Any]) -> list[str]:
    """What makes the scores untrustworthy, a line each."""
    found = [("the training and validation parts", scored["leaks"])]
    found += [(f"{one['dataset']} {one['split']}", one["leaks"]) for one in scored["sets"]]
    return [f"{where}: {leaks_in_words(counts)}" for where, counts in found if counts]


def _svg(figure: Figure, label: str) -> Markup:
    """A figure as inline SVG that scales with the page and has a name for screen readers."""
    # Fixed salt: the same data gives the same page.
    with matplotlib.rc_context({"svg.hashsalt": label, "svg.fonttype": "none"}):
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # Ids are shared by all figures of a page, so each figure gets its own prefix.
    prefix = f"f{hashlib.sha256(label.encode()).hexdigest()[:8]}_"
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    name = str(Markup.escape(label))
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{name}"', 1))


def _axes(figure: Figure, *position: int) -> Any:
    axes = figure.add_subplot(*position)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return axes


def _overview_plot(scored: dict[str, Any]) -> Markup:
    sets = scored["sets"][::-1]
    figure = Figure(figsize=(7, 0.5 + 0.45 * len(sets)))
    axes = _axes(figure)
    for row, one in enumerate(sets):
        colour = WITHIN if one["relation"] == "within" else CROSS
        axes.plot([0, one["balanced_accuracy"]], [row, row], color=colour, linewidth=2)
        axes.plot(one["balanced_accuracy"], row, "o", color=colour, markersize=8)
        axes.annotate(
            results.number(one["balanced_accuracy"]),
            (one["balanced_accuracy"], row),
            xytext=(9, -3),
            textcoords="offset points",
            fontsize=9,
        )
    axes.axvline(1 / len(scored["classes"]), color="#888888", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(sets)), [f"{s['dataset']} ({s['relation']})" for s in sets])
    axes.set_xlim(0, 1.05)
    axes.set_ylim(-0.6, len(sets) - 0.4)
    axes.set_xlabel("balanced accuracy (dotted: chance)")
    return _svg(figure, "Balanced accuracy of every test set, within and across sources")


def _curves_plot(curves: list[Any], classes: list[str], title: str) -> Markup:
    figure = Figure(figsize=(8, 3.4))
    left, right = _axes(figure, 1, 2, 1), _axes(figure, 1, 2, 2)
    for index, points in enumerate(curves):
        if points is None:
            continue
        colour = COLOURS[index % len(COLOURS)]
        recall, precision = points["recall"], points["precision"]
        left.step(recall, precision, color=colour, linewidth=1.4, label=classes[index])
        right.plot(
            np.append(0, points["false_positive_rate"]),
            np.append(0, recall),
            color=colour,
            linewidth=1.4,
        )
    right.plot([0, 1], [0, 1], ":", color="#888888", linewidth=1)
    left.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    right.set(xlabel="false positive rate", ylabel="recall", xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.set_layout_engine("constrained")
    return _svg(figure, f"Precision-recall and ROC curves of {title}")


def _reliability_plot(bins: dict[str, np.ndarray], title: str) -> Markup:
    figure = Figure(figsize=(3.4, 3.2))
    axes = _axes(figure)
    share = bins["weight"] / bins["weight"].sum()
    centres = (np.arange(len(share)) + 0.5) / len(share)
    axes.bar(centres, share, width=0.9 / len(share), color="#BBBBBB", label="share of images")
    known = bins["weight"] > 0
    axes.plot([0, 1], [0, 1], ":", color="#888888", linewidth=1)
    axes.plot(bins["confidence"][known], bins["accuracy"][known], "o-", color=WITHIN, markersize=4)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    return _svg(figure, f"Reliability of {title}: accuracy by confidence")


def _training_plot(rows: list[dict[str, Any]], metric: str) -> Markup:
    figure = Figure(figsize=(8, 3.2))
    left, right = _axes(figure, 1, 2, 1), _axes(figure, 1, 2, 2)
    for axes, name in ((left, "loss"), (right, "accuracy")):
        for part, colour in (("train", "#888888"), ("validation", WITHIN)):
            points = [
                (row["step"], row[f"{part}_{name}"])
                for row in rows
                if row.get(f"{part}_{name}") is not None
            ]
            if points:
                style = "-" if part == "train" else "o-"
                axes.plot(
                    *zip(*points, strict=True),
                    style,
                    color=colour,
                    label=part,
                    markersize=3,
                    linewidth=1.3,
                )
        axes.set(xlabel="step", ylabel=name)
    left.set_ylim(bottom=0)
    right.set_ylim(0, 1.02)
    validated = [row for row in rows if row.get(metric) is not None]
    if validated:
        sign = -1 if metric.endswith("loss") else 1
        best = max(validated, key=lambda row: sign * row[metric])["step"]
        for axes in (left, right):
            axes.axvline(best, color=CROSS, linestyle="--", linewidth=1, label="best checkpoint")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    figure.set_layout_engine("constrained")
    return _svg(figure, "Loss and accuracy during training")


def main(argv: list[str]) -> None:
    """The verb `report`."""
    parser = OneLineParser(
        prog="fer-jax report",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of a scored run")
    print(report(parser.parse_args(argv).workdir).resolve())
