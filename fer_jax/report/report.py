"""The verb `report`: report.html of a run or of a study, one self-contained page.

Every number on it is in results.json. A run's is computed again from its predictions tables
first; a study's is read as `study` left it.
"""

import argparse
import base64
import json
import math
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from fer_jax import checkpoints, compilations, schema
from fer_jax.config import OneLineParser
from fer_jax.data.audit.findings import leaks_in_words
from fer_jax.data.records import open_records
from fer_jax.errors import InputError
from fer_jax.evaluation import metrics, predictions, results
from fer_jax.figures import NUM_COLOURS, Line, panel, ticks, track
from fer_jax.inference.explain import overlay
from fer_jax.inference.load import load
from fer_jax.media.images import resized
from fer_jax.training.log import read_metrics

TEMPLATES = Path(__file__).parent
EXPLANATIONS = "explanations"
THUMBNAIL = 128  # pixels a side
THUMBNAIL_QUALITY = 80
CURVE_POINTS = 100
# A probability that has moved by more is of another checkpoint, or of another picture.
SAME_PROBABILITY = 0.02
GENERATOR_MEASURES = ("kid", "frechet", "precision", "recall", "near_duplicates")
PROSE = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "pr_auc": "PR-AUC",
    "roc_auc": "ROC-AUC",
    "ece": "ECE",
    "loss": "loss",
}


def report(workdir: Path, *, data_dir: Path | None = None, faces: bool = True) -> Path:
    """Writes workdir/report.html.

    Args:
      workdir: of a scored run, whose results.json is written anew, or of a study.
      data_dir: where a run's datasets are, for the gallery of errors; None means where it
        trained from. Where they are not, the errors are listed without pictures.
      faces: whether a run's page may show faces, and workdir/explanations hold them.

    Raises:
      InputError: no run and no study, or no predictions yet.
    """
    file = workdir / "results.json"
    try:
        scored = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise InputError(f"'{file}' is damaged ({error}); remove it and score again") from error
    if "scenarios" in scored:
        page = _study_page(workdir, scored)
    elif _is_generator(workdir):
        page = _generator_page(workdir)
    elif not scored and (workdir / "runs").is_dir():
        raise InputError(f"'{workdir}' is a study without results; run `fer-jax study` to its end")
    else:
        page = _run_page(workdir, data_dir, faces)
    path = workdir / "report.html"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page)
    temporary.replace(path)
    return path


def _render(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "number": _number,
        "interval": _interval,
        "count": _count,
        "p_value": results.p_value,
        "track": track,
        "prose": PROSE,
        "headline": results.HEADLINE,
        "leaks_in_words": leaks_in_words,
    }
    return environment.get_template(template).render(**values)


def _number(value: float | None, *, signed: bool = False) -> str:
    return results.number(value, signed=signed).replace("-", "−")


def _interval(bounds: Sequence[float | None] | None, *, signed: bool = False) -> str:
    return results.interval(bounds or (None, None), signed=signed).replace("-", "−")


def _count(value: float | None) -> str:
    """A whole number, or "n/a" where there is none to count."""
    return f"{value:,.0f}" if value else "n/a"


# A run


def _run_page(workdir: Path, data_dir: Path | None, faces: bool) -> str:
    results.write(workdir)
    scored = json.loads((workdir / "results.json").read_text())
    galleries = _galleries(workdir, scored, data_dir) if faces else {}
    sets = []
    for number, one in enumerate(scored["sets"], 1):
        title = f"{one['dataset']} {one['split']}"
        name = predictions.file_name(one["dataset"], one["split"], one["variant"])
        shown = galleries.get(name) or {"pictures": [{}] * len(one["errors"]), "why": None}
        sets.append(
            one
            | {
                "id": f"set{number}",
                "title": title,
                "doubts": results.doubts(one, scored["classes"]),
                "charts": _set_charts(workdir / "predictions" / name, one, scored["classes"]),
                "gallery": list(zip(one["errors"], shown["pictures"], strict=True)),
                "no_pictures": shown["why"],
            }
        )
    config = scored["reproduce"]["config"]
    return _render(
        "run.html",
        scored=scored,
        sets=sets,
        answer=_answer(scored),
        warnings=_leaks(scored),
        unaudited=[s["title"] for s in sets if s["leaks"] is None and not s["variant"]],
        left_out=", ".join(f"{n} records of {name}" for name, n in scored["left_out"].items()),
        training=_training_charts(workdir, config["selection_metric"]),
        selection_metric=config["selection_metric"].replace("_", " "),
        config=json.dumps(config, indent=2),
    )


