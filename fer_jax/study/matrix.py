"""results.json and matrix.csv of a study: every scenario on every test set, from the tables."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.config import Config
from fer_jax.data.records import Records, build_summary
from fer_jax.errors import InputError
from fer_jax.evaluation import baselines, bootstrap, compare, metrics, predictions, results
from fer_jax.evaluation.results import HEADLINE
from fer_jax.schema import TASKS
from fer_jax.study import distances
from fer_jax.study.distances import METRIC, RELATIONS, Answered, Estimate
from fer_jax.study.scenarios import Run, Scenario, baseline_of

SMALLEST = 1e-12  # a sum of probabilities below this says nothing of their proportions
MATRIX_COLUMNS = (
    *("scenario", "dataset", "split", "variant", "relation", "oracle", "empty", "warning"),
    *("n", "n_subjects", "n_clips", "cluster", "n_clusters"),
    *(f"{name}{end}" for name in HEADLINE for end in ("", "_low", "_high")),
    *("prevalence", "majority_accuracy", "majority_balanced_accuracy"),
)

Runs = Mapping[str, Sequence[Run]]


def write(
    config: Config,
    scenarios: Sequence[Scenario],
    runs: Sequence[Run],
    workdir: Path,
    data_dir: Path,
) -> dict[str, Any]:
    """Writes results.json and matrix.csv of a study whose runs are predicted.

    Returns:
      What results.json says.

    Raises:
      InputError: a table of other classes, or of other images than another's; or
        `shared_classes` and fewer than two are.
    """
    found = results.plain(of_study(config, scenarios, runs, data_dir))
    temporary = workdir / "results.tmp"
    temporary.write_text(json.dumps(found, indent=2) + "\n")
    temporary.replace(workdir / "results.json")
    with (workdir / "matrix.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, MATRIX_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(cell) for cell in found["cells"])
    return found


def of_study(
    config: Config, scenarios: Sequence[Scenario], runs: Sequence[Run], data_dir: Path
) -> dict[str, Any]:
    """Everything that results.json of a study says; see `write` for the errors."""
    task = config.run.task
    by_scenario = {s.name: [run for run in runs if run.scenario is s] for s in scenarios}
    baseline = baseline_of(config)
    tests = scenarios[0].experiment.test
    classes = scored_classes(config, scenarios, tests)
    sets, cells, differences = [], [], []
    estimates: dict[str, list[tuple[str | None, Estimate, Answered]]] = {
        s.name: [] for s in scenarios
    }
    gains: dict[str, list[tuple[str, Estimate]]] = {s.name: [] for s in scenarios}
    for records in tests:
        for variant in _variants(records, by_scenario):
            answers = _answers(records, variant, by_scenario, TASKS[task])
            rows = np.flatnonzero(np.isin(answers.table["label"], classes))
            table = {name: column[rows] for name, column in answers.table.items()}
            table["label"] = np.searchsorted(classes, table["label"])
            if not variant:
                sets.append(_test_set(records, table, len(classes)))
            predictors = [
                _of_classes(p[rows], classes)
                for seeds in answers.probabilities.values()
                for p in seeds
            ]
            own, resampled = {}, None
            if len(rows):
                cluster, kind = bootstrap.clusters(table)
                of = bootstrap.sample(table["label"], cluster, len(classes))
                resampled = compare.resample(of, predictors)
            first = 0
            for name, seeds in answers.probabilities.items():
                own[name] = range(first, first + len(seeds))
                first += len(seeds)
            for scenario in scenarios:
                about = {
                    "scenario": scenario.name,
                    "dataset": records.name,
                    "split": records.split,
                    "variant": variant,
                }
                related = distances.relation(scenario.learned, answers.table)
                about |= {
                    "relation": related if related in RELATIONS else None,
                    "oracle": scenario.oracle
                    or distances.is_oracle(scenario.learned, answers.table),
                }
                if resampled is None or scenario.name not in own:
                    reason = (
                        f"no image of {', '.join(TASKS[task][c] for c in classes)}"
                        if resampled is None
                        else f"not every run has the variant {variant}"
                    )
                    cells.append(about | _empty(reason))
                    continue
                numbers = own[scenario.name]
                cell = _cell(table, kind, resampled, numbers, [TASKS[task][c] for c in classes])
                cell["no_pixels"] = _no_pixels(
                    by_scenario[scenario.name][0].workdir, table, classes, TASKS[task]
                )
                cell["warning"] = (
                    "; ".join([*_people_known(scenario, table), *cell.pop("doubts")]) or None
                )
                cells.append(about | cell)
                if variant:
                    continue
                estimated = distances.of_predictors(resampled, numbers)
                tested = Answered(table, [predictors[i] for i in numbers])
                estimates[scenario.name].append((related, estimated, tested))
                if scenario.name != baseline:
                    pair = [(numbers, 1.0), (own[baseline], -1.0)]
                    differences += _differences(about, baseline, resampled, pair)
                    gain = _gain(resampled, numbers, own[baseline])
                    gains[scenario.name].append((f"{records.name} {records.split}", gain))
    _correct(differences)
    measured = [
        {"scenario": s.name} | distances.distances(estimates[s.name], len(classes))
        for s in scenarios
    ]
    return {
        "question": config.question,
        "answer": answer(scenarios, baseline, cells, measured, gains, len(config.seeds)),
        "task": task,
        "classes": [TASKS[task][c] for c in classes],
        "protocol": config.protocol,
        "baseline": baseline,
        "scenarios": [_scenario(s, by_scenario[s.name]) for s in scenarios],
        "test_sets": sets,
        "cells": cells,
        "differences": differences,
        "over_sets": over_sets(gains, baseline),
        "distances": measured,
        "audit": _audit(scenarios),
        "openings": [opening for run in runs for opening in _openings(run)],
        "published": _published(config),
        "reproduce": _reproduce(config, scenarios, runs, data_dir),
    }


def scored_classes(
    config: Config, scenarios: Sequence[Scenario], tests: Sequence[Records]
) -> np.ndarray:
    """Numbers of the classes that are scored: int64 [k], ascending.

    All of the task; with `shared_classes` those that every scenario was trained on and every
    test set has, so that a column's numbers are about the same images and chance is the same
    everywhere. The probabilities of the others are then left out, and the rest brought to 1.

    Raises:
      InputError: fewer than two are shared.
    """
    task = config.run.task
    classes = np.arange(len(TASKS[task]))
    if not config.shared_classes:
        return classes
    trained = [
        np.concatenate([part.labels(task) for part in scenario.experiment.train])
        for scenario in scenarios
    ]
    for labels in [*trained, *(part.labels(task) for part in tests)]:
        classes = np.intersect1d(classes, labels)
    if len(classes) < 2:
        raise InputError(
            "config.shared_classes: fewer than two classes are in every training and test set"
        )
    return classes


def _of_classes(probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """float64 [n, len(classes)]: columns of float64 [n, k], rows brought to 1 if any is gone."""
    if len(classes) == probabilities.shape[1]:
        return probabilities
    kept = np.maximum(probabilities[:, classes], SMALLEST)
    return kept / kept.sum(axis=1, keepdims=True)


class _Answers:
    """The tables of one test set, images in one order."""

    def __init__(
        self, table: predictions.Table, probabilities: dict[str, list[np.ndarray]]
    ) -> None:
        self.table, self.probabilities = table, probabilities


def _file(run: Run, records: Records, variant: str) -> Path:
    return run.workdir / "predictions" / predictions.file_name(records.name, records.split, variant)


def _variants(records: Records, by_scenario: Runs) -> list[str]:
    """The plain one, which is "", and every one that some run has."""
    plain = predictions.file_name(records.name, records.split).removesuffix(".csv")
    found = {
        file.name.removeprefix(f"{plain}.").removesuffix(".csv")
        for runs in by_scenario.values()
        for run in runs
        for file in (run.workdir / "predictions").glob("*.csv")
        if file.name.startswith(f"{plain}.") and file.name != f"{plain}.csv"
    }
    return ["", *sorted(found)]


def _answers(
    records: Records, variant: str, by_scenario: Runs, classes: tuple[str, ...]
) -> _Answers:
    first: tuple[predictions.Table, Path] | None = None
    probabilities: dict[str, list[np.ndarray]] = {}
    for name, runs in by_scenario.items():
        files = [_file(run, records, variant) for run in runs]
        if variant and not all(file.is_file() for file in files):
            continue
        for file in files:
            table, of_table = predictions.read(file)
            if of_table != classes:
                raise InputError(
                    f"{file} is about {', '.join(of_table)}; the study's task has "
                    f"{', '.join(classes)}; delete it and repeat the study"
                )
            if first is None:
                first = table, file
            order = compare.same_images(first[0], table, first[1], file)
            probabilities.setdefault(name, []).append(table["probabilities"][order])
    assert first is not None
    table = {name: column for name, column in first[0].items() if name != "probabilities"}
    return _Answers(table, probabilities)


def _named(table: predictions.Table, column: str) -> int:
    return len(set(table[column].tolist()) - {""})


def _test_set(records: Records, table: predictions.Table, num_classes: int) -> dict[str, Any]:
    labels = table["label"]
    scored = {"accuracy": float("nan"), "balanced_accuracy": float("nan")}
    if len(labels):
        majority = baselines.majority(labels, num_classes)
        scored = {name: majority[name] for name in scored}
    return {
        "dataset": records.name,
        "split": records.split,
        "source": "+".join(sorted(set(records.columns["source"].tolist()))),
        "n": len(labels),
        "n_subjects": _named(table, "subject_id"),
        "n_clips": _named(table, "clip_id"),
        "classes_present": len(np.unique(labels)),
        "majority": scored,
    }


def _empty(reason: str) -> dict[str, Any]:
    nothing = {"value": float("nan"), "interval": [float("nan")] * 2, "by_seed": []}
    nan = float("nan")
    return {
        "empty": reason,
        "warning": None,
        "cluster": "image",
        "n_clusters": 0,
        "n": 0,
        "n_subjects": 0,
        "n_clips": 0,
        "metrics": dict.fromkeys(HEADLINE, nothing),
        "prevalence": nan,
        "majority": {"accuracy": nan, "balanced_accuracy": nan},
        "no_pixels": None,
    }


def _cell(
    table: predictions.Table,
    kind: str,
    resampled: compare.Resampled,
    numbers: Sequence[int],
    classes: Sequence[str],
) -> dict[str, Any]:
    scores = {}
    for name in HEADLINE:
        value, error, degrees = compare.estimate(resampled, name, [(numbers, 1.0)])
        scores[name] = {
            "value": value,
            "interval": bootstrap.interval(name, value, error, degrees),
            "by_seed": resampled.values(name)[np.asarray(numbers)],
        }
    majority = baselines.majority(table["label"], len(classes))
    counts = np.bincount(table["label"], minlength=len(classes))
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    doubts = [f"no image of {', '.join(absent)}"] if absent else []
    of = {
        "n_clusters": len(resampled.of.scale),
        "cluster": kind,
        "effective_clusters": resampled.of.degrees()[0] + 1,
    }
    doubts += results.doubts_of_interval(of, scores[METRIC]["interval"])
    return {
        "empty": None,
        "cluster": kind,
        "n_clusters": of["n_clusters"],
        "n": len(table["label"]),
        "n_subjects": _named(table, "subject_id"),
        "n_clips": _named(table, "clip_id"),
        "metrics": scores,
        # What a random score reaches.
        "prevalence": majority["pr_auc"],
        "majority": {name: majority[name] for name in ("accuracy", "balanced_accuracy")},
        "doubts": doubts,
    }


def _people_known(scenario: Scenario, table: predictions.Table) -> list[str]:
    people = set(table["subject_id"].tolist()) - {""}
    known = people & scenario.learned.subjects
    return [f"{len(known)} of its {len(people)} people were trained on"] if known else []


def _no_pixels(
    workdir: Path, table: predictions.Table, classes: np.ndarray, names: tuple[str, ...]
) -> dict[str, float] | None:
    """The scores of what is known without looking: the training labels by source and content."""
    counts = baselines.read(workdir, names)
    if counts is None:
        return None
    answers = baselines.no_pixels(counts, table["source"], table["content"])
    scored = metrics.score(table["label"], _of_classes(answers, classes))
    return {name: scored[name] for name in baselines.COMPARABLE}


def _differences(
    about: Mapping[str, Any],
    baseline: str,
    resampled: compare.Resampled,
    pair: Sequence[tuple[Sequence[int], float]],
) -> list[dict[str, Any]]:
    where = {name: about[name] for name in ("scenario", "dataset", "split")}
    return [
        where
        | {"against": baseline, "metric": name}
        | bootstrap.difference(*compare.estimate(resampled, name, pair))
        for name in HEADLINE
    ]


def _correct(differences: list[dict[str, Any]]) -> None:
    """Adds `p_corrected`: Holm's, for the number of test sets of a scenario and metric."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in differences:
        groups.setdefault((one["scenario"], one["metric"]), []).append(one)
    for group in groups.values():
        corrected = bootstrap.holm([one["p"] for one in group])
        for one, p in zip(group, corrected, strict=True):
            one["p_corrected"] = p


