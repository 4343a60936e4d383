"""Opens and checks the data of an experiment: the training, validation and test parts."""

import collections
import dataclasses
import difflib
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fer_jax import forms, storage
from fer_jax.config import (
    Config,
    default_data_dir,
    from_json,
    is_generator,
    read_config,
    read_environment,
    to_json,
)
from fer_jax.data import provenance
from fer_jax.data.audit.findings import (
    LEAKS,
    count_kinds,
    find_near_duplicates,
    identity_findings,
    leaks_in_words,
    pool_records,
)
from fer_jax.data.records import (
    Records,
    build_summary,
    built_datasets,
    is_feature_file,
    open_records,
    read_exclusions,
    without,
)
from fer_jax.errors import InputError, did_you_mean
from fer_jax.schema import UNKNOWN

MISSPELLED = 0.85  # similarity (difflib) of a name to that of a dataset, from which it is refused
CHECKPOINTS = "checkpoints"  # in a run's workdir
EXCLUSIONS_FILE = "exclusions.csv"  # a run's copy of its config.exclusions


@dataclasses.dataclass(frozen=True)
class Source:
    """One entry of `config.sources` or `config.test_sets`; parts are TFDS split expressions."""

    name: str  # of a built dataset, such as "demo/controlled" or "jaffe/folds"
    train: str = "train"  # the training part, such as "fold_0+fold_1"
    validation: str = "validation"  # the part that checkpoints are selected on
    test: str = "test"  # the part that `evaluate` scores
    weight: float = 0.0  # of the training images, relative to other sources; 0: as many as it has


def as_source(entry: str | Mapping[str, Any]) -> Source:
    """Turns a config's entry, a name or a block, into a `Source`, or raises InputError."""
    if isinstance(entry, str):
        return Source(entry)
    if not isinstance(entry, Mapping):
        raise InputError(f"a source must be a dataset's name or a block with one, got {entry!r}")
    defaults = {field.name: field.default for field in dataclasses.fields(Source)}
    for key, value in entry.items():
        if key not in defaults:
            raise InputError(f"a source has no field '{key}'{did_you_mean(key, defaults)}")
        kinds, what = ((int, float), "a number") if key == "weight" else ((str,), "a string")
        if not isinstance(value, kinds):
            raise InputError(f"the source's {key} must be {what}, got {value!r}")
    if "name" not in entry:
        raise InputError(f"a source has no name: {dict(entry)}")
    source = Source(**entry)
    if not 0 <= source.weight < float("inf"):
        raise InputError(f"the weight of '{source.name}' must be at least 0, got {source.weight}")
    return source


class Experiment(NamedTuple):
    """The data of an experiment; excluded records are removed from training and validation."""

    train: list[Records]
    validation: list[Records]
    test: list[Records]
    left_out: dict[str, int]  # "dataset split" -> how many records were excluded from it
    absent: list[str]  # test sets that are not built here
    task: str  # whose labels are used
    # What the network saw that the training starts from, as in provenance.py; {} if none is known.
    start: Mapping[str, Any] = types.MappingProxyType({})

    @property
    def parts(self) -> list[tuple[str, Records]]:
        """(part, its records with a label for the task) pairs; part is "train", ..."""
        return [
            (part, _labelled(records, self.task))
            for part in ("train", "validation", "test")
            for records in getattr(self, part)
        ]


def _labelled(records: Records, task: str) -> Records:
    return records.select(np.flatnonzero(records.labels(task) != UNKNOWN))