def _answer(scored: dict[str, Any]) -> str:
    """The question's answer in one sentence."""
    found = scored["generalization"]

    def said(name: str) -> str:
        one = found[name]
        bounds = _interval(one["interval"])
        return _number(one["value"]) + ("" if bounds == "n/a" else f" {bounds}")

    chance = f"chance is {_number(found['chance'])}"
    if any(bound is not None for name in ("within", "cross") for bound in found[name]["interval"]):
        chance = f"95 % intervals; {chance}"
    if found["why"]:
        chance += f"; no interval where {found['why']}"
    sides = {
        "within": "on held-out people of the sources it trained on",
        "cross": "on sources it never saw",
    }
    missing = [name for name in sides if found[name]["value"] is None]
    if missing:
        only = next(name for name in sides if name not in missing)
        return (
            f"Balanced accuracy is {said(only)} {sides[only]} ({chance}); the other side of the "
            "comparison has not been scored."
        )
    return (
        f"On held-out people of the sources it trained on the model reaches a balanced accuracy "
        f"of {said('within')}; on sources it never saw, {said('cross')}: a loss of "
        f"{said('loss')} ({chance})."
    )


def _leaks(scored: dict[str, Any]) -> list[str]:
    """What makes the scores untrustworthy, a line each."""
    found = [("the training and validation parts", scored["leaks"])]
    found += [
        (f"{one['dataset']} {one['split']}", one["leaks"])
        for one in scored["sets"]
        if not one["variant"]
    ]
    return [f"{where}: {leaks_in_words(counts)}" for where, counts in found if counts]


def _set_charts(file: Path, one: dict[str, Any], classes: Sequence[str]) -> list[Markup]:
    """Precision-recall, ROC and reliability of one test set."""
    table, _ = predictions.read(file)
    known = table["label"] >= 0
    curves = metrics.curves(
        table["label"][known], table["probabilities"][known], max_points=CURVE_POINTS
    )
    recall, roc = [], []
    for index, points in enumerate(curves):
        if points is None:
            continue
        name, style = classes[index], f"c{index % NUM_COLOURS}"
        recall.append(Line(name, points["recall"], points["precision"], style))
        rates = (np.append(0, points["false_positive_rate"]), np.append(0, points["recall"]))
        if np.isfinite(rates[0]).all():
            roc.append(Line(name, *rates, style))
    title = f"{one['dataset']} {one['split']} {one['variant']}".strip()
    bins = {
        name: np.asarray([math.nan if value is None else value for value in values])
        for name, values in one["reliability"].items()
    }
    filled = bins["weight"] > 0
    reliability = Line(
        "accuracy by confidence",
        bins["confidence"][filled],
        bins["accuracy"][filled],
        "within points",
    )
    return [
        panel(
            recall,
            label=f"Precision-recall curves of {title}",
            x_label="recall",
            y_label="precision",
        ),
        panel(
            roc,
            label=f"ROC curves of {title}",
            x_label="false positive rate",
            y_label="recall",
            diagonal=True,
        ),
        panel(
            [reliability],
            label=f"Reliability of {title}: accuracy by confidence",
            x_label="confidence",
            y_label="accuracy; bars: share of images",
            diagonal=True,
            bars=bins["weight"] / bins["weight"].sum(),
        ),
    ]