def _gain(
    resampled: compare.Resampled, numbers: Sequence[int], baseline: Sequence[int]
) -> Estimate:
    """A scenario less the baseline, apart by what its error comes from."""
    a, b = (resampled.values(METRIC)[np.asarray(side)] for side in (numbers, baseline))
    _, error, _ = compare.estimate(resampled, METRIC, [(numbers, 1.0), (baseline, -1.0)])
    of_seeds = sum(side.var(ddof=1) / len(side) if len(side) > 1 else 0.0 for side in (a, b))
    return Estimate(a - b, max(error**2 - of_seeds, 0.0), resampled.of.degrees()[0])


def over_sets(
    gains: Mapping[str, Sequence[tuple[str, Estimate]]], baseline: str
) -> list[dict[str, Any]]:
    """Each scenario less the baseline in balanced accuracy, a mean over test sets of equal weight.

    Args:
      gains: of each scenario but the baseline, (test set, scenario less baseline) pairs; the sets
        are of different people.
      baseline: its name.

    Returns:
      [{"scenario", "against", "n_sets", "without": sets whose difference has no interval, which
      the mean is without, "difference", "interval", "p", "p_corrected": Holm's, for the number
      of scenarios}].
    """
    found = []
    for scenario, own in gains.items():
        known = [
            (where, gain)
            for where, gain in own
            if np.isfinite(bootstrap.difference(*distances.combined([(gain, 1.0)]))["p"])
        ]
        if not known:
            continue
        terms = [(gain, 1 / len(known)) for _, gain in known]
        found.append(
            {
                "scenario": scenario,
                "against": baseline,
                "n_sets": len(known),
                "without": [where for where, _ in own if where not in dict(known)],
            }
            | bootstrap.difference(*distances.combined(terms))
        )
    corrected = bootstrap.holm([one["p"] for one in found])
    return [one | {"p_corrected": p} for one, p in zip(found, corrected, strict=True)]


