"""Splits records by a pure function of their group, never of their frame.

The group is the person within a namespace (so that two datasets of the same people agree), else
the clip, else the image itself.
"""

import argparse
import collections
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fer_jax.errors import InputError, did_you_mean

PROTOCOLS = {
    "grouped": "80/10/10 % of the people (else clips, else images), by a hash of their names",
    "folds": "k folds of different people (else clips, else images)",
    "given": "the official training, validation and test parts of the collection",
    "content": "content groups named for each part",
}
PARTS = ("train", "validation", "test")
TOO_FEW = (
    "there are too few people (where none are named: clips or images); add some, or use the "
    "protocol 'folds'"
)
DEFAULT_FOLDS = 5
# The published protocol of the laboratory videos.
PUBLISHED_PARTS = "train=food_market;validation=cosmetics_fashion;test=car_tech"

# The names of the parts in published collections.
_GIVEN = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "publictest": "validation",
    "test": "test",
    "testing": "test",
    "privatetest": "test",
}


def group_key(namespace: str, *, subject: str, clip: str, record: str) -> str:
    """Returns the key of a record's group: its subject, else its clip, else the record itself."""
    for kind, name in (("subject", subject), ("clip", clip), ("record", record)):
        if name:
            return f"{namespace}/{kind}/{name}"
    raise ValueError("a record without an id")


def position(key: str) -> float:
    """Maps a key to [0, 1): the first 64 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def grouped(key: str) -> str:
    """Assigns 80 % of the groups to train, 10 % to validation, 10 % to test, by position."""
    place = position(key)
    return "train" if place < 0.8 else "validation" if place < 0.9 else "test"


def folds(keys: Iterable[str], count: int | None) -> dict[str, str]:
    """Assigns groups to folds in turn, in the order of their positions; None: one fold per group.

    Returns key -> "fold_0" ... "fold_{k-1}"; sizes differ by at most one group. Raises InputError
    with fewer groups than folds, or fewer than two folds.
    """
    ordered = sorted(set(keys), key=lambda key: (position(key), key))
    count = len(ordered) if count is None else count
    if not 2 <= count <= len(ordered):
        hint = f"choose 2 to {len(ordered)}" if len(ordered) > 1 else "folds need at least 2 groups"
        raise InputError(f"{len(ordered)} groups cannot be divided into {count} folds; {hint}")
    return {key: f"fold_{index % count}" for index, key in enumerate(ordered)}


def given(name: str) -> str:
    """Maps a published collection's name of a split to one of `PARTS`, or raises InputError."""
    normal = name.strip().lower().replace("_", "").replace(" ", "")
    if normal not in _GIVEN:
        raise InputError(f"unknown split '{name}'{did_you_mean(normal, _GIVEN)}")
    return _GIVEN[normal]


def content(group: str, parts: Mapping[str, Sequence[str]]) -> str:
    """Returns the part that has a content group, or raises InputError."""
    for part, groups in parts.items():
        if group in groups:
            return part
    known = [name for groups in parts.values() for name in groups]
    raise InputError(f"content '{group}' belongs to no split{did_you_mean(group, known)}")


def check_parts(
    assigned: Iterable[str],
    required: Sequence[str],
    cause: str = TOO_FEW,
) -> None:
    """Raises InputError with the cause if a required part of a split is empty."""
    present = set(assigned)
    if empty := [part for part in required if part not in present]:
        raise InputError(f"{' and '.join(empty)} would be empty: {cause}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the protocols to a builder's."""
    group = parser.add_argument_group("splits")
    group.add_argument("--folds", default=str(DEFAULT_FOLDS), help="number, or 'loso'")
    group.add_argument(
        "--content_parts",
        default=PUBLISHED_PARTS,
        help="content groups of each part, for the protocol 'content'",
    )


def recorded(protocol: str, options: argparse.Namespace) -> dict[str, str]:
    """Returns the options that the protocol reads, for the dataset's settings."""
    read = {"folds": ("folds",), "content": ("content_parts",)}.get(protocol, ())
    return {name: getattr(options, name) for name in read}


def assign(
    rows: Sequence[dict[str, Any]], protocol: str, namespace: str, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Assigns every row to a split of `protocol`, one of `PROTOCOLS`.

    `rows` have `record_id` and, where known, `subject_id`, `clip_id`, `content`, and `_given` (the
    collection's own name of the split). Returns rows with "split", and (record_id, reason) of those
    that belong to none. Raises InputError with fewer groups than folds, or an invalid option.
    """
    if not rows:
        return [], []
    keys = [
        group_key(
            namespace,
            subject=row.get("subject_id", ""),
            clip=row.get("clip_id", ""),
            record=row["record_id"],
        )
        for row in rows
    ]
    refused: list[tuple[str, str]] = []
    assigned: list[str | None]
    if protocol == "grouped":
        assigned = [grouped(key) for key in keys]
    elif protocol == "folds":
        fold_of = folds(keys, _fold_count(options.folds))
        assigned = [fold_of[key] for key in keys]
    else:
        assigned = []
        parts = content_parts(options.content_parts)
        for row in rows:
            try:
                if protocol == "given":
                    assigned.append(given(row.get("_given", "")))
                else:
                    assigned.append(content(row.get("content", ""), parts))
            except InputError as error:
                assigned.append(None)
                refused.append((row["record_id"], str(error)))
    kept = [row | {"split": part} for row, part in zip(rows, assigned, strict=True) if part]
    return kept, refused


def _fold_count(text: str) -> int | None:
    if text == "loso":
        return None
    if not text.isdecimal():
        raise InputError(f"--folds must be a number or 'loso', got '{text}'")
    return int(text)


def content_parts(text: str) -> dict[str, list[str]]:
    """Parses --content_parts to part -> its content groups, or raises InputError."""
    parts: dict[str, list[str]] = {}
    for piece in text.split(";"):
        name, equals, groups = piece.partition("=")
        if not equals:
            raise InputError(f"--content_parts must be PART=GROUP,GROUP;PART=GROUP, got '{text}'")
        part = given(name)
        if part in parts:
            raise InputError(f"--content_parts names {part} twice: '{text}'")
        parts[part] = [group.strip() for group in groups.split(",")]
    groups = collections.Counter(group for part in parts.values() for group in part)
    if twice := [group for group, count in groups.items() if count > 1]:
        raise InputError(f"--content_parts names '{twice[0]}' twice: '{text}'")
    return parts
