"""A study's scenarios and runs: read from its config, opened, and found fit to be trained."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_jax import checkpoints
from fer_jax.config import (
    Config,
    check_config,
    check_fields,
    default_study,
    fields,
    from_json,
    to_json,
)
from fer_jax.data.audit.findings import leaks_in_words
from fer_jax.data.experiment import Experiment, Source, allowed_leaks, as_source, open_experiment
from fer_jax.data.records import dataset_directory, labelled_rows, open_records
from fer_jax.data.synthetic import check_teachers
from fer_jax.errors import InputError, did_you_mean
from fer_jax.fields import STUDY
from fer_jax.study.distances import Learned, learned
from fer_jax.training import start, validation
from fer_jax.training.log import read_metrics

# What a scenario says of itself beside fields of `run`.
OWN_FIELDS = ("name", "sources", "oracle")
# Fields of `run` that are the study's to set.
SET_BY_STUDY = ("sources", "test_sets", "seed")
EPOCH_FIELDS = ("num_epochs", "validate_every_epochs", "schedule.warmup_epochs")
# Variant of the predictions: what `evaluate` must be told to write it.
VARIANTS: dict[str, dict[str, Any]] = {
    "label_shift": {"label_shift": True},
    "adapted": {"adapt": True},
}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A mixture of sources, opened.

    Attributes:
      name: as the config says.
      config: of its runs, but for the seed.
      experiment: its data.
      learned: what its training and validation records are about.
      num_images: labelled ones that are trained on.
      num_steps: of each run.
      leaks: between its sides, by kind.
      oracle: it says of itself that it was chosen with data of the test sets' kind.
    """

    name: str
    config: Config
    experiment: Experiment
    learned: Learned
    num_images: int
    num_steps: int
    leaks: dict[str, int]
    oracle: bool

    @property
    def allows_leaks(self) -> bool:
        """An oracle has seen the test sets' kind, and says so."""
        return self.oracle or self.config.allow_leaks


@dataclasses.dataclass(frozen=True)
class Run:
    """A scenario with a seed, and where it goes."""

    scenario: Scenario
    config: Config
    workdir: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.workdir.name


def check_study(config: Config) -> Config:
    """Refuses a config that no study can have. Seeds typed as text become numbers.

    Raises:
      InputError: names the field or the scenario.
    """
    if "scenarios" not in config:
        raise InputError("this is one run's config; train it with `fer-jax train`")
    check_fields(config, STUDY)
    check_config(config.run)
    for name in SET_BY_STUDY:
        if config.run[name] != default_study().run[name]:
            raise InputError(f"config.run.{name} is set by the scenarios, test_sets and seeds")
    seeds = [int(s) if isinstance(s, str) and s.isdecimal() else s for s in config.seeds]
    if not seeds or any(type(s) is not int or s < 0 for s in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"config.seeds are different whole numbers from 0, not {config.seeds!r}")
    config.seeds = tuple(seeds)
    if not config.scenarios:
        raise InputError("config.scenarios is empty; name at least one mixture of sources")
    names = []
    for block in config.scenarios:
        names.append(_check_scenario(block))
        scenario_config(config, block)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"two scenarios have the name '{twice[0]}'")
    if config.baseline and config.baseline not in names:
        hint = did_you_mean(config.baseline, names)
        raise InputError(f"config.baseline '{config.baseline}' is no scenario{hint}")
    if not config.test_sets:
        raise InputError("config.test_sets is empty; name at least one dataset to test on")
    tested = [(source.name, source.test) for source in map(as_source, config.test_sets)]
    for one in tested:
        if tested.count(one) > 1:
            raise InputError(f"config.test_sets names {one[0]} {one[1]} twice")
    for name in config.variants:
        if name not in VARIANTS:
            raise InputError(f"config.variants: no '{name}'{did_you_mean(str(name), VARIANTS)}")
    return config


def _check_scenario(block: Any) -> str:
    """Its name."""
    name = block.get("name") if isinstance(block, Mapping) else None
    # It is a folder's name, and what follows its dot is the seed.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w+-]*", name):
        raise InputError(
            f"a scenario is a block with a name of letters, digits, '_', '+' and '-': {block!r}"
        )
    if not isinstance(block.get("oracle", False), bool):
        raise InputError(f"scenario '{name}': oracle is True or False, not {block['oracle']!r}")
    if not block.get("sources"):
        raise InputError(f"scenario '{name}' names no sources")
    return name


def scenario_config(config: Config, block: Mapping[str, Any]) -> Config:
    """The training config of a scenario, but for the seed.

    Raises:
      InputError: the scenario changes a field that does not exist, or to what it cannot be.
    """
    own = from_json(to_json(config.run))
    own.sources, own.test_sets = tuple(block["sources"]), config.test_sets
    known = dict(fields(config.run))
    where = f"scenario '{block['name']}'"
    for field, value in block.items():
        if field in OWN_FIELDS:
            continue
        if field not in known or field in SET_BY_STUDY:
            changeable = [name for name in known if name not in SET_BY_STUDY]
            raise InputError(f"{where}: no field '{field}'{did_you_mean(field, changeable)}")
        *blocks, last = field.split(".")
        try:
            functools.reduce(lambda place, name: place[name], blocks, own)[last] = value
        except TypeError as error:
            kind = type(known[field]).__name__
            raise InputError(f"{where}: {field} is of type {kind}, not {value!r}") from error
    try:
        for entry in own.sources:
            as_source(entry)
        return check_config(own)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def baseline_of(config: Config) -> str:
    """The name of the scenario that the others are compared with."""
    return config.baseline or config.scenarios[0]["name"]