def answer(
    scenarios: Sequence[Scenario],
    baseline: str,
    cells: Sequence[Mapping[str, Any]],
    measured: Sequence[Mapping[str, Any]],
    gains: Mapping[str, Sequence[tuple[str, Estimate]]],
    num_seeds: int,
) -> str:
    """The question's answer in one sentence, with its interval.

    Where scenarios add sources to the baseline's: which of them gains most on the test sets that
    neither it nor the baseline knows the source or the content of. Else: what is lost from
    held-out people of a scenario's own sources to others, over the scenarios.
    """
    unknown = {
        (cell["scenario"], f"{cell['dataset']} {cell['split']}")
        for cell in cells
        if cell["relation"] in ("cross_domain", "cross_content")
        and not cell["oracle"]
        and not cell["variant"]
        and not cell["empty"]
    }
    trained = {s.name: {part.name for part in s.experiment.train} for s in scenarios}
    compared = []
    for scenario in scenarios:
        if not trained[scenario.name] > trained[baseline]:
            continue
        own = [
            (where, gain)
            for where, gain in gains[scenario.name]
            if {(scenario.name, where), (baseline, where)} <= unknown
        ]
        if own:
            value, error, degrees = distances.combined([(gain, 1 / len(own)) for _, gain in own])
            compared.append((value, error, degrees, scenario.name, [where for where, _ in own]))
    if compared:
        value, error, degrees, name, where = max(compared)
        bounds = _around(value, error, degrees)
        fixed = "" if num_seeds > 1 else "; one seed, so this is about these models, not recipes"
        several = len(compared) > 1
        others = f"{len(compared)} scenarios that add" if several else "1 scenario that adds"
        return (
            f"On what neither has seen ({', '.join(where)}), '{name}' changes the balanced "
            f"accuracy of '{baseline}' by {results.number(value, signed=True)} "
            f"{results.interval(bounds, signed=True)}, the most of {others} sources to it{fixed}."
        )
    return _loss(measured)