def _training_charts(workdir: Path, metric: str) -> list[Markup]:
    """Loss and accuracy by step; none without a log."""
    file = workdir / "metrics.jsonl"
    rows = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            # A run that was stopped while it wrote leaves half a line, the last one.
            break
    if not rows:
        return []
    validated = [row for row in rows if row.get(metric) is not None]
    best = checkpoints.best_step(validated, metric)
    charts = []
    for name in ("loss", "accuracy"):
        lines = []
        for part, style in (("train", "soft"), ("validation", "within points")):
            points = [
                (row["step"], row[f"{part}_{name}"])
                for row in rows
                if row.get(f"{part}_{name}") is not None
            ]
            if points:
                steps, values = zip(*points, strict=True)
                lines.append(Line(part, steps, values, style))
        highest = max((max(line.y) for line in lines), default=1.0)
        charts.append(
            panel(
                lines,
                label=f"{name.capitalize()} during training",
                x_label="step",
                y_label=name,
                x_ticks=ticks(0, rows[-1]["step"]),
                y_ticks=ticks(0, highest) if name == "loss" else (0, 0.5, 1),
                upright=best,
            )
        )
    return charts


def _is_generator(workdir: Path) -> bool:
    file = workdir / "config.json"
    try:
        return file.is_file() and "num_images" in json.loads(file.read_text())
    except ValueError:
        return False  # whoever reads it next says so


def _generator_page(workdir: Path) -> str:
    """The page of a generator's training, from its metrics.jsonl and samples/."""
    config = json.loads((workdir / "config.json").read_text())
    environment = json.loads((workdir / "environment.json").read_text())
    rows = read_metrics(workdir)
    measured = [row for row in rows if row.get("kid") is not None]
    best = checkpoints.best_step(measured, "kid")
    chosen = next((row for row in measured if row["step"] == best), None)
    answer = "Nothing was measured yet."
    if chosen is not None:
        answer = (
            f"The best network, of step {best} ({_count(chosen['images'])} images), is at a kernel "
            f"distance of {_number(chosen['kid'])} from the real faces; {chosen['precision']:.0%} "
            f"of its faces lie among the real ones, and {chosen['recall']:.0%} of the real ones "
            "among its faces."
        )
    images = {row["step"]: row["images"] for row in measured}
    grids = [
        (step, images[step], _as_uri(file.read_bytes(), "png"))
        for file in sorted((workdir / "samples").glob("*.png"), reverse=True)
        if (step := int(file.stem)) in images
    ]
    features = config["measure"]["features"]
    classes = schema.TASKS[config["task"]] if config["model"]["conditional"] else ()
    return _render(
        "generator.html",
        config=config,
        config_text=json.dumps(config, indent=2),
        environment=environment,
        answer=answer,
        saw=list(environment["datasets"]),
        features="their pixels" if features == "pixels" else f"features of the run {features}",
        classes=classes,
        names=GENERATOR_MEASURES,
        measured=measured,
        best=best,
        # The last one, the one before it, and so on by halves: a page is not a film.
        grids=[grids[i] for i in sorted({0, *(2**n - 1 for n in range(6))}) if i < len(grids)],
        charts=_generator_charts(rows, best),
    )


SHARES = ("share", "classes told apart")  # charts from 0 to 1


def _generator_charts(
    rows: Sequence[dict[str, Any]], best: int | None
) -> list[tuple[Markup, list[Line]]]:
    """Charts by step, each with its lines, for a legend."""
    charts = []
    for title, names in (
        ("loss", ("discriminator_loss", "generator_loss")),
        ("share", ("precision", "recall", "augment_p")),
        ("classes told apart", ("real_class_accuracy", "made_class_accuracy")),
        ("kernel distance", ("kid",)),
    ):
        lines = []
        for number, name in enumerate(names):
            points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                lines.append(Line(name.replace("_", " "), steps, values, f"c{number}"))
        if lines:
            highest = max(max(line.y) for line in lines)
            chart = panel(
                lines,
                label=f"{title.capitalize()} during training",
                x_label="step",
                y_label=title,
                x_ticks=ticks(0, rows[-1]["step"]),
                y_ticks=(0, 0.5, 1) if title in SHARES else ticks(0, highest),
                upright=best,
            )
            charts.append((chart, lines))
    return charts


