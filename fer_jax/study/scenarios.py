"""A study's scenarios and runs: read from its config, opened and checked."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import checkpoints, forms, storage
from fer_jax.config import (
    Config,
    check_config,
    check_fields,
    default_study,
    fields,
    from_json,
    to_json,
)
from fer_jax.data import experiment as data
from fer_jax.data.experiment import (
    Experiment,
    Leaks,
    Source,
    as_source,
    find_leaks,
    open_experiment,
)
from fer_jax.data.records import Records, dataset_directory, labelled_rows, open_records
from fer_jax.errors import InputError, did_you_mean
from fer_jax.evaluation.relations import Learned, describe_training, open_whole
from fer_jax.fields import STUDY
from fer_jax.training import validation

# Fields of a scenario that are not fields of `run`.
OWN_FIELDS = ("name", "sources", "oracle")
# Fields of `run` that the study sets.
SET_BY_STUDY = ("sources", "test_sets", "seed")
EPOCH_FIELDS = ("num_epochs", "validate_every_epochs", "schedule.warmup_epochs")
# Variant of the predictions: the arguments of `evaluate` that write it.
VARIANTS: dict[str, dict[str, Any]] = {
    "label_shift": {"label_shift": True},
    "adapted": {"adapt": True},
}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A mixture of datasets, opened."""

    name: str
    config: Config  # of its runs, without the seed; an oracle allows leaks
    experiment: Experiment
    learned: Learned
    num_images: int  # labelled ones, for training
    num_steps: int  # of each run
    leaks: Leaks  # between its splits
    oracle: bool  # whether it is marked as selected with data of the test sets' kind


@dataclasses.dataclass(frozen=True)
class ScenarioRun:
    """A scenario with a seed, and its workdir."""

    scenario: Scenario
    config: Config
    workdir: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.workdir.name