def _loss(measured: Sequence[Mapping[str, Any]]) -> str:
    known = []
    for one in measured:
        beyond = [one[name]["value"] for name in RELATIONS[1:] if one[name]["n_sets"]]
        if one["within_domain"]["n_sets"] and beyond:
            known.append((one, one["within_domain"]["value"], float(np.mean(beyond))))
    if not known:
        return (
            "No scenario was tested both on held-out people of what it learned from and on "
            "anything new: there is no distance to tell."
        )
    within, beyond = np.mean([(a, b) for _, a, b in known], axis=0)
    lost = np.asarray([a - b for _, a, b in known])
    if len(known) > 1:
        error = float(lost.std(ddof=1) / np.sqrt(len(lost)))
        interval = _around(float(lost.mean()), error, len(lost) - 1)
        over = f"over {len(known)} scenarios"
    else:
        interval = known[0][0]["new_content"]["interval"]
        over = "matched in size"
    return (
        f"On held-out people of what it learned from a model reaches a mean balanced accuracy of "
        f"{results.number(float(within))}, on sources or content it has never seen "
        f"{results.number(float(beyond))}: a loss of {results.number(float(lost.mean()))} "
        f"{results.interval(interval)} ({over})."
    )


def _around(value: float, error: float, degrees: float) -> list[float]:
    reach = bootstrap.quantile_of_t(degrees) * error
    return [value - reach, value + reach]