def _galleries(
    workdir: Path, scored: dict[str, Any], data_dir: Path | None
) -> dict[str, dict[str, Any]]:
    """The faces of each plain table's errors and where the network looked.

    Writes workdir/explanations: <predictions file>.<rank>.jpg, the face that glows where the
    network looked, and <predictions file>.json, the maps as numbers.

    Returns:
      {predictions file: {"pictures": [{"face", "looked": data URIs}, or {} where there is no
      picture], "why": what is missing, or None}}.
    """
    environment = workdir / "environment.json"
    if data_dir is None and environment.is_file():
        recorded = json.loads(environment.read_text()).get("data_dir")
        data_dir = Path(recorded) if recorded else None
    found: dict[str, dict[str, Any]] = {}
    wanted: list[tuple[str, int, dict[str, Any], np.ndarray]] = []
    for one in scored["sets"]:
        if one["variant"]:
            continue
        name = predictions.file_name(one["dataset"], one["split"])
        found[name] = {"pictures": [{} for _ in one["errors"]], "why": None}
        if data_dir is None:
            found[name]["why"] = "the run does not say where its data are; name it with --data_dir"
            continue
        try:
            records = open_records(one["dataset"], one["split"], data_dir)
            rows = {str(key): row for row, key in enumerate(records.columns["record_id"])}
            for rank, error in enumerate(one["errors"]):
                if error["record_id"] in rows:
                    face = records.image(rows[error["record_id"]])
                    wanted.append((name, rank, error, face))
                else:
                    found[name]["why"] = "some of these records are no longer in the dataset"
        except InputError as error:
            found[name]["why"] = str(error)
    for name, rank, _, face in wanted:
        found[name]["pictures"][rank] = {"face": _data_uri(resized(face, THUMBNAIL))}
    if wanted:
        _add_looks(workdir, scored["classes"], wanted, found)
    return found


def _add_looks(
    workdir: Path,
    classes: Sequence[str],
    wanted: Sequence[tuple[str, int, dict[str, Any], np.ndarray]],
    found: dict[str, dict[str, Any]],
) -> None:
    """Adds "looked" to the pictures in `found` and writes workdir/explanations."""
    given = [classes.index(error["given"]) for _, _, error, _ in wanted]
    try:
        model = load(workdir)
    except InputError as error:
        for name, _, _, _ in wanted:
            found[name]["why"] = f"where the network looked is not known: {error}"
        return
    faces = np.stack([resized(face, model.image_size) for _, _, _, face in wanted])
    maps, probabilities = model.explain(faces, np.asarray(given))
    folder = workdir / EXPLANATIONS
    folder.mkdir(exist_ok=True)
    kept: dict[str, list[dict[str, Any]]] = {name: [] for name, _, _, _ in wanted}
    for name in kept:
        # What an earlier report left may be of errors that are none any more.
        for rank in range(1, results.WORST_ERRORS + 1):
            _picture_file(folder, name, rank).unlink(missing_ok=True)
    for (name, rank, error, face), heat, chances, answer in zip(
        wanted, maps, probabilities, given, strict=True
    ):
        if abs(chances[answer] - error["probability"]) > SAME_PROBABILITY:
            found[name]["why"] = (
                "the best checkpoint answers otherwise than these predictions say, so where it "
                "looked is left out; evaluate again"
            )
            continue
        picture = overlay(face, heat)
        found[name]["pictures"][rank]["looked"] = _data_uri(resized(picture, THUMBNAIL))
        _picture_file(folder, name, rank + 1).write_bytes(_jpeg(picture))
        kept[name].append(error | {"checkpoint": model.step, "map": heat.tolist()})
    for name, rows in kept.items():
        text = json.dumps(rows, indent=1) + "\n"
        (folder / name).with_suffix(".json").write_text(text)


