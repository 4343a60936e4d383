"""The data of an experiment: a config's training, validation and test parts, opened and checked."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fer_jax.config import Config, default_data_dir, from_json, to_json
from fer_jax.data.audit.findings import (
    LEAKS,
    count_kinds,
    identity_findings,
    leaks_in_words,
    pool,
)
from fer_jax.data.records import (
    Records,
    built_datasets,
    only,
    open_records,
    read_exclusions,
    without,
)
from fer_jax.errors import InputError, did_you_mean
from fer_jax.schema import UNKNOWN

EXCLUSIONS_FILE = "exclusions.csv"  # a run's copy of its config.exclusions


@dataclasses.dataclass(frozen=True)
class Source:
    """One entry of `config.sources` or `config.test_sets`.

    Attributes:
      name: a prepared dataset, such as "demo/controlled" or "jaffe/folds".
      train: TFDS split expression of the training part, such as "fold_0+fold_1".
      validation: split expression of the part that checkpoints are selected on.
      test: split expression that `evaluate` scores.
      weight: share of the training images, relative to the other sources; 0 means "as many
        as it has".
    """

    name: str
    train: str = "train"
    validation: str = "validation"
    test: str = "test"
    weight: float = 0.0


def as_source(entry: str | Mapping[str, Any]) -> Source:
    """A config's entry, a name or a block, as a `Source`.

    Raises:
      InputError: the block has a field that `Source` does not have, or no name.
    """
    if isinstance(entry, str):
        return Source(entry)
    if not isinstance(entry, Mapping):
        raise InputError(f"a source is a dataset's name or a block with one, not {entry!r}")
    defaults = {field.name: field.default for field in dataclasses.fields(Source)}
    for key, value in entry.items():
        if key not in defaults:
            raise InputError(f"a source has no field '{key}'{did_you_mean(key, defaults)}")
        kinds, what = ((int, float), "a number") if key == "weight" else ((str,), "a text")
        if not isinstance(value, kinds):
            raise InputError(f"the source's {key} must be {what}, not {value!r}")
    if "name" not in entry:
        raise InputError(f"a source without a name: {dict(entry)}")
    source = Source(**entry)
    if not 0 <= source.weight < float("inf"):
        raise InputError(f"the weight of '{source.name}' must be at least 0, not {source.weight}")
    return source


class Experiment(NamedTuple):
    """The data of an experiment as `train` and `evaluate` use it.

    Attributes:
      train: opened training parts, one per source, without what is excluded.
      validation: the validation parts likewise.
      test: the test sets, whole.
      left_out: "dataset split" -> how many records `config.exclusions` took out of it.
      absent: test sets that are not built here.
      task: records without a label for it are in no one's way.
    """

    train: list[Records]
    validation: list[Records]
    test: list[Records]
    left_out: dict[str, int]
    absent: list[str]
    task: str

    @property
    def sides(self) -> list[tuple[str, Records]]:
        """(side, the labelled records) pairs."""
        return [
            (side, only(records, np.flatnonzero(records.labels(self.task) != UNKNOWN)))
            for side in ("train", "validation", "test")
            for records in getattr(self, side)
        ]


def open_experiment(
    config: Config, data_dir: Path, opening: Callable[..., Records] = open_records
) -> Experiment:
    """Opens everything that a config names.

    Args:
      config: of the experiment.
      data_dir: where the datasets are.
      opening: `open_records`, or what remembers what it opened before.

    Raises:
      InputError: no source, one that is not built, a test set without such a split, or
        exclusions that cannot be read.
    """
    sources = [as_source(entry) for entry in config.sources]
    if not sources:
        raise InputError("config.sources is empty; name at least one dataset to train on")
    excluded = read_exclusions(config.exclusions)
    opened = Experiment([], [], [], {}, [], config.task)
    for source in sources:
        for split, records in (
            (source.train, opened.train),
            (source.validation, opened.validation),
        ):
            found = opening(source.name, split, data_dir, config.corrupt_records == "skip")
            kept, left_out = without(found, excluded)
            records.append(kept)
            if left_out:
                opened.left_out[f"{kept.name} {split}"] = left_out
    built = built_datasets(data_dir)
    for source in [as_source(entry) for entry in config.test_sets]:
        if any(f"{label}/".startswith(f"{source.name}/") for label in built):
            opened.test.append(opening(source.name, source.test, data_dir))
        else:
            opened.absent.append(source.name)
    return opened


def allowed_leaks(parts: Sequence[tuple[str, Records]], *, allow: bool) -> dict[str, int]:
    """The identity part of the audit, before a training starts.

    Args:
      parts: (side, records) pairs, what is excluded already left out.
      allow: `config.allow_leaks`.

    Returns:
      Leaks by kind; empty unless they are allowed.

    Raises:
      InputError: something leaks, and that is not allowed.
    """
    counts = count_kinds(identity_findings(pool(parts)), LEAKS)
    if counts and not allow:
        raise InputError(
            f"the data leaks: {leaks_in_words(counts)}; look with `fer-jax audit --config=...`, "
            "leave records out with --config.exclusions=FILE, or say --config.allow_leaks=true"
        )
    return counts


def open_trained(config: Config, data_dir: Path, workdir: Path) -> Experiment | None:
    """What a run was trained and validated on; None, with the reason printed, if it is not here.

    Args:
      config: of the run.
      data_dir: where the datasets are.
      workdir: of the run; holds the exclusions as they were.
    """
    kept = workdir / EXCLUSIONS_FILE
    learned_on = from_json(to_json(config))
    learned_on.test_sets = ()
    learned_on.exclusions = str(kept) if kept.is_file() else ""
    try:
        return open_experiment(learned_on, data_dir)
    except InputError as error:
        print(f"not audited: what was trained on cannot be opened ({error})")
        return None


def leaks_into(trained: Experiment, test: Records) -> dict[str, int]:
    """Leaks by kind between what a run learned on and one test set."""
    scored = only(test, np.flatnonzero(test.labels(trained.task) != UNKNOWN))
    # One word for what is learned on: what leaks within it is not this set's leak.
    sides = [("train", records) for _, records in trained.sides]
    return count_kinds(identity_findings(pool([*sides, ("test", scored)])), LEAKS)


def training_data_dir(workdir: Path) -> Path:
    """Where a run trained from, or the default data folder if its environment.json is missing."""
    file = workdir / "environment.json"
    if not file.is_file():
        return default_data_dir()
    return Path(json.loads(file.read_text())["data_dir"])