def _scenario(scenario: Scenario, runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "name": scenario.name,
        "sources": [part.name for part in scenario.experiment.train],
        "n_images": scenario.num_images,
        "n_subjects": len(scenario.learned.subjects),
        "n_steps": scenario.num_steps,
        "seeds": [run.config.seed for run in runs],
        "runs": [f"runs/{run.name}" for run in runs],
        "oracle": scenario.oracle,
    }


def _audit(scenarios: Sequence[Scenario]) -> dict[str, Any]:
    """Scenarios share their data, so of each kind the most that one of them has is told."""
    leaks: Counter[str] = Counter()
    for scenario in scenarios:
        leaks |= Counter(scenario.leaks)
    left_out: dict[str, int] = {}
    for scenario in scenarios:
        left_out |= scenario.experiment.left_out
    return {
        "leaks": dict(leaks),
        "by_scenario": {s.name: s.leaks for s in scenarios if s.leaks},
        "allowed": any(scenario.leaks for scenario in scenarios),
        "left_out": left_out,
    }


def _openings(run: Run) -> list[dict[str, Any]]:
    return [{"run": f"runs/{run.name}"} | one for one in results.openings(run.workdir)]


def _published(config: Config) -> dict[str, Any] | None:
    """What others reported; a number that they did not is NaN."""
    if not config.published.source:
        return None
    return {
        name: value if name == "source" or value else float("nan")
        for name, value in config.published.items()
    }


