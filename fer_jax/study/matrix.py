"""results.json and matrix.csv of a study: every scenario on every test set, from the tables."""

import functools
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fer_jax import results, storage
from fer_jax.config import Config, read_environment
from fer_jax.data.audit.findings import LOOKED_FOR, find_near_duplicates
from fer_jax.data.records import Records, build_summary
from fer_jax.errors import InputError
from fer_jax.evaluation import (
    baselines,
    bootstrap,
    compare,
    metrics,
    predictions,
    relations,
    scoring,
)
from fer_jax.evaluation.bootstrap import Estimate
from fer_jax.evaluation.predictions import Table, sizes, take
from fer_jax.evaluation.relations import RELATIONS
from fer_jax.evaluation.run_scores import evaluated_checkpoint, read_test_access
from fer_jax.results import HEADLINE, interval, loss_in_words, number, p_value, set_name
from fer_jax.schema import TASKS
from fer_jax.study import distances
from fer_jax.study.distances import METRIC, SeedPredictions
from fer_jax.study.scenarios import Scenario, ScenarioRun, baseline_of

SMALLEST = 1e-12  # a smaller sum of probabilities does not define their proportions
MATRIX_COLUMNS = (
    *("scenario", "dataset", "split", "variant", "relation", "oracle", "empty", "warning"),
    *("n", "n_subjects", "n_clips", "cluster", "n_clusters"),
    *(f"{name}{end}" for name in HEADLINE for end in ("", "_low", "_high")),
    *("prevalence", "majority_accuracy", "majority_balanced_accuracy"),
)
NAN = float("nan")


class ScoredClasses(NamedTuple):
    """The numbers of the scored classes, int64 [k], ascending, and the names of all classes."""

    numbers: np.ndarray
    of_task: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The names of the scored classes."""
        return [self.of_task[number] for number in self.numbers]

    def rescale(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns the columns of the scored classes; if some are missing, rows sum to 1 again."""
        if len(self.numbers) == probabilities.shape[1]:
            return probabilities
        kept = np.maximum(probabilities[:, self.numbers], SMALLEST)
        return kept / kept.sum(axis=1, keepdims=True)


class ScenarioScores(NamedTuple):
    """A scenario on a test set: its cell of results.json, and what is compared over sets.

    The estimate is for `distances.measure_distances`; the gains, by metric, are differences from
    the baseline. A variant and an empty cell have neither.
    """

    cell: dict[str, Any]
    estimate: tuple[str | None, Estimate, SeedPredictions] | None = None
    gains: Mapping[str, Estimate] = {}


def write(
    config: Config,
    scenarios: Sequence[Scenario],
    runs: Sequence[ScenarioRun],
    workdir: Path,
    data_dir: Path,
) -> dict[str, Any]:
    """Writes results.json, which it returns, and matrix.csv of a study whose runs are evaluated.

    InputError for a table of other classes, or of other images than another's.
    """
    baseline = baseline_of(config)
    tests = scenarios[0].experiment.test
    classes = scored_classes(config, scenarios, tests)
    in_all = [np.intersect1d(part.labels(config.run.task), classes.numbers) for part in tests]
    common = np.searchsorted(classes.numbers, functools.reduce(np.intersect1d, in_all)).tolist()
    sets, cells = [], []
    estimates: dict[str, list[Any]] = {s.name: [] for s in scenarios}
    # By scenario and (dataset, split), the differences from the baseline by metric.
    gains: dict[str, dict[tuple[str, str], Mapping[str, Estimate]]] = {}
    for records in tests:
        for variant in ("", *sorted(config.variants)):
            table, scores = _score_set(records, variant, runs, baseline, classes, common)
            if not variant:
                sets.append(_test_set(records, table, len(classes.numbers)))
            for name, one in scores.items():
                cells.append(one.cell)
                if one.estimate:
                    estimates[name].append(one.estimate)
                if one.gains:
                    gains.setdefault(name, {})[records.name, records.split] = one.gains
    differences, over_sets = compare_scenarios(gains, baseline)
    measured = [
        {"scenario": name} | distances.measure_distances(own, len(classes.numbers))
        for name, own in estimates.items()
    ]
    found = {
        "question": config.question,
        "answer": answer(scenarios, baseline, cells, estimates, gains, len(config.seeds)),
        "task": config.run.task,
        "classes": classes.names,
        "common_classes": [classes.names[number] for number in common],
        "protocol": config.protocol,
        "baseline": baseline,
        "scenarios": [_scenario(s, [run for run in runs if run.scenario is s]) for s in scenarios],
        "test_sets": sets,
        "cells": cells,
        "differences": differences,
        "n_compared": len(differences) + len(over_sets),
        "over_sets": over_sets,
        "distances": measured,
        "audit": _audit(scenarios, workdir),
        "test_access": [
            {"run": f"runs/{run.name}"} | access
            for run in runs
            for access in read_test_access(run.workdir)
        ],
        # A score that was not published is 0 in the config.
        "published": {name: value or NAN for name, value in config.published.items()}
        if config.published.source
        else None,
        "reproduce": _reproduce(config, scenarios, runs, data_dir),
    }
    found = results.plain(found)
    results.write(workdir, found)
    rows = [_row(cell) for cell in found["cells"]]
    storage.write_table(workdir / "matrix.csv", MATRIX_COLUMNS, rows)
    return found


