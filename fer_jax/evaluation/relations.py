"""How a test set relates to the training data: new people, new content, or another source.

Everything is read from the records' own columns (`source`, `content`, `subject_id`) and images,
never from the names of datasets.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.config import Config
from fer_jax.data.experiment import as_source
from fer_jax.data.records import Records, labelled_rows, open_records
from fer_jax.evaluation import baselines
from fer_jax.evaluation.predictions import Table, file_name, read_test_sets

RELATIONS = ("within", "cross_content", "cross_domain")
KNOWN_PEOPLE = "known_people"
# Datasets of the web share some images by chance; a copy shares more of them than this.
COPIED_SHARE = 0.05
COPIED = ("source", "content", "subject_id")


@dataclasses.dataclass(frozen=True)
class Learned:
    """A description of the data that a model was trained and selected on."""

    sources: frozenset[str]  # of the training records
    places: frozenset[tuple[str, str]]  # (source, content) of the training records
    chosen_on: frozenset[tuple[str, str]]  # (source, content) of the validation records
    subjects: frozenset[str]  # of the training records, where people are named
    records: frozenset[str]  # record_id of all training and validation records
    # The image (`image_digest`) of every record of the training datasets, also of their test
    # parts, and its (source, content, subject_id).
    images: Mapping[int, tuple[str, str, str]] = dataclasses.field(default_factory=dict, repr=False)


def describe_training(
    train: Sequence[Records],
    validation: Sequence[Records],
    task: str,
    whole: Sequence[Records] = (),
) -> Learned:
    """Describes training and validation parts; unlabelled records do not count.

    `whole` are the datasets that they are parts of, from `open_whole`, in which copies are found.
    """

    def values(parts: Iterable[Records], *columns: str) -> set[Any]:
        found = set()
        for part in parts:
            rows = labelled_rows(part, task)
            found |= set(zip(*(part.columns[name][rows].tolist() for name in columns), strict=True))
        return found

    places = values(train, "source", "content")
    return Learned(
        sources=frozenset(source for source, _ in places),
        places=frozenset(places),
        chosen_on=frozenset(values(validation, "source", "content")),
        subjects=frozenset(who for (who,) in values(train, "subject_id") if who),
        records=frozenset(one for (one,) in values([*train, *validation], "record_id")),
        images={
            digest: (source, content, who)
            for part in whole
            for digest, source, content, who in zip(
                *(part.columns[name].tolist() for name in ("image_digest", *COPIED)), strict=True
            )
        },
    )


def open_whole(
    config: Config, data_dir: Path, open_part: Callable[..., Records] = open_records
) -> list[Records]:
    """Opens all splits of each dataset that a config trains on."""
    names = dict.fromkeys(as_source(entry).name for entry in config.sources)
    skip = config.corrupt_records == "skip"
    return [open_part(name, "all", data_dir, skip) for name in names]


def as_trained(of: Learned, records: Records) -> Table:
    """Returns a test set's columns; of a copy of a training dataset, those of the original.

    A dataset that was built again under another name has other sources and people, but the same
    images.
    """
    known = [of.images.get(digest) for digest in records.columns["image_digest"].tolist()]
    copied = np.asarray([one is not None for one in known])
    if copied.mean() <= COPIED_SHARE:
        return records.columns
    own = zip(*(records.columns[name].tolist() for name in COPIED), strict=True)
    values = zip(*(one or other for one, other in zip(known, own, strict=True)), strict=True)
    return records.columns | dict(zip(COPIED, map(np.asarray, values), strict=True))


def _places(table: Table) -> set[tuple[str, str]]:
    return set(zip(table["source"].tolist(), table["content"].tolist(), strict=True))


def relation(of: Learned, table: Table) -> str | None:
    """Returns how a test set relates to the training data.

    "within": held-out people of the same sources and content groups; "cross_content": people of
    the same sources with content groups that are all new; "cross_domain": other sources alone,
    whatever their content; "known_people": all people in it were trained on (a leak that was
    allowed); None where it is partly one and partly another.
    """
    tested = _places(table)
    sources = {source for source, _ in tested}
    people = set(table["subject_id"].tolist()) - {""}
    if people & of.subjects:
        return KNOWN_PEOPLE if people <= of.subjects and (table["subject_id"] != "").all() else None
    if not sources & of.sources:
        return "cross_domain"
    if not sources <= of.sources:
        return None
    if tested <= of.places:
        return "within"
    new = not tested & of.places and all(content for _, content in tested)
    return "cross_content" if new else None


def is_oracle(of: Learned, table: Table) -> bool:
    """Returns whether a model was selected with data of the test set's kind.

    That is: images of the test set itself were trained or selected on, or the checkpoint was
    selected on a source and content of the test set's that the training data lacked.
    """
    return bool(
        _places(table) & (of.chosen_on - of.places) or set(table["record_id"].tolist()) & of.records
    )


def of_run(workdir: Path, classes: Sequence[str]) -> Callable[[Table], str | None]:
    """Returns a function from a predictions table of a run to its relation.

    It is what `evaluate` found in the training data, else what the sources and content groups of
    the run's training_labels.csv say; None where that is not one of `RELATIONS`.
    """
    found = read_test_sets(workdir)
    places = frozenset(baselines.read(workdir, classes) or ())
    nothing: frozenset[Any] = frozenset()
    known = Learned(frozenset(s for s, _ in places), places, nothing, nothing, nothing)

    def related(table: Table) -> str | None:
        name = file_name(str(table["dataset"][0]), str(table["split"][0]))
        kind = found.get(name, {}).get("relation", relation(known, table) if places else None)
        return kind if kind in RELATIONS else None

    return related