def _picture_file(folder: Path, name: str, rank: int) -> Path:
    return folder / f"{name.removesuffix('.csv')}.{rank}.jpg"


def _jpeg(picture: np.ndarray) -> bytes:
    quality = [cv2.IMWRITE_JPEG_QUALITY, THUMBNAIL_QUALITY]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
    if not done:
        raise ValueError(f"could not encode a picture of shape {picture.shape}")
    return data.tobytes()


def _data_uri(picture: np.ndarray) -> str:
    return _as_uri(_jpeg(picture), "jpeg")


def _as_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


# A study


def _study_page(workdir: Path, scored: dict[str, Any]) -> str:
    try:
        return _render("study.html", **_study_values(workdir, scored))
    except (KeyError, jinja2.UndefinedError) as error:
        file = workdir / "results.json"
        raise InputError(
            f"'{file}' is not what this version's study writes (it lacks {error}); run "
            "`fer-jax study` again"
        ) from error


def _study_values(workdir: Path, scored: dict[str, Any]) -> dict[str, Any]:
    cells = {
        (cell["scenario"], cell["variant"], cell["dataset"], cell["split"]): cell
        for cell in scored["cells"]
    }
    variants = list(dict.fromkeys(["", *(cell["variant"] for cell in scored["cells"])]))
    rows = []
    for scenario in scored["scenarios"]:
        for variant in variants:
            of_row = [
                cells.get((scenario["name"], variant, one["dataset"], one["split"]))
                for one in scored["test_sets"]
            ]
            if any(of_row) or not variant:
                rows.append({"scenario": scenario, "variant": variant, "cells": of_row})
    warnings = list(dict.fromkeys(c["warning"] for c in scored["cells"] if c["warning"]))
    pages = {}
    for scenario in scored["scenarios"]:
        for run in scenario["runs"]:
            pages[run] = _page_of(workdir, run)
    largest = max(
        (
            abs(bound)
            for one in [*scored["differences"], *scored.get("over_sets", ())]
            for bound in [one["difference"], *(one["interval"] or ())]
            if bound is not None
        ),
        default=1.0,
    )
    return {
        "scored": scored,
        "rows": rows,
        "notes": {warning: _letters(number) for number, warning in enumerate(warnings)},
        "pages": pages,
        "reach": math.ceil(10 * largest) / 10 or 0.1,
        # The one that the page is about first.
        "measures": sorted(
            {one["metric"] for one in scored["differences"]},
            key=lambda metric: (metric != "balanced_accuracy", metric),
        ),
        "several_seeds": any(len(scenario["seeds"]) > 1 for scenario in scored["scenarios"]),
        "config": json.dumps(scored["reproduce"]["config"], indent=2),
    }


def _letters(number: int) -> str:
    """The mark of a note: a to z, then aa to az, ba and so on."""
    before, last = divmod(number, 26)
    return (_letters(before - 1) if before else "") + chr(ord("a") + last)


def _page_of(workdir: Path, run: str) -> str | None:
    """The address of a run's own page, relative to the study's; None if there is none."""
    page = Path(os.path.normpath(run)) / "report.html"
    inside = not page.is_absolute() and ".." not in page.parts
    return urllib.parse.quote(page.as_posix()) if inside and (workdir / page).is_file() else None


def main(argv: list[str]) -> None:
    """The verb `report`."""
    parser = OneLineParser(
        prog="fer-jax report",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of a scored run or a study")
    parser.add_argument("--data_dir", type=Path, help="default: where the run trained from")
    parser.add_argument(
        "--no_faces",
        action="store_true",
        help="list the most confident errors without their pictures",
    )
    arguments = parser.parse_args(argv)
    compilations.enable_compilation_cache()
    page = report(arguments.workdir, data_dir=arguments.data_dir, faces=not arguments.no_faces)
    print(page.resolve())
