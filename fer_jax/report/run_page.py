"""Pages and figures of a run (results.json, explanations, metrics.jsonl) and of a generator."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_jax import figures, forms, schema, storage
from fer_jax.config import read_config, read_environment, to_json
from fer_jax.errors import InputError
from fer_jax.figures import Line
from fer_jax.report.layout import count, data_uri, interval, number, render
from fer_jax.results import loss_in_words, set_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPLANATIONS = "explanations"
WHERE = {
    "within": "on held-out people of the datasets that it was trained on",
    "cross_content": "on unseen content of these datasets",
    "cross_domain": "on unseen datasets",
}
PAGE_FIGURES = ("precision_recall", "roc", "reliability", "people")
GENERATOR_MEASURES = ("kid", "frechet", "precision", "recall", "near_duplicates")
GENERATOR_FIGURES = (
    ("loss", ("discriminator_loss", "generator_loss"), None),
    ("share", ("precision", "recall", "augment_p"), 1),
    ("class accuracy", ("real_class_accuracy", "made_class_accuracy"), 1),
    ("kernel distance", ("kid",), None),
)


def run_page(workdir: Path, scored: dict[str, Any], faces: bool) -> str:
    """Returns the HTML of a run's page, with or without the faces of its errors."""
    plots = run_figures(workdir, scored, confusion=False)  # the page has it as a table
    plain = {(one["dataset"], one["split"]) for one in scored["sets"] if not one["variant"]}
    sets = []
    for index, one in enumerate(scored["sets"], 1):
        stem = one["table"].removesuffix(".csv")
        pictures = [_pictures(workdir, error) if faces else {} for error in one["errors"]]
        sets.append(
            one
            | {
                "id": f"set{index}",
                "title": f"{one['dataset']} {one['split']}",
                # Under the row of its plain predictions a variant is named alone.
                "row": one["variant"].replace("_", " ")
                if one["variant"] and (one["dataset"], one["split"]) in plain
                else set_name(one),
                "figures": [
                    plots[name] for figure in PAGE_FIGURES if (name := f"{stem}.{figure}") in plots
                ],
                "gallery": list(zip(one["errors"], pictures, strict=True)),
                "no_pictures": one["no_pictures"] if faces else None,
            }
        )
    return render(
        "run.html",
        scored=scored,
        sets=sets,
        answer=_answer(scored),
        unaudited=[s["title"] for s in sets if s["leaks"] is None and not s["variant"]],
        unnamed=[s["title"] for s in sets if s["cluster"] != "subject" and not s["variant"]],
        near_duplicates=_near_duplicates(sets),
        left_out=", ".join(f"{n} records of {name}" for name, n in scored["left_out"].items()),
        training=[figure for name, figure in plots.items() if name.startswith("training.")],
        config=json.dumps(scored["reproduce"]["config"], indent=2),
    )


def _near_duplicates(sets: Sequence[dict[str, Any]]) -> list[tuple[Any, list[str]]]:
    """Returns what audits found, None where none was made, and the titles of these sets."""
    found: dict[str, tuple[Any, list[str]]] = {}
    for one in sets:
        if not one["variant"]:
            near = one["near_duplicates"]
            found.setdefault(json.dumps(near), (near, []))[1].append(one["title"])
    return list(found.values())


def _pictures(workdir: Path, error: dict[str, Any]) -> dict[str, str]:
    """Returns the data URIs of an error's "face" and "heatmap", of those that it has."""
    # The name alone, so that a path in results.json cannot lead out of the folder.
    files = {
        kind: workdir / EXPLANATIONS / Path(error[kind]).name
        for kind in ("face", "heatmap")
        if error[kind]
    }
    for file in files.values():
        if not file.is_file():
            raise InputError(
                f"'{file}' is missing; run `fer-jax evaluate` again, or use --no_faces"
            )
    return {kind: data_uri(file) for kind, file in files.items()}