def check_study(config: Config) -> Config:
    """Refuses a study's config that is not valid; seeds that were typed as text become numbers."""
    if "scenarios" not in config:
        raise InputError("this is one run's config; train it with `fer-jax train`")
    check_fields(config, STUDY)
    check_config(config.run)
    for name in SET_BY_STUDY:
        if config.run[name] != default_study().run[name]:
            raise InputError(f"config.run.{name} is set by the scenarios, test_sets and seeds")
    seeds = [int(s) if isinstance(s, str) and s.isdecimal() else s for s in config.seeds]
    if not seeds or any(type(s) is not int or s < 0 for s in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(
            f"config.seeds must be distinct non-negative integers, got {config.seeds!r}"
        )
    config.seeds = tuple(seeds)
    if not config.scenarios:
        raise InputError("config.scenarios is empty; name at least one mixture of datasets")
    names = [_check_scenario(config, block) for block in config.scenarios]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two scenarios have the name '{twice[0]}'")
    if config.baseline and config.baseline not in names:
        hint = did_you_mean(config.baseline, names)
        raise InputError(f"config.baseline: unknown scenario '{config.baseline}'{hint}")
    if not config.test_sets:
        raise InputError("config.test_sets is empty; name at least one dataset to test on")
    tested = [(source.name, source.test) for source in tested_on(config)]
    for one in tested:
        if tested.count(one) > 1:
            raise InputError(f"config.test_sets names {one[0]} {one[1]} twice")
    for name in config.variants:
        if name not in VARIANTS:
            raise InputError(
                f"config.variants: unknown '{name}'{did_you_mean(str(name), VARIANTS)}"
            )
    return config


def _check_scenario(config: Config, block: Any) -> str:
    name = block.get("name") if isinstance(block, Mapping) else None
    # The name is part of a folder's name, in which a dot comes before the seed.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9+][\w+-]*", name):
        raise InputError(
            f"a scenario must have a name of letters, digits, '_', '+' and '-', got {block!r}"
        )
    if not isinstance(block.get("oracle", False), bool):
        raise InputError(
            f"scenario '{name}': oracle must be True or False, got {block['oracle']!r}"
        )
    if not block.get("sources"):
        raise InputError(f"scenario '{name}' names no sources")
    scenario_config(config, block)
    return name


def scenario_config(config: Config, block: Mapping[str, Any]) -> Config:
    """Returns the training config of a scenario, without the seed; checks its fields."""
    own = from_json(to_json(config.run))
    own.sources, own.test_sets = tuple(block["sources"]), config.test_sets
    known = dict(fields(config.run))
    where = f"scenario '{block['name']}'"
    for field, value in block.items():
        if field in OWN_FIELDS:
            continue
        if field not in known or field in SET_BY_STUDY:
            changeable = [name for name in known if name not in SET_BY_STUDY]
            raise InputError(f"{where}: unknown field '{field}'{did_you_mean(field, changeable)}")
        *blocks, last = field.split(".")
        functools.reduce(lambda place, name: place[name], blocks, own)[last] = value
    try:
        for entry in own.sources:
            as_source(entry)
        return check_config(own)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def baseline_of(config: Config) -> str:
    """Returns the name of the scenario that the others are compared with."""
    return config.baseline or config.scenarios[0]["name"]


def tested_on(config: Config) -> list[Source]:
    """Returns the test sets."""
    return [as_source(entry) for entry in config.test_sets]


def open_scenarios(config: Config, data_dir: Path) -> list[Scenario]:
    """Opens all data of a study.

    InputError if a dataset or a split is missing, a test set has no label, a scenario has too few
    images for a batch, or two test sets have images in common.
    """
    for source in tested_on(config):
        dataset_directory(source.name, data_dir)
    # Most parts are in several scenarios.
    cached_open = functools.cache(open_records)
    opened = []
    for block in config.scenarios:
        own = scenario_config(config, block)
        try:
            experiment = open_experiment(own, data_dir, cached_open)
            sizes = [len(labelled_rows(part, config.run.task)) for part in experiment.train]
            for part in (*experiment.validation, *experiment.test):
                labelled_rows(part, config.run.task)
            if sum(sizes) < own.batch_size:
                raise InputError(
                    f"run.batch_size {own.batch_size} exceeds the {sum(sizes)} training images"
                )
            whole = open_whole(own, data_dir, cached_open)
        except InputError as error:
            raise InputError(f"scenario '{block['name']}': {error}") from error
        learned = describe_training(experiment.train, experiment.validation, own.task, whole)
        opened.append((block, own, experiment, learned, sum(sizes)))
    _check_overlap(opened[0][2].test)
    steps = {block["name"]: size // own.batch_size for block, own, *_, size in opened}
    for block, own, *_ in opened if config.equal_steps else ():
        factor = steps[baseline_of(config)] / steps[block["name"]]
        epochs = {name: value for name, value in fields(own) if name in EPOCH_FIELDS}
        own.update_from_flattened_dict({name: value * factor for name, value in epochs.items()})
    scenarios = []
    for block, own, experiment, learned, num_images in opened:
        oracle = block.get("oracle", False)
        own.allow_leaks = own.allow_leaks or oracle
        scenario = Scenario(
            name=block["name"],
            config=own,
            experiment=experiment,
            learned=learned,
            num_images=num_images,
            num_steps=max(1, round(own.num_epochs * (num_images // own.batch_size))),
            leaks=find_leaks(experiment, data_dir),
            oracle=oracle,
        )
        scenarios.append(scenario)
    return scenarios


def _check_overlap(tests: Sequence[Records]) -> None:
    """Refuses test sets with images in common, which means over sets would count twice."""
    for one, other in itertools.combinations(tests, 2):
        if count := len(np.intersect1d(one.columns["record_id"], other.columns["record_id"])):
            raise InputError(
                f"config.test_sets: {one.name} {one.split} and {other.name} {other.split} have "
                f"{count} images in common; name parts that do not overlap"
            )


def runs_of(config: Config, scenarios: Sequence[Scenario], workdir: Path) -> list[ScenarioRun]:
    """Returns every run of a study, in the order of their numbers."""
    found = []
    for scenario in scenarios:
        for seed in config.seeds:
            own = from_json(to_json(scenario.config))
            own.seed = seed
            folder = f"{scenario.name}.seed_{seed}"
            found.append(ScenarioRun(scenario, own, workdir / "runs" / folder))
    return found


def steps_done(workdir: Path) -> int:
    """Returns the step of a run's last checkpoint; 0 before the first."""
    return max(checkpoints.finished_steps(workdir), default=0)


def history_of(workdir: Path, metric: str) -> list[dict[str, float]]:
    """Returns a run's validations up to its last checkpoint, oldest first."""
    last = steps_done(workdir)
    return [
        {name: float("nan") if value is None else value for name, value in row.items()}
        for row in storage.read_json_lines(workdir / "metrics.jsonl", forms.METRICS_ROW)
        if metric in row and row["step"] <= last
    ]


def is_finished(run: ScenarioRun) -> bool:
    """Returns whether there is nothing left to train."""
    history = history_of(run.workdir, run.config.selection_metric)
    done = steps_done(run.workdir)
    reason = validation.reason_to_stop(run.config, history)
    return validation.is_over(history, done, run.scenario.num_steps, reason)


def check_leaks(scenarios: Sequence[Scenario]) -> None:
    """Raises InputError for a scenario that leaks, unless that is allowed."""
    for scenario in scenarios:
        try:
            data.check_leaks(scenario.leaks, scenario.config, "run.")
        except InputError as error:
            raise InputError(f"scenario '{scenario.name}': {error}") from error