def scored_classes(
    config: Config, scenarios: Sequence[Scenario], tests: Sequence[Records]
) -> ScoredClasses:
    """Returns the classes that are scored: all of the task, or those that are shared.

    With `shared_classes` they are those that every scenario was trained on and every test set has,
    so that a column's numbers are about the same images and the chance level is the same
    everywhere. The probabilities of the others are then left out, and the rest sum to 1. InputError
    if fewer than two are shared.
    """
    task = config.run.task
    numbers = np.arange(len(TASKS[task]))
    if config.shared_classes:
        for scenario in scenarios:
            trained = [part.labels(task) for part in scenario.experiment.train]
            numbers = np.intersect1d(numbers, np.concatenate(trained))
        for part in tests:
            numbers = np.intersect1d(numbers, part.labels(task))
    if len(numbers) < 2:
        raise InputError(
            "config.shared_classes: fewer than two classes are in every training and test set"
        )
    return ScoredClasses(numbers, TASKS[task])


def _score_set(
    records: Records,
    variant: str,
    runs: Sequence[ScenarioRun],
    baseline: str,
    classes: ScoredClasses,
    common: Sequence[int],
) -> tuple[Table, dict[str, ScenarioScores]]:
    """Scores every scenario on a test set, in the same draws; returns its scored images, too.

    `common` are the scored classes that all test sets have, over which sets are averaged.
    """
    whole, predicted = _read_predictions(records, variant, runs, classes.of_task)
    rows = np.flatnonzero(np.isin(whole["label"], classes.numbers))
    table = take(whole, rows)
    table["label"] = np.searchsorted(classes.numbers, table["label"])
    predictors = [classes.rescale(probabilities[rows]) for probabilities in predicted]
    numbers: dict[str, list[int]] = {}
    for index, run in enumerate(runs):
        numbers.setdefault(run.scenario.name, []).append(index)
    of = bootstrap.sample_table(table, len(classes.numbers))
    resampled = bootstrap.resample(of, predictors) if len(rows) else None
    found = {}
    for name, own in numbers.items():
        scenario = runs[own[0]].scenario
        tested = relations.as_trained(scenario.learned, records)
        relation = relations.relation(scenario.learned, tested)
        where = {"scenario": name, "dataset": records.name, "split": records.split}
        about = where | {
            "variant": variant,
            "relation": relation if relation in RELATIONS else None,
            "oracle": scenario.oracle or relations.is_oracle(scenario.learned, tested),
        }
        if resampled is None:
            found[name] = ScenarioScores(about | _empty(f"no image of {', '.join(classes.names)}"))
            continue
        cell = _cell(table, resampled, own, classes, runs[own[0]])
        cell["constant"] = all(len(np.unique(predictors[i].argmax(axis=1))) == 1 for i in own)
        found[name] = ScenarioScores(about | cell)
        if variant:
            continue
        estimate = bootstrap.estimate_mean(resampled, METRIC, common, own, name)
        seeds = SeedPredictions(table, [predictors[index] for index in own])
        found[name] = found[name]._replace(estimate=(relation, estimate, seeds))
        if name != baseline:
            gains = {}
            for metric in HEADLINE:
                ours = bootstrap.estimate(resampled, metric, own, name)
                other = bootstrap.estimate(resampled, metric, numbers[baseline], baseline)
                gains[metric] = bootstrap.subtract(ours, other)
            found[name] = found[name]._replace(gains=gains)
    return table, found


