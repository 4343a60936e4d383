"""The page and the figures of a study, from its results.json."""

import json
import math
import os
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from fer_jax import figures
from fer_jax.errors import InputError
from fer_jax.report.layout import METRIC_NAMES, interval, number, render

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def study_page(workdir: Path, scored: dict[str, Any]) -> str:
    """Returns the HTML of a study's page.

    Raises:
      InputError: results.json lacks something, as from another version.
    """
    try:
        return render("study.html", **_study_values(workdir, scored))
    except (KeyError, jinja2.UndefinedError) as error:
        file = workdir / "results.json"
        raise InputError(
            f"'{file}' is of another version: it lacks {error}; rerun `fer-jax study`"
        ) from error


def _study_values(workdir: Path, scored: dict[str, Any]) -> dict[str, Any]:
    rows = _rows(scored)
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
        # Balanced accuracy, which the page is about, comes first.
        "measures": sorted(
            {one["metric"] for one in scored["differences"]},
            key=lambda metric: (metric != "balanced_accuracy", metric),
        ),
        "several_seeds": any(len(scenario["seeds"]) > 1 for scenario in scored["scenarios"]),
        "config": json.dumps(scored["reproduce"]["config"], indent=2),
    }


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
                [f"{one['scenario']}, {one['dataset']} {one['split']}" for one in shown],
                [one["difference"] for one in shown],
                [_defined(one["interval"]) for one in shown],
                f"Differences in {name} from the baseline {scored['baseline']}",
                f"difference in {name}",
            )
    return found


def _defined(bounds: list[float | None] | None) -> list[float] | None:
    found = [bound for bound in bounds or () if bound is not None]
    return found if len(found) == 2 else None


def _matrix(rows: list[dict[str, Any]], test_sets: list[dict[str, Any]]) -> "Figure":
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
        columns=[f"{one['dataset']} {one['split']}" for one in test_sets],
        x_label="test set",
        y_label="training scenario",
    )
