"""The verb `compare`: is one run better than another, or one recipe than another?

Both sides score the same images in the same draws of whole clusters, so what the images have in
common cancels. One run on each side compares two fixed models. Several runs on each side, which
differ in their seeds, compare recipes: a draw then takes seeds as well as clusters (Owen 2007
for such crossed draws, which are a little conservative), and the degrees of freedom are those
of Welch and Satterthwaite over clusters and seeds.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.config import OneLineParser, read_config
from fer_jax.errors import InputError
from fer_jax.evaluation import bootstrap, metrics, predictions, results

# What must be the same of an image on both sides.
DESCRIPTION = ("label", "subject_id", "clip_id")
ROUNDING_METRICS = (
    "accuracy",
    "macro_f1",
    "ece",
)  # of a network in int8 beside the same in float32
ROUNDING_COLUMNS = ["", "float32", "int8", "change", "95 %"]


def compare(
    runs_a: Sequence[Path],
    runs_b: Sequence[Path],
    *,
    num_draws: int = bootstrap.DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares the predictions tables that all runs have.

    Args:
      runs_a: workdirs of one side; several are the same recipe with other seeds.
      runs_b: of the other side; one where runs_a is one, else several.
      num_draws: of clusters, and of seeds.
      seed: of the draws.

    Returns:
      {"a", "b": workdirs, "seeds": whether they were resampled, "draws", "sets": [{"dataset",
      "split", "variant", "n", "n_subjects", "n_clips", "n_clusters", "effective_clusters",
      "cluster", "metrics": {name: {"a", "b": means over the runs, "difference": a - b,
      "interval", "p", "p_holm": corrected for the number of sets of this variant}}}],
      "left_out": {table: why}}.

    Raises:
      InputError: a workdir without predictions, no table in common, one run against several,
        or tables of other images, other labels or another task.
    """
    if (len(runs_a) > 1) != (len(runs_b) > 1):
        raise InputError(
            f"{len(runs_a)} against {len(runs_b)} runs: how far seeds spread is not known from "
            "one; name one run on each side, or several on each"
        )
    runs = [*runs_a, *runs_b]
    for side in (runs_a, runs_b):
        twice = [str(run) for run in side if list(side).count(run) > 1]
        if twice:
            raise InputError(f"'{twice[0]}' is named twice on one side; its seed counts once")
    tables = {run: _table_names(run) for run in runs}
    selected_on = {run: _validation_names(run) for run in runs}
    everywhere = set.intersection(*tables.values())
    tests = sorted(everywhere - set.union(*selected_on.values()))
    if not tests:
        raise InputError(
            "the runs have no test set's predictions in common; evaluate them on the same sets"
        )
    left_out = {}
    for name in sorted(set.union(*tables.values()) - set(tests)):
        missing = [str(run) for run in runs if name not in tables[run]]
        chosen = [str(run) for run in runs if name in selected_on[run]]
        left_out[name] = (
            f"not in {', '.join(missing)}"
            if missing
            else f"{', '.join(dict.fromkeys(chosen))} was selected on it"
        )
    sets = [_compare_set(name, runs_a, runs_b, num_draws=num_draws, seed=seed) for name in tests]
    # A variant is another model on the same sets: it is corrected for by itself.
    for variant in {one["variant"] for one in sets}:
        of_variant = [one for one in sets if one["variant"] == variant]
        for metric in bootstrap.SCALARS:
            corrected = bootstrap.holm([one["metrics"][metric]["p"] for one in of_variant])
            for one, p in zip(of_variant, corrected, strict=True):
                one["metrics"][metric]["p_holm"] = p
    return {
        "a": [str(run) for run in runs_a],
        "b": [str(run) for run in runs_b],
        "seeds": len(runs_a) > 1,
        "draws": num_draws,
        "sets": sets,
        "left_out": left_out,
    }


def _table_names(run: Path) -> set[str]:
    names = {file.name for file in (run / "predictions").glob("*.csv")}
    if not names:
        raise InputError(f"'{run}' has no predictions; run `fer-jax evaluate` first")
    return names