def _answer(scored: dict[str, Any]) -> str:
    """Answers the page's question in one or two sentences."""
    found = scored["generalization"]
    chance, total = found["chance"], len(scored["classes"])

    def said(name: str) -> str:
        one = found[name]
        low, high = bounds = one["interval"]
        if None in bounds:
            return number(one["value"])
        unclear = ", not distinguishable from chance," if low <= chance <= high else ""
        return f"{number(one['value'])} {interval(bounds)}{unclear}"

    named = all(
        one["cluster"] == "subject" for one in scored["sets"] if one["relation"] == "within"
    )
    where = dict(WHERE)
    if not named:
        where["within"] = where["within"].replace("people", "images (not all people are named)")
    notes = f"chance level {number(chance)}"
    if len(found["classes"]) < total:
        notes += f"; over the {len(found['classes'])} classes that all of these sets have"
    measured = [name for name in WHERE if found[name]["value"] is not None]
    if not measured:
        return f"There is no balanced accuracy over the test sets: {found['why']}."
    if any(bound is not None for name in measured for bound in found[name]["interval"]):
        notes = f"95 % intervals; {notes}"
    if found["why"]:
        notes += f"; no interval where {found['why']}"
    parts = []
    for name in measured:
        loss = found[name]["loss"]
        compared = ""
        if loss["value"] is not None:
            compared = f", {loss_in_words(loss['value'], loss['interval'])}".replace("-", "−")
        sets = ", ".join(found[name]["sets"])
        parts.append(f"{said(name)} {where[name]} ({sets}){compared}")
    missing = ""
    if measured[0] != "within":
        missing = f" It was not evaluated {where['within']}."
    elif len(measured) == 1:
        missing = " It was evaluated neither on unseen content nor on unseen datasets."
    return f"Balanced accuracy is {'; '.join(parts)} ({notes}).{missing}"


def run_figures(
    workdir: Path, scored: dict[str, Any], *, confusion: bool = True
) -> dict[str, "Figure"]:
    """Returns {name: figure} of each evaluated split, and of the training."""
    found = {}
    for one in scored["sets"]:
        stem = one["table"].removesuffix(".csv")
        drawn = _set_figures(one, scored["classes"])
        if confusion:
            drawn["confusion"] = _confusion(one, scored["classes"], set_name(one))
        found |= {f"{stem}.{name}": figure for name, figure in drawn.items()}
    metric = scored["reproduce"]["config"]["selection_metric"]
    return found | _training_figures(workdir, metric, scored["best_step"])


def _set_figures(one: dict[str, Any], classes: Sequence[str]) -> dict[str, "Figure"]:
    recall, roc = [], []
    for index, points in enumerate(one["curves"]):
        if points is None:
            continue
        name, colour = classes[index], f"c{index % figures.NUM_COLOURS}"
        recall.append(Line(name, points["recall"], points["precision"], colour))
        rates = [0, *points["false_positive_rate"]]
        if None not in rates:
            roc.append(Line(name, rates, [0, *points["recall"]], colour))
    title = set_name(one)
    people = {}
    if one["by_subject"]:
        accuracies = one["by_subject"]["accuracies"]
        shares = np.arange(1, len(accuracies) + 1) / len(accuracies)
        people["people"] = figures.chart(
            [
                Line(
                    "share of people up to this accuracy", accuracies, shares, "within", points=True
                )
            ],
            f"Accuracy of each person of {title}",
            "accuracy",
            "share of people",
        )
    return people | {
        "precision_recall": figures.chart(
            recall, f"Precision-recall curves of {title}", "recall", "precision"
        ),
        "roc": figures.chart(
            roc, f"ROC curves of {title}", "false positive rate", "recall", diagonal="chance level"
        ),
        "reliability": _reliability(one["reliability"], title),
    }


def _reliability(reliability: dict[str, list[float | None]], title: str) -> "Figure":
    bins = {name: np.asarray(values, float) for name, values in reliability.items()}
    filled = bins["weight"] > 0
    confidence, accuracy = bins["confidence"][filled], bins["accuracy"][filled]
    return figures.chart(
        [Line("accuracy by confidence", confidence, accuracy, "within", points=True)],
        f"Reliability of {title}: accuracy by confidence",
        "confidence",
        "accuracy",
        diagonal="perfect calibration",
        bars=("share of images", bins["weight"] / bins["weight"].sum()),
    )


