"""The page and the figures of a study, from its results.json."""

import json
import math
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_jax import figures
from fer_jax.report.layout import data_uri, interval, number, render
from fer_jax.results import METRIC_NAMES, set_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FACES = "test_faces"
ONE_FRAME = "one_frame.png"  # beside the page, if there is one


def study_page(workdir: Path, scored: dict[str, Any], faces: bool = True) -> str:
    """Returns the HTML of a study's page, with or without faces of the test sets."""
    # The name alone, so that a path in results.json cannot lead out of the folder.
    strips = {
        set_name(one): workdir / FACES / Path(one.get("faces") or ".").name
        for one in scored["test_sets"]
    }
    warnings = list(dict.fromkeys(c["warning"] for c in scored["cells"] if c["warning"]))
    runs = [run for scenario in scored["scenarios"] for run in scenario["runs"]]
    ends = [
        abs(bound)
        for one in [*scored["differences"], *scored["over_sets"]]
        for bound in [one["difference"], *(one["interval"] or ())]
        if bound is not None
    ]
    return render(
        "study.html",
        scored=scored,
        rows=_rows(scored),
        strips={name: data_uri(file) for name, file in strips.items() if file.is_file()}
        if faces
        else {},
        one_frame=data_uri(workdir / ONE_FRAME)
        if faces and (workdir / ONE_FRAME).is_file()
        else None,
        within={
            (cell["scenario"], f"{cell['dataset']} {cell['split']}")
            for cell in scored["cells"]
            if cell["relation"] == "within"
        },
        notes={warning: _letters(number) for number, warning in enumerate(warnings)},
        pages={run: _page_of(workdir, run) for run in runs},
        reach=math.ceil(10 * max(ends, default=1.0)) / 10 or 0.1,
        # Balanced accuracy, which the page is about, comes first.
        measures=sorted(
            {one["metric"] for one in scored["differences"]},
            key=lambda metric: (metric != "balanced_accuracy", metric),
        ),
        several_seeds=any(len(scenario["seeds"]) > 1 for scenario in scored["scenarios"]),
        config=json.dumps(scored["reproduce"]["config"], indent=2),
    )


def _rows(scored: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row of the matrix for each scenario and variant, a cell or None for each set."""
    cells = {
        (cell["scenario"], cell["variant"], cell["dataset"], cell["split"]): cell
        for cell in scored["cells"]
    }
    variants = list(dict.fromkeys(["", *(cell["variant"] for cell in scored["cells"])]))
    rows = []
    for scenario in scored["scenarios"]:
        for variant in variants:
            cells_of_row = [
                cells.get((scenario["name"], variant, one["dataset"], one["split"]))
                for one in scored["test_sets"]
            ]
            if any(cells_of_row) or not variant:
                rows.append({"scenario": scenario, "variant": variant, "cells": cells_of_row})
    return rows


def _letters(number: int) -> str:
    """Returns the mark of a note: a to z, then aa to az, ba and so on."""
    before, last = divmod(number, 26)
    return (_letters(before - 1) if before else "") + chr(ord("a") + last)


def _page_of(workdir: Path, run: str) -> str | None:
    """Returns the URL of a run's page, relative to the study's, or None if it has none."""
    page = Path(os.path.normpath(run)) / "report.html"
    inside = not page.is_absolute() and ".." not in page.parts
    return urllib.parse.quote(page.as_posix()) if inside and (workdir / page).is_file() else None


def study_figures(scored: dict[str, Any]) -> dict[str, "Figure"]:
    """Returns {name: figure}: the matrix and the differences of each metric."""
    found = {}
    if any(not cell["empty"] for cell in scored["cells"]):
        found["matrix"] = _matrix(_rows(scored), scored["test_sets"])
    for metric in dict.fromkeys(one["metric"] for one in scored["differences"]):
        shown = [
            one
            for one in scored["differences"]
            if one["metric"] == metric and one["difference"] is not None
        ]
        if shown:
            name = METRIC_NAMES.get(metric, metric)
            found[f"differences.{metric}"] = figures.differences(
                [f"{one['scenario']}, {set_name(one)}" for one in shown],
                [one["difference"] for one in shown],
                [_defined(one["interval"]) for one in shown],
                f"Differences in {name} from the baseline {scored['baseline']}",
                f"difference in {name}",
            )
    return found


def _defined(bounds: list[float | None] | None) -> list[float] | None:
    found = [bound for bound in bounds or () if bound is not None]
    return found if len(found) == 2 else None


def overview(scored: dict[str, Any], pictures: Sequence[np.ndarray]) -> "Figure":
    """Returns the matrix with faces of the test sets, uint8 RGB [height, width, 3], above it."""
    return _matrix(_rows(scored), scored["test_sets"], pictures)


def _matrix(
    rows: list[dict[str, Any]],
    test_sets: list[dict[str, Any]],
    pictures: Sequence[np.ndarray] = (),
) -> "Figure":
    shades = np.full((len(rows), len(test_sets)), np.nan)
    texts = [["n/a"] * len(test_sets) for _ in rows]
    for (row, column), _ in np.ndenumerate(shades):
        cell = rows[row]["cells"][column]
        if cell and not cell["empty"]:
            one = cell["metrics"]["balanced_accuracy"]
            texts[row][column] = f"{number(one['value'])}\n{interval(one['interval'])}"
            chance = 1 / max(test_sets[column]["classes_present"], 1)
            if one["value"] is not None and chance < 1:
                shades[row, column] = max((one["value"] - chance) / (1 - chance), 0)
    return figures.heatmap(
        shades,
        texts,
        "Balanced accuracy by training scenario and test set",
        rows=[f"{row['scenario']['name']} {row['variant']}".strip() for row in rows],
        columns=list(map(set_name, test_sets)),
        x_label="test set",
        y_label="training scenario",
        pictures=pictures,
    )
