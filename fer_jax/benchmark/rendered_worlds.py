"""How often the demo's statements are right: over many rendered worlds, where the truth is known.

Each world is the demo without its generator: it films other people, trains the baseline and
+YouTube, and scores both on the test sets and on fresh people, who are the same for all worlds. In
a null world all platforms look like the laboratory.
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
        seeds = range(FIRST_SEED, FIRST_SEED + options.worlds)
        found = [run_world(Path(options.workdir), seed, options.people, null) for seed in seeds]
        yield from rows("null worlds" if null else "worlds", found)


def run_world(workdir: Path, seed: int, people: int, null: bool) -> dict[str, Any]:
    """Returns the summary of a world, which is run unless its results are in the workdir.

    All worlds of a kind share the fresh people, on whom the true scores are measured.
    """
    kind = "null" if null else "world"
    world = workdir / f"{kind}_{seed}"
    found = results.read(world)
    if found is None:
        shared = workdir / f"fresh_{kind}"
        for platform in demo.PLATFORM_OF.values():
            demo.build_fresh(f"rendered/{platform}", people, shared, null)
        (world / "data").mkdir(parents=True, exist_ok=True)
        link = world / "data" / "rendered"
        link.unlink(missing_ok=True)
        link.symlink_to((shared / "rendered").resolve())
        found, _ = demo.run(world, plan(people), seed, null=null)
    for large in ("sources", "data"):
        shutil.rmtree(world / large, ignore_errors=True)
    return summary(found)


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