def _confusion(one: dict[str, Any], classes: Sequence[str], title: str) -> "Figure":
    counts = np.asarray(one["confusion"], float)
    totals = np.asarray(one["n_by_class"], float)[:, None]
    return figures.heatmap(
        np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0),
        [[f"{value:.0f}" for value in row] for row in counts],
        f"Confusion matrix of {title}",
        rows=classes,
        columns=classes,
        x_label="predicted class",
        y_label="true class",
    )


def _training_figures(workdir: Path, metric: str, best: int | None) -> dict[str, "Figure"]:
    """Returns loss and accuracy by step, or nothing without a log."""
    rows = storage.read_json_lines(workdir / "metrics.jsonl", forms.METRICS_ROW)
    if not rows:
        return {}
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


def generator_page(workdir: Path) -> str:
    """Returns the HTML of a generator's page."""
    config = read_config(workdir, of_generator=True)
    network = storage.read_json(workdir / "generator" / "config.json", form=forms.NETWORK)
    environment = read_environment(workdir)
    rows = storage.read_json_lines(workdir / "metrics.jsonl", forms.METRICS_ROW)
    measured = [row for row in rows if row.get("kid") is not None]
    best = _best(rows)
    answer = "No step was measured yet."
    if best is not None:
        chosen = next(row for row in measured if row["step"] == best)
        answer = (
            f"The best network, at step {best} ({count(chosen['images'])} images), has a kernel "
            f"distance of {number(chosen['kid'])} to the real faces. {chosen['precision']:.0%} of "
            f"the synthetic faces lie within the real ones (precision) and {chosen['recall']:.0%} "
            "of the real faces within the synthetic ones (recall)."
        )
    images = {row["step"]: row["images"] for row in measured}
    grids = [
        (step, images[step], data_uri(file))
        for file in sorted((workdir / "samples").glob("*.png"), reverse=True)
        if (step := int(file.stem)) in images
    ]
    features = config["measure"]["features"]
    classes = schema.TASKS[config["task"]] if config["model"]["conditional"] else ()
    return render(
        "generator.html",
        config=config,
        config_text=to_json(config),
        environment=environment,
        answer=answer,
        trained_on=list(environment.get("datasets", {})),
        unknown_people=network.get("unknown", []),
        features="pixels" if features == "pixels" else f"features of the run {features}",
        classes=classes,
        names=GENERATOR_MEASURES,
        measured=measured,
        best=best,
        # The last step, then 1, 3, 7, 15 and 31 steps before it, to keep the page small.
        grids=[grids[i] for i in sorted({0, *(2**n - 1 for n in range(6))}) if i < len(grids)],
        figures=list(generator_figures(workdir).values()),
    )


def generator_figures(workdir: Path) -> dict[str, "Figure"]:
    """Returns {name: figure} of what the training logged, by step."""
    rows = storage.read_json_lines(workdir / "metrics.jsonl", forms.METRICS_ROW)
    best = _best(rows)
    found = {}
    for title, keys, y_end in GENERATOR_FIGURES:
        lines = [
            line
            for index, key in enumerate(keys)
            if (line := logged(rows, key, key.replace("_", " "), f"c{index}"))
        ]
        if lines:
            found[f"training.{title.replace(' ', '_')}"] = figures.chart(
                lines,
                f"{title.capitalize()} during training",
                "step",
                title,
                x_end=rows[-1]["step"],
                y_end=y_end,
                vertical=None if best is None else ("lowest kernel distance", best),
            )
    return found


def _best(rows: list[dict[str, Any]]) -> int | None:
    """Returns the step with the lowest kernel distance, the latest of equals."""
    measured = [(row["kid"], -row["step"]) for row in rows if row.get("kid") is not None]
    return -min(measured)[1] if measured else None
