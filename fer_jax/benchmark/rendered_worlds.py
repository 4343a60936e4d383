"""How often the demo's statements are right: over many rendered worlds, where the truth is known.

Each world is the demo without its generator: it films other people, trains the baseline and
+YouTube, and scores both on the test sets and on fresh people. In a null world all platforms look
like the laboratory.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import demo, results
from fer_jax.benchmark.benchmark import Row, single
from fer_jax.config import load_config
from fer_jax.study.distances import METRIC
from fer_jax.study.scenarios import check_study

UNSEEN, ADDED = "calls/folds", "+YouTube"
# Worlds of smaller seeds were looked at while the platforms were designed.
FIRST_SEED = 5000


def plan(fresh: int) -> demo.Plan:
    """Returns the demo's plan without synthetic faces."""
    config = load_config(str(demo.CONFIG), check_study)
    kept = ("baseline", ADDED)
    changes = {
        "scenarios": tuple(one for one in config.scenarios if one["name"] in kept),
        "test_sets": tuple(one for one in config.test_sets if one != "synthetic/grouped"),
    }
    return demo.WHOLE._replace(synthetic=0, fresh=fresh, changes=changes)


def measure_worlds(options: argparse.Namespace) -> Iterator[Row]:
    """Runs the worlds that are not in the workdir yet, and counts over all of them."""
    for null in (False, True):
        kind = "null worlds" if null else "worlds"
        found = []
        for seed in range(FIRST_SEED, FIRST_SEED + options.worlds):
            workdir = Path(options.workdir, f"{'null' if null else 'world'}_{seed}")
            if results.read(workdir) is None:
                demo.run(workdir, plan(options.people), seed, null=null)
            for large in ("sources", "data"):
                shutil.rmtree(workdir / large, ignore_errors=True)
            known = results.read(workdir)
            assert known is not None  # it was written above
            found.append(summary(known))
        yield from rows(kind, found)


def summary(study: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a world's study says and whether it is true.

    "covered" and "cells" count the scores whose interval covers the true one; "improves": whether
    the true score of +YouTube on the unseen platform is above the baseline's; "claims": whether
    the interval of their difference excludes 0; "difference" and "truth" of it.
    """
    true = {
        (cell["scenario"], cell["dataset"]): cell["truth"]
        for cell in study["cells"]
        if "truth" in cell
    }
    difference = next(
        one
        for one in study["differences"]
        if (one["scenario"], one["dataset"], one["metric"]) == (ADDED, UNSEEN, METRIC)
    )
    low, high = difference["interval"]
    truth = true[ADDED, UNSEEN]["value"] - true["baseline", UNSEEN]["value"]
    return {
        "cells": len(true),
        "covered": sum(one["covered"] for one in true.values()),
        "covers": low <= truth <= high,
        "improves": difference["difference"] > 0,
        "claims": not low <= 0 <= high,
        "difference": difference["difference"],
        "truth": truth,
    }


def rows(kind: str, found: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Returns counts over worlds of a kind, and the mean differences."""
    many = f"of {len(found)} {kind}"
    cells = sum(one["cells"] for one in found)
    covered = sum(one["covered"] for one in found)
    yield single(f"{kind}: scores whose interval covers the true one, of {cells}", covered, "")
    for key, meaning in (
        ("covers", "the interval of +YouTube's difference on the unseen platform covers the truth"),
        ("improves", "+YouTube scores higher than the baseline on the unseen platform"),
        ("claims", "the interval of that difference excludes 0"),
    ):
        yield single(f"{many}: {meaning}", sum(one[key] for one in found), "worlds")
    for key, meaning in (("difference", "as measured"), ("truth", "in truth")):
        mean = float(np.mean([one[key] for one in found]))
        yield single(f"{kind}: mean difference of +YouTube {meaning}", mean, "balanced accuracy")