def _validation_names(run: Path) -> set[str]:
    return {file.name for file in results.validation_files(run, read_config(run))}


def _compare_set(
    name: str, runs_a: Sequence[Path], runs_b: Sequence[Path], *, num_draws: int, seed: int
) -> dict[str, Any]:
    files = [run / "predictions" / name for run in (*runs_a, *runs_b)]
    (table, classes), *others = [predictions.read(file) for file in files]
    sides = [table["probabilities"]]
    for file, (other, of_other) in zip(files[1:], others, strict=True):
        if of_other != classes:
            raise InputError(
                f"{file} is about {', '.join(of_other)} and {files[0]} about {', '.join(classes)}"
            )
        sides.append(other["probabilities"][same_images(table, other, files[0], file)])
    if not (table["label"] >= 0).any():
        raise InputError(f"{files[0]}: no image has a label")
    dataset, split = str(table["dataset"][0]), str(table["split"][0])
    plain = predictions.file_name(dataset, split).removesuffix(".csv")
    return {
        "dataset": dataset,
        "split": split,
        "variant": name.removesuffix(".csv").removeprefix(plain).removeprefix("."),
    } | compare_on(
        table, sides[: len(runs_a)], sides[len(runs_a) :], num_draws=num_draws, seed=seed
    )


def compare_on(
    table: predictions.Table,
    side_a: Sequence[np.ndarray],
    side_b: Sequence[np.ndarray],
    *,
    num_draws: int = bootstrap.DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """The differences of two sides on the labelled images of a table.

    Args:
      table: says which images; its own probabilities are not read.
      side_a: as for `compare_predictors`, for every image of the table.
      side_b: likewise.
      num_draws: of clusters, and of seeds.
      seed: of the draws.

    Returns:
      {"n", "n_subjects", "n_clips", "n_clusters", "effective_clusters", "cluster": what was
      resampled, "metrics": what `compare_predictors` returns}.
    """
    known = table["label"] >= 0
    table = {column: values[known] for column, values in table.items()}
    cluster, kind = bootstrap.clusters(table)
    of = bootstrap.sample(table["label"], cluster, side_a[0].shape[1])
    degrees, _ = of.degrees()
    return {
        "n": len(table["label"]),
        "n_subjects": len(set(table["subject_id"]) - {""}),
        "n_clips": len(set(table["clip_id"]) - {""}),
        "n_clusters": len(of.scale),
        "effective_clusters": degrees + 1,
        "cluster": kind,
        "metrics": compare_predictors(
            of,
            [probabilities[known] for probabilities in side_a],
            [probabilities[known] for probabilities in side_b],
            num_draws=num_draws,
            seed=seed,
        ),
    }


def same_images(
    table: predictions.Table, other: predictions.Table, file: Path, other_file: Path
) -> np.ndarray:
    """int64 [n]: the row of `other` for each row of `table`.

    Raises:
      InputError: they are not about the same images, or describe one differently.
    """
    order, other_order = np.argsort(table["record_id"]), np.argsort(other["record_id"])
    here, there = table["record_id"][order], other["record_id"][other_order]
    if not np.array_equal(here, there):
        strangers = sorted(set(here.tolist()) ^ set(there.tolist()))
        raise InputError(
            f"{file} and {other_file} are about other images ({len(strangers)} are in only one, "
            f"such as '{strangers[0]}'); evaluate both runs on the same data"
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
) -> dict[str, dict[str, Any]]:
    """The differences of two sides on the same images.

    Args:
      of: the images.
      side_a: probabilities, float64 [n, k]: one predictor, or one for each seed.
      side_b: likewise.
      num_draws: of clusters, and of seeds.
      seed: of the draws.

    Returns:
      {metric of `bootstrap.SCALARS`: {"a", "b", "difference", "interval", "p"}}.
    """
    resampled = resample(of, [*side_a, *side_b], num_draws=num_draws, seed=seed)
    numbers = np.arange(len(side_a) + len(side_b))
    a, b = numbers[: len(side_a)], numbers[len(side_a) :]
    found = {}
    for name in bootstrap.SCALARS:
        values = resampled.values(name)
        found[name] = {"a": float(values[a].mean()), "b": float(values[b].mean())}
        found[name] |= bootstrap.difference(*estimate(resampled, name, [(a, 1.0), (b, -1.0)]))
    return found


@dataclasses.dataclass(frozen=True)
class Resampled:
    """Predictors of the same images, scored in the same draws.

    Attributes:
      of: the images.
      scored: what `metrics.score` returns, one per predictor.
      drawn: from `bootstrap.replicates`, one per predictor.
      num_draws: how many.
      seed: of the draws.
    """

    of: bootstrap.Sample
    scored: Sequence[dict[str, Any]]
    drawn: Sequence[bootstrap.Replicates]
    num_draws: int
    seed: int

    def values(self, name: str) -> np.ndarray:
        """A metric of every predictor: float64 [predictors]."""
        return np.asarray([one[name] for one in self.scored])


def resample(
    of: bootstrap.Sample,
    predictors: Sequence[np.ndarray],
    *,
    areas: bool = True,
    num_draws: int = bootstrap.DRAWS,
    seed: int = 0,
) -> Resampled:
    """Scores predictors in draws of the clusters.

    Args:
      of: the images.
      predictors: probabilities, float64 [n, k] each.
      areas: whether PR-AUC and ROC-AUC are wanted.
      num_draws: of clusters, and of seeds.
      seed: of the draws.
    """
    prepared = [
        bootstrap.prepare(of.labels, p, of.cluster, len(of.scale), areas=areas) for p in predictors
    ]
    drawn = bootstrap.replicates(prepared, of.sizes, scale=of.scale, num_draws=num_draws, seed=seed)
    scored = [metrics.score(of.labels, p, of.scale[of.cluster]) for p in predictors]
    return Resampled(of, scored, drawn, num_draws, seed)


def estimate(
    resampled: Resampled, name: str, sides: Sequence[tuple[Sequence[int] | np.ndarray, float]]
) -> tuple[float, float, float]:
    """A metric of one side, or the difference of two, over clusters and seeds.

    Args:
      resampled: all predictors.
      name: of a metric of `bootstrap.SCALARS`.
      sides: (numbers of the predictors, which differ in their seeds; 1 or -1) pairs.

    Returns:
      (sum of the sides' means with their signs, its standard error, degrees of freedom of t).
    """
    # Seeds are drawn apart from clusters, so that the latter are the same with or without them.
    rng = np.random.default_rng((resampled.seed, 1))
    shares = np.hstack(
        [sign * _seed_shares(len(side), resampled.num_draws, rng) for side, sign in sides]
    )
    means = np.hstack([np.full(len(side), sign / len(side)) for side, sign in sides])
    chosen = [number for side, _ in sides for number in side]
    draws = np.stack([resampled.drawn[i].draws[name] for i in chosen], axis=1)
    left_out = np.stack([resampled.drawn[i].left_out[name] for i in chosen], axis=1)
    values = [resampled.values(name)[np.asarray(side)] for side, _ in sides]
    value = float(sum(sign * own.mean() for own, (_, sign) in zip(values, sides, strict=True)))
    error = bootstrap.bootstrap_error(value, (draws * shares[: len(draws)]).sum(axis=1))
    of_clusters = bootstrap.jackknife_error(value, left_out @ means)
    of_seeds = [own.var(ddof=1) / len(own) if len(own) > 1 else 0.0 for own in values]
    error = float(np.fmax(error, np.sqrt(of_clusters**2 + sum(of_seeds))))
    cluster_degrees, _ = resampled.of.degrees()
    degrees = satterthwaite(
        [max(error**2 - sum(of_seeds), 0.0), *of_seeds],
        [cluster_degrees, *(len(own) - 1 for own in values)],
    )
    return value, error, degrees


def _seed_shares(num_seeds: int, num_draws: int, rng: np.random.Generator) -> np.ndarray:
    """How much each seed weighs in each draw: float64 [num_draws, seeds], rows sum to 1.

    One fewer is drawn than there are, as with clusters.
    """
    if num_seeds == 1:
        return np.ones((num_draws, 1))
    return bootstrap.draw(num_seeds, num_draws, rng).T / (num_seeds - 1)


def satterthwaite(variances: Sequence[float], degrees: Sequence[float]) -> float:
    """Degrees of freedom of a sum of variances that are known with so many each."""
    known = [(v, d) for v, d in zip(variances, degrees, strict=True) if v > 0]
    if len(known) < 2:
        return degrees[0]
    return sum(v for v, _ in known) ** 2 / sum(v**2 / d for v, d in known)


def table(compared: dict[str, Any], metric: str) -> str:
    """One metric's comparison for a terminal, and what is doubtful about it."""
    columns = ["set", "images", "clips", "subjects", "A", "B", "A - B", "95 %", "p", "p (Holm)"]
    rows, notes = [columns], []
    for one in compared["sets"]:
        name = f"{one['dataset']} {one['split']} {one['variant']}".strip()
        found = one["metrics"][metric]
        rows.append(
            [
                name,
                str(one["n"]),
                str(one["n_clips"] or "n/a"),
                str(one["n_subjects"] or "n/a"),
                results.number(found["a"]),
                results.number(found["b"]),
                results.number(found["difference"], signed=True),
                results.interval(found["interval"], signed=True),
                *(results.p_value(found[p]) for p in ("p", "p_holm")),
            ]
        )
        doubts = results.doubts_of_interval(one, found["interval"])
        notes += [f"{name}: {doubt}" for doubt in doubts]
    notes += [f"{name} left out: {reason}" for name, reason in compared["left_out"].items()]
    return "\n".join([*results.aligned(rows, num_left=1), *notes])


def rounding_rows(compared: dict[str, Any]) -> list[list[str]]:
    """What rounding a network changed, as cells: metric, float32, int8, change, its interval.

    Args:
      compared: from `compare_on`, side a int8 and side b float32.
    """
    rows = []
    for name in ROUNDING_METRICS:
        found = compared["metrics"][name]
        values = [results.number(found[side]) for side in ("b", "a")]
        values.append(results.number(found["difference"], signed=True))
        rows.append([name, *values, results.interval(found["interval"], signed=True)])
    return rows


def main(argv: list[str]) -> None:
    """The verb `compare`."""
    parser = OneLineParser(
        prog="fer-jax compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="RUN_A[,RUN_A2...]", help="workdirs of one side")
    parser.add_argument("b", metavar="RUN_B[,RUN_B2...]", help="workdirs of the other side")
    parser.add_argument(
        "--metric", default="balanced_accuracy", choices=bootstrap.SCALARS, help="of the table"
    )
    parser.add_argument("--draws", type=int, default=bootstrap.DRAWS)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--output", type=Path, help="a JSON file for all metrics")
    arguments = parser.parse_args(argv)
    if arguments.draws < 100:
        raise InputError(f"--draws must be at least 100, not {arguments.draws}")
    if arguments.output and not arguments.output.parent.is_dir():
        raise InputError(f"--output: there is no folder '{arguments.output.parent}'")
    words = (arguments.a, arguments.b)
    sides = [[Path(name) for name in side.split(",") if name] for side in words]
    for word, side in zip(words, sides, strict=True):
        if not side:
            raise InputError(f"'{word}' names no run")
    compared = compare(*sides, num_draws=arguments.draws, seed=arguments.seed)
    if arguments.output:
        text = json.dumps(results.plain(compared), indent=2) + "\n"
        arguments.output.write_text(text)
    for letter, side in zip("AB", sides, strict=True):
        print(f"{letter}: {', '.join(map(str, side))}")
    drawn = "whole clusters and seeds" if compared["seeds"] else "whole clusters; two fixed models"
    print(f"{arguments.metric}, {arguments.draws} draws of {drawn}")
    print(table(compared, arguments.metric))