def _reproduce(
    config: Config, scenarios: Sequence[Scenario], runs: Sequence[Run], data_dir: Path
) -> dict[str, Any]:
    environment = json.loads((runs[0].workdir / "environment.json").read_text())
    names = {
        part.name
        for scenario in scenarios
        for part in (*scenario.experiment.train, *scenario.experiment.test)
    }
    devices = Counter(environment["devices"])
    hardware = [f"{count} x {device}" for device, count in devices.items()]
    return {
        "command": " ".join(["fer-jax", *sys.argv[1:]]),
        "config": config.to_dict(),
        "seeds": list(config.seeds),
        "commit": environment["commit"],
        "datasets": {
            name: build_summary(name, data_dir).get("fingerprint") for name in sorted(names)
        },
        "versions": environment["versions"],
        "hardware": ", ".join([*hardware, f"{environment['cpu_cores']} CPU cores"]),
    }


def _row(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell as a line of matrix.csv; what does not exist is empty."""
    row = {name: cell[name] for name in MATRIX_COLUMNS if name in cell and name != "majority"}
    for name in HEADLINE:
        scored = cell["metrics"][name]
        row |= {name: scored["value"]}
        row |= dict(zip((f"{name}_low", f"{name}_high"), scored["interval"], strict=True))
    return row | {f"majority_{name}": value for name, value in cell["majority"].items()}


def summary(found: Mapping[str, Any], name: str = METRIC) -> str:
    """The matrix of one metric for a terminal: a row per scenario, a column per test set."""
    sets = [(one["dataset"], one["split"]) for one in found["test_sets"]]
    marks = {"within": "", "cross_domain": "*", "cross_content": "+", None: "?"}
    rows = [[name, *(" ".join(one) for one in sets)]]
    for scenario in found["scenarios"]:
        row = [scenario["name"]]
        for dataset, split in sets:
            (cell,) = (
                one
                for one in found["cells"]
                if (one["scenario"], one["dataset"], one["split"], one["variant"])
                == (scenario["name"], dataset, split, "")
            )
            scored = cell["metrics"][name]
            bounds = results.interval(scored["interval"])
            oracle = " oracle" if cell["oracle"] else ""
            row.append(
                f"{results.number(scored['value'])}{marks[cell['relation']]} {bounds}{oracle}"
            )
        rows.append(row)
    rows.append(["majority", *(results.number(s["majority"][name]) for s in found["test_sets"])])
    notes = sorted(
        {
            f"{cell['dataset']} {cell['split']}: {cell['empty'] or cell['warning']}"
            for cell in found["cells"]
            if cell["empty"] or cell["warning"]
        }
    )
    legend = "* another source, + other content of the same source, ? partly, else held-out people"
    lines = [*results.aligned(rows, num_left=1), legend, *notes]
    if name == METRIC and found["over_sets"]:
        columns = [f"less '{found['baseline']}', mean over sets", "sets", "difference", "95 %"]
        means = [
            [
                one["scenario"],
                str(one["n_sets"]),
                results.number(one["difference"], signed=True),
                results.interval(one["interval"], signed=True),
                results.p_value(one["p_corrected"]),
            ]
            for one in found["over_sets"]
        ]
        lines += ["", *results.aligned([[*columns, "p (Holm)"], *means], num_left=1)]
        lines += [
            f"{where}: no interval, so not in the mean of {one['scenario']}"
            for one in found["over_sets"]
            for where in one["without"]
        ]
    return "\n".join(lines)
