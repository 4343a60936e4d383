"""Test whether one run, or one config over several seeds, is better than another.

Name one run on each side to compare two models, several runs that differ in their seeds to compare
configs. All are compared on the images that their predictions have in common.
"""

# Both sides score the same images in the same draws of whole clusters, so the variance that the
# images have in common cancels. Where seeds are compared, a draw takes seeds as well as clusters
# (Owen 2007 for such crossed draws, which are a little conservative); the degrees of freedom are
# those of Welch and Satterthwaite over clusters and seeds.

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import checkpoints, results, storage
from fer_jax.config import OneLineParser, output_path, read_config
from fer_jax.errors import InputError
from fer_jax.evaluation import bootstrap, calibration, predictions, relations, run_scores, scoring
from fer_jax.results import interval, number, p_value, set_name

# What must be the same of an image on both sides.
DESCRIPTION = ("label", "subject_id", "clip_id")
ROUNDING_METRICS = ("accuracy", "macro_f1", "ece")  # of a network in int8 beside float32
ROUNDING_COLUMNS = ["", "float32", "int8", "change", "95 %"]


def compare(
    runs_a: Sequence[Path],
    runs_b: Sequence[Path],
    *,
    num_draws: int = bootstrap.DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares the predictions tables that all runs have.

    The runs of a side are workdirs, one or, of a recipe with several seeds, several on each side.
    Returns {"a", "b": workdirs, "seeds": whether they were resampled, "draws", "copies": whether
    both sides have the same checkpoint, "steps": {workdir: of its checkpoint, None if unknown},
    "leaks": {workdir: lines on leaks between its data and these sets}, "sets": [{"dataset",
    "split", "variant", "relation" (from `relations.of_run`, None if it differs between the runs),
    and what `compare_on` returns, with "p_corrected" in each of the "metrics": by
    `bootstrap.correct` over the sets of this variant}], "left_out": {table: why}}. Raises
    InputError for a workdir without predictions, no table in common, one run against several, two
    copies of one run on a side, or tables of other images, other labels or another task.
    """
    if (len(runs_a) > 1) != (len(runs_b) > 1):
        raise InputError(
            f"{len(runs_a)} against {len(runs_b)} runs: one run does not show how much seeds "
            "differ; name one run on each side, or several on each"
        )
    tables, selected_on, made_by = {}, {}, {}
    for run in (*runs_a, *runs_b):
        config, made_by[run] = read_config(run), run_scores.evaluated_checkpoint(run)
        tables[run] = {file.name for file in (run / "predictions").glob("*.csv")}
        if not tables[run]:
            raise InputError(f"'{run}' has no predictions; run `fer-jax evaluate` first")
        validation = calibration.validation_files(run, config)
        selected_on[run] = set().union(*map(predictions.read_record_ids, validation))
    copies = _find_copies(runs_a, runs_b)
    in_all = set.intersection(*tables.values())
    tests, left_out = [], {}
    for name in sorted(set.union(*tables.values())):
        missing = ", ".join(str(run) for run in tables if name not in tables[run])
        files = {run: run / "predictions" / name for run in tables if name in tables[run]}
        records = predictions.read_record_ids(next(iter(files.values())))
        others = [
            str(run)
            for run, file in files.items()
            if run_scores.checkpoint_of(file) != made_by[run]
        ]
        chosen = [str(run) for run in tables if not records.isdisjoint(selected_on[run])]
        if chosen:
            were = "were" if len(chosen) > 1 else "was"
            left_out[name] = f"{', '.join(chosen)} {were} selected on images of it"
        elif missing:
            left_out[name] = f"not in {missing}"
        elif others:
            left_out[name] = (
                f"{', '.join(others)} predicted it with another checkpoint than the rest"
            )
        else:
            tests.append(name)
    if not tests:
        raise InputError(
            "the runs have no test set's predictions in common; evaluate them on the same sets"
            if not in_all
            else f"no test set is left to compare: {'; '.join(map(': '.join, left_out.items()))}"
        )
    sets, estimates = [], []
    for name in tests:
        one, estimated = _compare_set(name, runs_a, runs_b, num_draws=num_draws, seed=seed)
        sets.append(one)
        estimates.append(estimated)
    # A variant is another model on the same sets, so its p-values are corrected separately.
    for variant in {one["variant"] for one in sets}:
        own = [index for index, one in enumerate(sets) if one["variant"] == variant]
        for metric in bootstrap.SCALARS:
            corrected = bootstrap.correct([estimates[index][metric] for index in own])
            for index, p in zip(own, corrected, strict=True):
                sets[index]["metrics"][metric]["p_corrected"] = p
    plain = [name for name, one in zip(tests, sets, strict=True) if not one["variant"]]
    return {
        "a": [str(run) for run in runs_a],
        "b": [str(run) for run in runs_b],
        "seeds": len(runs_a) > 1,
        "draws": num_draws,
        "copies": copies,
        "leaks": {str(run): run_scores.leak_notes(run, plain) for run in made_by},
        "steps": {str(run): step for run, (step, _) in made_by.items()},
        "sets": sets,
        "left_out": left_out,
    }


def _find_copies(runs_a: Sequence[Path], runs_b: Sequence[Path]) -> bool:
    """Returns whether both sides have a checkpoint in common; refuses one that a side has twice."""

    def checkpoint(run: Path) -> str:
        last = max(checkpoints.finished_steps(run), default=0)
        return checkpoints.checksum(run, last) or str(run.resolve())

    sides: list[dict[str, Path]] = [{}, {}]
    for first, side in zip(sides, (runs_a, runs_b), strict=True):
        for run in side:
            checksum = checkpoint(run)
            if checksum in first:
                raise InputError(
                    f"'{run}' and '{first[checksum]}' on one side have the same checkpoint; name "
                    "each seed's run once"
                )
            first[checksum] = run
    return not sides[0].keys().isdisjoint(sides[1])


def _compare_set(
    name: str, runs_a: Sequence[Path], runs_b: Sequence[Path], *, num_draws: int, seed: int
) -> tuple[dict[str, Any], dict[str, bootstrap.Estimate]]:
    files = [run / "predictions" / name for run in (*runs_a, *runs_b)]
    table, classes = predictions.read(files[0])
    predictors = [table["probabilities"]]
    for file in files[1:]:
        other, _ = predictions.read(file, classes)
        predictors.append(other["probabilities"][same_images(table, other, files[0], file)])
    if not (table["label"] >= 0).any():
        raise InputError(f"{files[0]}: no image has a label")
    side_a, side_b = predictors[: len(runs_a)], predictors[len(runs_a) :]
    compared, estimates = compare_on(table, side_a, side_b, num_draws=num_draws, seed=seed)
    related = {relations.of_run(run, classes)(table) for run in (*runs_a, *runs_b)}
    about = {"relation": related.pop() if len(related) == 1 else None}
    return predictions.description(files[0], table) | about | compared, estimates


def compare_on(
    table: predictions.Table,
    side_a: Sequence[np.ndarray],
    side_b: Sequence[np.ndarray],
    *,
    num_draws: int = bootstrap.DRAWS,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, bootstrap.Estimate]]:
    """Compares two groups of runs on the labelled images of a table.

    The sides are those of `compare_predictors`; the table's own probabilities are not read. Returns
    {"n", "n_subjects", "n_clips", "n_clusters", "effective_clusters", "cluster": what was
    resampled, "metrics": {metric of `bootstrap.SCALARS`: {"a", "b": means over the seeds,
    "difference": a - b, "interval", "p", "detectable": the smallest difference that this set shows
    with a power of 0.8}}, "mcnemar_p": of the exact test whether two models are right on as many
    images; None where images are not independent, or of several seeds}, and the differences that
    "metrics" describe.
    """
    known = table["label"] >= 0
    table = predictions.take(table, known)
    of = bootstrap.sample_table(table, side_a[0].shape[1])
    a, b = ([probabilities[known] for probabilities in side] for side in (side_a, side_b))
    metrics, estimates = compare_predictors(of, a, b, num_draws=num_draws, seed=seed)
    only = None
    alone = of.kind in ("image", "near-duplicate group") and len(of.scale) == len(of.labels)
    if alone and len(a) == len(b) == 1:
        right = [one.argmax(axis=1) == table["label"] for one in (a[0], b[0])]
        only = [int((first & ~second).sum()) for first, second in (right, right[::-1])]
    found = predictions.sizes(table) | of.describe() | {"metrics": metrics}
    found["mcnemar_p"] = only and _exact_p(*only)
    return found, estimates


def _exact_p(only_a: int, only_b: int) -> float:
    """Returns McNemar's exact p-value, of the images on which one model alone is right."""
    from scipy import stats  # half a second, which other comparisons do not need

    both = only_a + only_b
    return float(stats.binomtest(only_a, both).pvalue) if both else 1.0


def same_images(
    table: predictions.Table, other: predictions.Table, file: Path, other_file: Path
) -> np.ndarray:
    """Returns the row of `other` for each row of `table`, int64 [n]; InputError if they differ."""
    order, other_order = np.argsort(table["record_id"]), np.argsort(other["record_id"])
    here, there = table["record_id"][order], other["record_id"][other_order]
    if not np.array_equal(here, there):
        differing = sorted(set(here.tolist()) ^ set(there.tolist()))
        raise InputError(
            f"{file} and {other_file} are about different images ({len(differing)} are in only "
            f"one, such as '{differing[0]}'); evaluate both runs on the same data"
        )
    rows = np.empty(len(order), np.int64)
    rows[order] = other_order
    for column in DESCRIPTION:
        differing = np.flatnonzero(table[column] != other[column][rows])
        if len(differing):
            raise InputError(
                f"{file} and {other_file} differ in the {column} of "
                f"'{table['record_id'][differing[0]]}'; evaluate both runs on the same data"
            )
    return rows


def compare_predictors(
    of: bootstrap.Sample,
    side_a: Sequence[np.ndarray],
    side_b: Sequence[np.ndarray],
    *,
    num_draws: int = bootstrap.DRAWS,
    seed: int = 0,
) -> tuple[dict[str, dict[str, Any]], dict[str, bootstrap.Estimate]]:
    """Compares two groups of runs on the same images.

    A side is the probabilities, float64 [n, k], of one predictor or of one for each seed. Returns
    the "metrics" of `compare_on`, and the differences that they describe.
    """
    resampled = bootstrap.resample(of, [*side_a, *side_b], num_draws=num_draws, seed=seed)
    count, total = len(side_a), len(side_a) + len(side_b)
    metrics, estimates = {}, {}
    for name in bootstrap.SCALARS:
        a = bootstrap.estimate(resampled, name, range(count), "a")
        b = bootstrap.estimate(resampled, name, range(count, total), "b")
        estimates[name] = bootstrap.subtract(a, b)
        metrics[name] = {"a": a.value, "b": b.value} | bootstrap.difference(estimates[name])
        metrics[name]["detectable"] = bootstrap.detectable(estimates[name])
    return metrics, estimates


def table(compared: dict[str, Any], metric: str) -> str:
    """Lays out one metric's comparison as a text table, with a verdict and the caveats."""
    columns = ["", "set", "images", "clips", "subjects", "A", "B", "A - B", "95 %", "p"]
    rows, verdicts, notes = [[*columns, "p corrected"]], [], []
    for one in compared["sets"]:
        found = one["metrics"][metric]
        rows.append(
            [
                (one["relation"] or "mixed").replace("_", " "),
                set_name(one),
                str(one["n"]),
                str(one["n_clips"] or "n/a"),
                str(one["n_subjects"] or "n/a"),
                number(found["a"]),
                number(found["b"]),
                number(found["difference"], signed=True),
                interval(found["interval"], signed=True),
                *(p_value(found[p]) for p in ("p", "p_corrected")),
            ]
        )
        verdicts.append(f"{set_name(one)}: {_verdict(one, metric)}")
        caveats = scoring.interval_caveats(one, found["interval"])
        notes += [f"{set_name(one)}: {caveat}" for caveat in caveats]
    if compared["copies"]:
        notes.append("A and B have a checkpoint in common: copies of one run")
    notes += [f"{run}: {line}" for run, lines in compared["leaks"].items() for line in lines]
    notes += [f"{name} left out: {reason}" for name, reason in compared["left_out"].items()]
    notes.append("p corrected: for the number of sets, of each variant by itself")
    return "\n".join([results.align(rows, left=(0, 1)), *verdicts, *notes])


def _verdict(one: dict[str, Any], metric: str) -> str:
    """Says in a sentence which side is better, or how large a difference would have shown."""
    found, name = one["metrics"][metric], results.METRIC_NAMES[metric]
    if math.isnan(found["p"]):
        return "no verdict, because there is no interval"
    if found["p_corrected"] < 1 - bootstrap.LEVEL:
        first = (found["difference"] > 0) != (metric in results.LOWER_IS_BETTER)
        verdict = f"{'A' if first else 'B'} has the better {name}"
    else:
        verdict = f"no significant difference in {name}"
        if found["detectable"] > bootstrap.ROUNDING:
            verdict += (
                f"; this set would show one of {number(found['detectable'])} with a power "
                f"of {bootstrap.POWER:.0%}"
            )
    if metric == "accuracy" and one["mcnemar_p"] is not None:
        verdict += f"; McNemar's exact test: p = {p_value(one['mcnemar_p'])}"
    return verdict


def rounding_rows(compared: dict[str, Any]) -> list[list[str]]:
    """Lists what int8 changed, as rows of `ROUNDING_COLUMNS`; side a is int8, side b float32."""
    rows = []
    for name in ROUNDING_METRICS:
        found = compared["metrics"][name]
        values = [number(found["b"]), number(found["a"]), number(found["difference"], signed=True)]
        rows.append([name, *values, interval(found["interval"], signed=True)])
    return rows


def main(argv: list[str]) -> None:
    """Runs the verb `compare`."""
    parser = OneLineParser("fer-jax compare", __doc__)
    parser.add_argument("a", metavar="RUN_A[,RUN_A2...]", help="workdirs of one side")
    parser.add_argument("b", metavar="RUN_B[,RUN_B2...]", help="workdirs of the other side")
    parser.add_argument(
        "--metric", default="balanced_accuracy", choices=bootstrap.SCALARS, help="of the table"
    )
    parser.add_argument("--draws", type=int, default=bootstrap.DRAWS)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--output", type=output_path, help="a JSON file for all metrics")
    arguments = parser.parse_args(argv)
    if arguments.draws < 100:
        raise InputError(f"--draws must be at least 100, got {arguments.draws}")
    if arguments.output and not arguments.output.parent.is_dir():
        raise InputError(f"--output: there is no folder '{arguments.output.parent}'")
    sides = []
    for text in (arguments.a, arguments.b):
        sides.append([Path(name) for name in text.split(",") if name])
        if not sides[-1]:
            raise InputError(f"'{text}' names no run")
    compared = compare(*sides, num_draws=arguments.draws, seed=arguments.seed)
    if arguments.output:
        text = json.dumps(results.plain(compared), indent=2) + "\n"
        storage.write_atomically(arguments.output, text)
    for letter, side in zip("AB", sides, strict=True):
        named = [f"{run} (step {compared['steps'][str(run)] or 'n/a'})" for run in side]
        print(f"{letter}: {', '.join(named)}")
    drawn = "whole clusters and seeds" if compared["seeds"] else "whole clusters; two fixed models"
    print(f"{arguments.metric}, {arguments.draws} draws of {drawn}")
    print(table(compared, arguments.metric))
