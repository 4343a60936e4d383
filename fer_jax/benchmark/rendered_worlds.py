"""How often the demo's statements are right: over many rendered worlds, where the truth is known.

Each world is the demo without its generator: it films other people, trains the baseline and
+YouTube, and scores both on the test sets and on fresh people, who are the same for all worlds. In
a null world all platforms look like the laboratory.
"""

import argparse
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import demo, storage
from fer_jax.benchmark.benchmark import Row, single
from fer_jax.config import load_config
from fer_jax.study.distances import METRIC
from fer_jax.study.scenarios import check_study

UNSEEN, ADDED = "calls/folds", "+YouTube"
DIFFERENCE = f"{ADDED} - baseline"
KINDS = ("world", "null")
TABLE = "worlds.csv"
COLUMNS = ("kind", "seed", "what", "dataset", "estimate", "low", "high", "truth")
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
    """Runs the worlds that are not in WORKDIR/worlds.csv yet, and counts over all of them."""
    for kind in KINDS:
        seeds = range(FIRST_SEED, FIRST_SEED + options.worlds)
        found = [run_world(Path(options.workdir), kind, seed, options.people) for seed in seeds]
        yield from rows(kind, found)


def run_world(workdir: Path, kind: str, seed: int, people: int) -> list[dict[str, Any]]:
    """Returns the `estimates` of a world, which is run unless they are in the workdir's table.

    All worlds of a kind share the fresh people, on whom the true scores are measured.
    """
    table = workdir / TABLE
    known = [
        {name: _value(cell) for name, cell in row.items()}
        for row in storage.read_table(table, COLUMNS)
        if (row["kind"], row["seed"]) == (kind, str(seed))
    ]
    if known:
        return known
    null, world, shared = kind == "null", workdir / f"{kind}_{seed}", workdir / f"fresh_{kind}"
    for platform in demo.PLATFORM_OF.values():
        demo.build_fresh(f"rendered/{platform}", people, shared, null)
    (world / "data").mkdir(parents=True, exist_ok=True)
    link = world / "data" / "rendered"
    link.unlink(missing_ok=True)
    link.symlink_to((shared / "rendered").resolve())
    study, _ = demo.run(world, plan(people), seed, null=null)
    found = [{"kind": kind, "seed": seed} | one for one in estimates(study)]
    storage.append_table(table, COLUMNS, found)
    shutil.rmtree(world)
    return found


def _value(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell


def estimates(study: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields what a world's study says of each score, and of +YouTube's differences, and the truth.

    "estimate" with its interval, "low" and "high", and "truth", on a "dataset"; "what" is a
    scenario's name, or `DIFFERENCE`.
    """
    true = {}
    for cell in study["cells"]:
        if "truth" in cell:
            true[cell["scenario"], cell["dataset"]] = cell["truth"]["value"]
            yield _estimate(cell["scenario"], cell, cell["metrics"][METRIC], cell["truth"]["value"])
    for one in study["differences"]:
        place = one["dataset"]
        if (one["scenario"], one["metric"]) == (ADDED, METRIC) and (ADDED, place) in true:
            truth = true[ADDED, place] - true["baseline", place]
            yield _estimate(DIFFERENCE, one, one | {"value": one["difference"]}, truth)


def _estimate(
    what: str, place: Mapping[str, Any], said: Mapping[str, Any], truth: float
) -> dict[str, Any]:
    # A score without an interval counts as one whose interval misses the truth.
    low, high = (math.nan if end is None else end for end in said["interval"])
    values = {"estimate": said["value"], "low": low, "high": high, "truth": truth}
    return {"what": what, "dataset": place["dataset"]} | values


def rows(kind: str, worlds: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[Row]:
    """Returns counts over the worlds of a kind, and the mean differences on the unseen platform."""
    scores = [one for world in worlds for one in world if one["what"] != DIFFERENCE]
    unseen = [
        one
        for world in worlds
        for one in world
        if (one["what"], one["dataset"]) == (DIFFERENCE, UNSEEN)
    ]
    calls = [one for one in scores if one["dataset"] == UNSEEN]
    for name, among in (
        ("all scores", scores),
        ("scores on the unseen platform", calls),
        ("+YouTube's differences there", unseen),
    ):
        covered = sum(one["low"] <= one["truth"] <= one["high"] for one in among)
        yield single(f"{kind}: intervals that cover the truth, of {len(among)} {name}", covered, "")
    better = sum(one["estimate"] > 0 for one in unseen)
    claimed = sum(not one["low"] <= 0 <= one["high"] for one in unseen)
    many = f"{kind}: of {len(unseen)} differences there"
    yield single(f"{many}, above 0", better, "")
    yield single(f"{many}, an interval that excludes 0", claimed, "")
    for name, field in (("as measured", "estimate"), ("in truth", "truth")):
        mean = float(np.mean([one[field] for one in unseen]))
        yield single(f"{kind}: mean difference there, {name}", mean, "balanced accuracy")