def open_experiment(
    config: Config, data_dir: Path, open_part: Callable[..., Records] = open_records
) -> Experiment:
    """Opens all datasets that a config names; `open_part` may be a cached `open_records`.

    Raises InputError if there is no source, a source is not built, no training record has a label
    for the task, a test set is misspelled or has no such split, or the exclusions cannot be read.
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
            found = open_part(source.name, split, data_dir, config.corrupt_records == "skip")
            kept, left_out = without(found, excluded)
            records.append(kept)
            if left_out:
                opened.left_out[f"{kept.name} {split}"] = left_out
    if not any(len(_labelled(records, config.task)) for records in opened.train):
        names = ", ".join(records.name for records in opened.train)
        raise InputError(
            f"no training record of {names} has a label for the task '{config.task}'; choose "
            "other config.sources, or another config.task"
        )
    built = built_datasets(data_dir)
    for source in [as_source(entry) for entry in config.test_sets]:
        if any(f"{label}/".startswith(f"{source.name}/") for label in built):
            opened.test.append(open_part(source.name, source.test, data_dir))
        elif close := difflib.get_close_matches(source.name, built, n=1, cutoff=MISSPELLED):
            raise InputError(
                f"test set '{source.name}' is not built in {data_dir}; did you mean '{close[0]}'? "
                "Otherwise build it, or leave it out of config.test_sets for now"
            )
        else:
            opened.absent.append(source.name)
    if is_generator(config):  # whose start has its own way
        return opened
    return opened._replace(start=_behind_start(config.features or config.init_from, data_dir))


def _behind_start(init_from: str, data_dir: Path) -> dict[str, Any]:
    """Returns what a classifier saw that a training starts from.

    {} for no start, and for Keras' weights, which saw ImageNet.
    """
    path = Path(init_from)
    if is_feature_file(path):
        return {"unknown": [f"what the model behind '{path.name}' was trained on"]}
    if path.is_file():
        path = path.parent
    if path.parent.name == CHECKPOINTS:
        path = path.parent
    if path.name == CHECKPOINTS:
        path = path.parent
    file = path / "config.json"
    if not init_from or not file.is_file():
        return {}
    if (path / CHECKPOINTS).is_dir():
        before = read_environment(path).get("start", {})
        trained = open_trained(read_config(path), data_dir, path)
        if trained is None:
            return provenance.merged(before, {"unknown": [f"whom '{path.name}' was trained on"]})
        parts = [*trained.train, *trained.validation]
        return provenance.merged(before, provenance.of_training(parts, data_dir))
    form: Any = {"saw?": forms.PROVENANCE}
    written = storage.read_json(file, "choose another config.init_from", form)
    if "config" not in written:
        return {}
    return written.get("saw") or {"unknown": [f"whom the export '{path.name}' was trained on"]}


class Leaks(NamedTuple):
    """What was found between the parts of an experiment without decoding images."""

    counts: dict[str, int]  # by kind of `LEAKS`
    seen: list[str]  # what the networks behind synthetic images saw of test sets, a sentence each
    unknown: list[str]  # what is not known of whom these networks saw

    def in_words(self) -> str:
        """Returns all leaks in one line."""
        return "; ".join([leaks_in_words(self.counts), *self.seen])


def find_leaks(experiment: Experiment, data_dir: Path) -> Leaks:
    """Compares identities, images byte by byte, and the people behind synthetic images."""
    counts = count_kinds(identity_findings(pool_records(experiment.parts)), LEAKS)
    learned = [*experiment.train, *experiment.validation]
    seen, unknown = provenance.behind(learned, experiment.test, data_dir, experiment.start)
    counts |= collections.Counter(one.role for one in seen)
    return Leaks(counts, [one.sentence for one in seen], unknown)


def check_leaks(leaks: Leaks, config: Config, prefix: str = "") -> None:
    """Refuses leaks, and unknown people, that a config does not allow; InputError.

    `prefix` begins the message and comes before the names of the fields, as in "run.".
    """
    field, verb = f"--config.{prefix}", "study" if prefix else "audit"
    if leaks.counts and not config.allow_leaks:
        raise InputError(
            f"the data leaks: {leaks.in_words()}; leave the records out ({field}exclusions=FILE) "
            f"that `fer-jax {verb} --write_exclusions=FILE` lists, or set "
            f"{field}allow_leaks=true"
        )
    if leaks.unknown and not config.allow_unknown_people:
        raise InputError(
            f"it is unknown whether people of the test sets are behind synthetic images: "
            f"{'; '.join(leaks.unknown)}; leave these datasets out, or accept it with "
            f"{field}allow_unknown_people=true, and the report will say so"
        )


def open_trained(config: Config, data_dir: Path, workdir: Path) -> Experiment | None:
    """Opens what a run was trained and validated on; prints the reason for None if it cannot."""
    kept = workdir / EXCLUSIONS_FILE
    trained_on = from_json(to_json(config))
    trained_on.test_sets, trained_on.init_from, trained_on.features = (), "", ""
    trained_on.exclusions = str(kept) if kept.is_file() else ""
    try:
        before = read_environment(workdir)
        for name, was in before.get("datasets", {}).items():
            if was.get("fingerprint") != build_summary(name, data_dir).get("fingerprint"):
                raise InputError(f"'{name}' is another build than the run was trained on")
        opened = open_experiment(trained_on, data_dir)
        if before.get("left_out", opened.left_out) != opened.left_out:
            raise InputError(f"'{kept}' does not leave out what was left out of the training")
        return opened._replace(start=before.get("start", {}))
    except InputError as error:
        print(f"not audited: the training data cannot be opened ({error})")
        return None


def leaks_into(trained: Experiment, test: Records, data_dir: Path, workdir: Path) -> dict[str, Any]:
    """Finds the leaks between a run's data and one test set, as `find_leaks` does.

    Returns the fields of `Leaks`, and "near_duplicates", of the audit in the workdir if it was of
    these images, else None; those that it found are counted as images.
    """
    # Validation data count as training data: leaks between these two are not the test set's.
    learned = [*trained.train, *trained.validation]
    leaks = find_leaks(trained._replace(train=learned, validation=[], test=[test]), data_dir)
    near = find_near_duplicates(workdir, trained._replace(test=[test]).parts)
    if near and near["found"]:
        leaks.counts["image"] = leaks.counts.get("image", 0) + near["found"]
    return leaks._asdict() | {"near_duplicates": near}


def training_data_dir(workdir: Path) -> Path:
    """Returns a run's data folder, or the default one if its environment.json is missing."""
    trained_from = read_environment(workdir).get("data_dir")
    return Path(trained_from) if trained_from else default_data_dir()