def _read_predictions(
    records: Records, variant: str, runs: Sequence[ScenarioRun], classes: tuple[str, ...]
) -> tuple[Table, list[np.ndarray]]:
    name = predictions.file_name(records.name, records.split, variant)
    files = [run.workdir / "predictions" / name for run in runs]
    first, _ = predictions.read(files[0], classes)
    found = []
    for file in files:
        table, _ = predictions.read(file, classes)
        rows = compare.same_images(first, table, files[0], file)
        found.append(table["probabilities"][rows])
    return {name: column for name, column in first.items() if name != "probabilities"}, found


def _test_set(records: Records, table: Table, num_classes: int) -> dict[str, Any]:
    labels = table["label"]
    majority = baselines.majority(labels, num_classes) if len(labels) else {}
    return {
        "dataset": records.name,
        "split": records.split,
        "source": "+".join(sorted(set(records.columns["source"].tolist()))),
        "faces": faces_file(records),
        **sizes(table),
        "classes_present": len(np.unique(labels)),
        "majority": {name: majority.get(name, NAN) for name in ("accuracy", "balanced_accuracy")},
    }


def faces_file(records: Records) -> str:
    """Returns where in a study's folder the picture of a test set's faces is."""
    name = predictions.file_name(records.name, records.split).removesuffix(".csv")
    return f"test_faces/{name}.jpg"


def _empty(reason: str) -> dict[str, Any]:
    nothing = {"value": NAN, "interval": [NAN] * 2, "by_seed": []}
    return dict.fromkeys(("n_clusters", "n", "n_subjects", "n_clips"), 0) | {
        "empty": reason,
        "constant": False,
        "warning": None,
        "cluster": "image",
        "metrics": dict.fromkeys(HEADLINE, nothing),
        "prevalence": NAN,
        "majority": {"accuracy": NAN, "balanced_accuracy": NAN},
        "pixel_free": None,
    }


def _cell(
    table: Table,
    resampled: bootstrap.Resampled,
    numbers: Sequence[int],
    classes: ScoredClasses,
    run: ScenarioRun,
) -> dict[str, Any]:
    scores = {}
    for name in HEADLINE:
        mean = bootstrap.estimate(resampled, name, numbers)
        scores[name] = {
            "value": mean.value,
            "interval": bootstrap.interval(name, mean),
            "by_seed": mean.by_seed[""],
        }
    people = set(table["subject_id"].tolist()) - {""}
    known = people & run.scenario.learned.subjects
    counts = np.bincount(table["label"], minlength=len(classes.numbers))
    absent = [name for name, count in zip(classes.names, counts, strict=True) if not count]
    clusters = resampled.of.describe()
    caveats = [f"{len(known)} of its {len(people)} people were trained on"] if known else []
    caveats += [f"no image of {', '.join(absent)}"] if absent else []
    caveats += scoring.interval_caveats(clusters, scores[METRIC]["interval"])
    majority = baselines.majority(table["label"], len(classes.numbers))
    label_counts = baselines.read(run.workdir, classes.of_task)
    pixel_free = None
    if label_counts is not None:
        predicted = baselines.pixel_free(label_counts, table["source"], table["content"])
        scored = metrics.score(table["label"], classes.rescale(predicted))
        pixel_free = {name: scored[name] for name in baselines.COMPARABLE}
    return {
        "empty": None,
        "warning": "; ".join(caveats) or None,
        "cluster": clusters["cluster"],
        "n_clusters": clusters["n_clusters"],
        **sizes(table),
        "metrics": scores,
        "prevalence": majority["pr_auc"],
        "majority": {name: majority[name] for name in ("accuracy", "balanced_accuracy")},
        "pixel_free": pixel_free,
    }