def tested_on(config: Config) -> list[Source]:
    """The test sets."""
    return [as_source(entry) for entry in config.test_sets]


def open_scenarios(config: Config, data_dir: Path) -> list[Scenario]:
    """Opens everything that a study names, before anything is trained.

    Raises:
      InputError: a dataset or a split that is not there, a test set without a label, too few
        images for a batch, or a teacher that saw the people of a test set.
    """
    for source in tested_on(config):
        dataset_directory(source.name, data_dir)
    # Most parts are in several scenarios.
    opening = functools.cache(open_records)
    opened = []
    for block in config.scenarios:
        own = scenario_config(config, block)
        try:
            experiment = open_experiment(own, data_dir, opening)
            sizes = [len(labelled_rows(part, config.run.task)) for part in experiment.train]
            for part in (*experiment.validation, *experiment.test):
                labelled_rows(part, config.run.task)
            if sum(sizes) < own.batch_size:
                raise InputError(
                    f"run.batch_size {own.batch_size} is more than the {sum(sizes)} training images"
                )
            check_teachers(
                experiment.train,
                experiment.test,
                data_dir,
                allow=own.allow_leaks or block.get("oracle", False),
            )
        except InputError as error:
            raise InputError(f"scenario '{block['name']}': {error}") from error
        opened.append((block, own, experiment, sum(sizes)))
    steps = {block["name"]: size // own.batch_size for block, own, _, size in opened}
    return [
        _scenario(
            block,
            _with_epochs(own, steps[baseline_of(config)] / steps[block["name"]])
            if config.equal_steps
            else own,
            experiment,
            size,
        )
        for block, own, experiment, size in opened
    ]


def _with_epochs(config: Config, factor: float) -> Config:
    """The config with epochs that are so many times as long."""
    for field in EPOCH_FIELDS:
        *blocks, last = field.split(".")
        place = functools.reduce(lambda inner, name: inner[name], blocks, config)
        place[last] = place[last] * factor
    return config


def _scenario(
    block: Mapping[str, Any], config: Config, experiment: Experiment, num_images: int
) -> Scenario:
    oracle = block.get("oracle", False)
    config.allow_leaks = config.allow_leaks or oracle
    return Scenario(
        name=block["name"],
        config=config,
        experiment=experiment,
        learned=learned(experiment.train, experiment.validation, config.task),
        num_images=num_images,
        num_steps=max(1, round(config.num_epochs * (num_images // config.batch_size))),
        leaks=allowed_leaks(experiment.sides, allow=True),
        oracle=oracle,
    )


def runs_of(config: Config, scenarios: Sequence[Scenario], workdir: Path) -> list[Run]:
    """Every run of a study, in the order in which they are numbered."""
    found = []
    for scenario in scenarios:
        for seed in config.seeds:
            own = from_json(to_json(scenario.config))
            own.seed = seed
            found.append(Run(scenario, own, workdir / "runs" / f"{scenario.name}.seed_{seed}"))
    return found


def steps_done(workdir: Path) -> int:
    """The step of a run's last checkpoint; 0 before the first."""
    return max(checkpoints.finished_steps(workdir), default=0)


def history_of(workdir: Path, metric: str) -> list[dict[str, float]]:
    """The validations of a run, oldest first, as far as its checkpoints go."""
    return [
        {name: float("nan") if value is None else value for name, value in row.items()}
        for row in read_metrics(workdir)
        if metric in row and row["step"] <= steps_done(workdir)
    ]


def is_finished(run: Run) -> bool:
    """Whether there is nothing left to train."""
    history = history_of(run.workdir, run.config.selection_metric)
    done = steps_done(run.workdir)
    return validation.is_over(run.config, history, done, run.scenario.num_steps)


def check_runs(runs: Sequence[Run], data_dir: Path) -> None:
    """Refuses a study whose runs, as far as they got, are of another config or other data.

    Raises:
      InputError: names the run.
    """
    for run in runs:
        start.check_continues(run.config, run.workdir, data_dir)


def check_leaks(scenarios: Sequence[Scenario]) -> None:
    """Refuses a study that would be trained on what it is tested on.

    Raises:
      InputError: names the first scenario that leaks, and what may be done.
    """
    for scenario in scenarios:
        if scenario.leaks and not scenario.allows_leaks:
            raise InputError(
                f"scenario '{scenario.name}' leaks: {leaks_in_words(scenario.leaks)}; leave "
                "records out (`--write_exclusions=FILE` lists them, --config.run.exclusions=FILE "
                "reads them), or say --config.run.allow_leaks=true"
            )