def compare_scenarios(
    gains: Mapping[str, Mapping[tuple[str, str], Mapping[str, Estimate]]], baseline: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lists the differences from the baseline, on each test set and averaged over the sets.

    `gains` are {scenario: {(dataset, split): {metric: difference}}}. Returns [{"scenario",
    "against", "dataset", "split", "metric", "difference", "interval", "p", "p_corrected"}], and of
    balanced accuracy, with equal weights of the sets, [{"scenario", "against", "n_sets", "without":
    sets whose difference has no interval and which are not in the mean, "difference", "interval",
    "p", "p_corrected"}]. All together are one family, for whose number `bootstrap.correct`
    corrects.
    """
    estimates, rows, means = [], [], []
    for scenario, of_sets in gains.items():
        known = {}
        for (dataset, split), of_metrics in of_sets.items():
            for metric, gain in of_metrics.items():
                estimates.append(gain)
                rows.append(
                    {"scenario": scenario, "against": baseline, "dataset": dataset}
                    | {"split": split, "metric": metric}
                    | bootstrap.difference(gain)
                )
                if metric == METRIC and np.isfinite(rows[-1]["p"]):
                    known[f"{dataset} {split}"] = gain
        if known:
            without = [f"{dataset} {split}" for dataset, split in of_sets]
            means.append(
                {"scenario": scenario, "against": baseline, "n_sets": len(known)}
                | {"without": [where for where in without if where not in known]}
            )
            estimates.append(bootstrap.average(list(known.values())))
            means[-1] |= bootstrap.difference(estimates[-1])
            rows.append(means[-1])
    for row, p in zip(rows, bootstrap.correct(estimates), strict=True):
        row["p_corrected"] = p
    return [row for row in rows if "metric" in row], means


def answer(
    scenarios: Sequence[Scenario],
    baseline: str,
    cells: Sequence[Mapping[str, Any]],
    estimates: Mapping[str, Sequence[tuple[str | None, Estimate, SeedPredictions]]],
    gains: Mapping[str, Mapping[tuple[str, str], Mapping[str, Estimate]]],
    num_seeds: int,
) -> str:
    """Answers the study's question in one sentence, with its interval.

    Where scenarios add datasets to the baseline's: which of them gains most on the test sets that
    are unseen for the baseline and for all of them; the interval is corrected for the choice. Else:
    the loss from held-out people of a scenario's own datasets to unseen ones, over the scenarios.
    """
    trained = {s.name: {part.name for part in s.experiment.train} for s in scenarios}
    oracles = {one["scenario"] for one in cells} - {
        one["scenario"] for one in cells if not one["oracle"]
    }
    added = [name for name in gains if trained[name] > trained[baseline] and name not in oracles]
    fixed = "" if num_seeds > 1 else "; one seed, so this compares these models, not recipes"
    if all(one["constant"] for one in cells if not one["empty"]):
        return (
            "Every model predicts a single class on every test set: train longer to compare them."
        )
    if not added:
        return _loss(estimates, fixed)
    plain = {
        (one["scenario"], one["dataset"], one["split"]): one for one in cells if not one["variant"]
    }
    unseen: list[tuple[str, str]] = []
    for where in gains[added[0]]:
        own = [plain[name, *where] for name in (baseline, *added)]
        if all(cell["relation"] in RELATIONS[1:] and not cell["oracle"] for cell in own):
            unseen.append(where)
    if not unseen:
        none = (
            f"No test set is unseen for '{baseline}' and all scenarios that add datasets to it, so "
        )
        return f"{none}these are not ranked. {_loss(estimates, fixed)}"
    # A set without an interval would leave the mean without one.
    surer = [
        where
        for where in unseen
        if all(np.isfinite(gains[name][where][METRIC].error()).all() for name in added)
    ]
    unseen = surer or unseen
    means = {
        name: bootstrap.average([gains[name][where][METRIC] for where in unseen]) for name in added
    }
    name = max(means, key=lambda name: means[name].value)
    found = bootstrap.difference(means[name], num_compared=len(added))
    low, high = found["interval"]
    shown = interval(found["interval"], signed=True).replace("n/a", "(no interval)")
    verdict = ", which is not significant: chance may explain it" if low <= 0 <= high else ""
    chosen = ""
    if len(added) > 1:
        rank = "highest" if found["difference"] > 0 else "least negative"
        chosen = (
            f"; the {rank} of {len(added)} scenarios that add datasets, so the interval is "
            "corrected for the choice"
        )
    reached = {
        who: np.mean([plain[who, *where]["metrics"][METRIC]["value"] for where in unseen])
        for who in (name, baseline)
    }
    others = []
    for other in added:
        if other != name:
            one = bootstrap.difference(means[other], num_compared=len(added))
            value = number(one["difference"], signed=True)
            others.append(f"'{other}' {value} {interval(one['interval'], signed=True)}")
    rest = f" The others: {', '.join(others)}." if others else ""
    return (
        f"Of 100 faces of {', '.join(map(' '.join, unseen))}, which none of these networks was "
        f"trained on, '{name}' recognizes {100 * reached[name]:.0f} and '{baseline}' "
        f"{100 * reached[baseline]:.0f}, if each class counts the same: a difference in balanced "
        f"accuracy of {number(found['difference'], signed=True)} {shown}{verdict}{chosen}{fixed}."
        f"{rest}"
    )


def _loss(
    estimates: Mapping[str, Sequence[tuple[str | None, Estimate, SeedPredictions]]], fixed: str
) -> str:
    """Says the mean loss of the scenarios that have both kinds of test sets."""
    sides: list[tuple[Estimate, Estimate]] = []
    for of_scenario in estimates.values():
        within = [one for related, one, _ in of_scenario if related == RELATIONS[0]]
        beyond = [one for related, one, _ in of_scenario if related in RELATIONS[1:]]
        if within and beyond:
            sides.append((bootstrap.average(within), bootstrap.average(beyond)))
    if not sides:
        return (
            "No scenario was evaluated both on held-out people of its own datasets and on unseen "
            "datasets or content, so there is no loss to report."
        )
    within, beyond = (bootstrap.average(side) for side in zip(*sides, strict=True))
    if not np.isfinite([within.value, beyond.value]).all():
        return "The test sets have fewer than two classes in common, so there is no loss to report."
    lost = bootstrap.difference(bootstrap.subtract(within, beyond))
    over = f"mean over {len(sides)} scenarios" if len(sides) > 1 else "one scenario"
    return (
        f"On held-out people of the datasets that it was trained on a model reaches a mean "
        f"balanced accuracy of {number(within.value)}, on unseen datasets or content "
        f"{number(beyond.value)}: {loss_in_words(lost['difference'], lost['interval'])} "
        f"({over}{fixed})."
    )


def _scenario(scenario: Scenario, runs: Sequence[ScenarioRun]) -> dict[str, Any]:
    return {
        "name": scenario.name,
        "sources": [part.name for part in scenario.experiment.train],
        "n_images": scenario.num_images,
        "n_subjects": len(scenario.learned.subjects),
        "n_steps": scenario.num_steps,
        "seeds": [run.config.seed for run in runs],
        "runs": [f"runs/{run.name}" for run in runs],
        "steps": [evaluated_checkpoint(run.workdir)[0] for run in runs],
        "oracle": scenario.oracle,
    }


def _audit(scenarios: Sequence[Scenario], workdir: Path) -> dict[str, Any]:
    leaks: Counter[str] = Counter()
    left_out: dict[str, int] = {}
    for scenario in scenarios:
        # The maximum of each kind, not the sum: scenarios share their data.
        leaks |= Counter(scenario.leaks.counts)
        left_out |= scenario.experiment.left_out
    leaking = [scenario for scenario in scenarios if scenario.leaks.counts]
    audits = [find_near_duplicates(workdir, scenario.experiment.parts) for scenario in scenarios]
    warnings = [f"{s.name}: {s.leaks.in_words()}" for s in leaking]
    near = audits[0]
    if near is not None and None not in audits:
        near["found"] = max(one["found"] for one in audits if one)
        if near["found"]:
            leaks["image"] += near["found"]
            warnings.append(f"{near['found']} near-duplicates (audit of {near['date']})")
    return {
        "leaks": dict(leaks),
        "by_scenario": {s.name: s.leaks.counts for s in leaking},
        "warnings": warnings,
        "allowed": bool(leaking),
        "looked_for": LOOKED_FOR,
        "near_duplicates": None if None in audits else near,
        "unknown_people": sorted({what for s in scenarios for what in s.leaks.unknown}),
        "left_out": left_out,
    }


def _reproduce(
    config: Config, scenarios: Sequence[Scenario], runs: Sequence[ScenarioRun], data_dir: Path
) -> dict[str, Any]:
    environment = read_environment(runs[0].workdir)
    names = {
        part.name
        for scenario in scenarios
        for part in (*scenario.experiment.train, *scenario.experiment.test)
    }
    hardware = [f"{n} x {device}" for device, n in Counter(environment["devices"]).items()]
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
    """Returns a cell as a row of matrix.csv, floats with all their digits."""
    row = {name: cell[name] for name in MATRIX_COLUMNS if name in cell and name != "majority"}
    for name in HEADLINE:
        scored = cell["metrics"][name]
        row |= {name: scored["value"]}
        row |= dict(zip((f"{name}_low", f"{name}_high"), scored["interval"], strict=True))
    row |= {f"majority_{name}": value for name, value in cell["majority"].items()}
    return {name: str(value) if isinstance(value, float) else value for name, value in row.items()}


def summary(found: Mapping[str, Any]) -> str:
    """Lays out balanced accuracies as a text table: a row per scenario, a column per test set."""
    marks = {"within": "", "cross_domain": "*", "cross_content": "+", None: "?"}
    rows = [["balanced accuracy", *map(set_name, found["test_sets"])]]
    for scenario in found["scenarios"]:
        row = [scenario["name"]]
        for cell in found["cells"]:
            if cell["scenario"] == scenario["name"] and not cell["variant"]:
                scored, oracle = cell["metrics"][METRIC], " oracle" if cell["oracle"] else ""
                value = number(scored["value"]) + marks[cell["relation"]]
                row.append(f"{value} {interval(scored['interval'])}{oracle}")
        rows.append(row)
    rows.append(["majority", *(number(one["majority"][METRIC]) for one in found["test_sets"])])
    notes = {
        f"{cell['dataset']} {cell['split']}: {cell['empty'] or cell['warning']}"
        for cell in found["cells"]
        if cell["empty"] or cell["warning"]
    }
    legend = "* unseen dataset, + unseen content, ? partly trained on, others: held-out people"
    lines = [results.align(rows), legend, *sorted(notes)]
    if found["over_sets"]:
        what = f"difference from '{found['baseline']}', mean over sets"
        rows, notes = [[what, "sets", "difference", "95 %", "p corrected"]], []
        for one in found["over_sets"]:
            shown = (number(one["difference"], signed=True), interval(one["interval"], signed=True))
            rows.append([one["scenario"], str(one["n_sets"]), *shown, p_value(one["p_corrected"])])
            why = f"no interval, so not in the mean of {one['scenario']}"
            notes += [f"{where}: {why}" for where in one["without"]]
        lines += ["", results.align(rows), *notes]
    return "\n".join(lines)
