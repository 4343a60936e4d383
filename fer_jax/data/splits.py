"""Which part of a split a record is in: a pure function of its group, never of its frame.

The group is the person within a namespace (so that two datasets of the same people agree),
else the clip, else the image itself.
"""

import argparse
import collections
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fer_jax.errors import InputError, did_you_mean

PROTOCOLS = {
    "grouped": "80 % of the people (else clips, else images) train, 10 % validate, 10 % test",
    "folds": "people (else clips, else images) dealt into folds",
    "given": "the collection's own training, validation and test parts",
    "content": "content groups named for each part",
}
PARTS = ("train", "validation", "test")
DEFAULT_FOLDS = 5
# The published protocol of the laboratory videos.
PUBLISHED_PARTS = "train=food_market;validation=cosmetics_fashion;test=car_tech"

# How published sets call their parts.
_GIVEN = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "publictest": "validation",
    "test": "test",
    "testing": "test",
    "privatetest": "test",
}


def group_key(namespace: str, *, subject: str, clip: str, record: str) -> str:
    """What must stay together: the first of subject, clip and record that is known."""
    for kind, name in (("subject", subject), ("clip", clip), ("record", record)):
        if name:
            return f"{namespace}/{kind}/{name}"
    raise ValueError("a record without an id")


def position(key: str) -> float:
    """A key's place in [0, 1): the first 64 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def grouped(key: str) -> str:
    """80 % of the groups train, 10 % validate, 10 % test, by the key's position."""
    place = position(key)
    return "train" if place < 0.8 else "validation" if place < 0.9 else "test"


def folds(keys: Iterable[str], count: int | None) -> dict[str, str]:
    """Deals groups into folds like cards, in the order of their positions.

    Args:
      keys: the groups.
      count: k; None means one fold per group (leave one subject out).

    Returns:
      key -> "fold_0" ... "fold_{k-1}"; sizes differ by at most one group.

    Raises:
      InputError: fewer groups than folds.
    """
    ordered = sorted(set(keys), key=lambda key: (position(key), key))
    count = len(ordered) if count is None else count
    if not 2 <= count <= len(ordered):
        some = f"choose 2 to {len(ordered)}" if len(ordered) > 1 else "folds need at least 2 groups"
        raise InputError(f"{len(ordered)} groups cannot be dealt into {count} folds; {some}")
    return {key: f"fold_{index % count}" for index, key in enumerate(ordered)}


def given(part: str) -> str:
    """A collection's own word for a part, in ours.

    Raises:
      InputError: not a word for training, validation or test.
    """
    word = part.strip().lower().replace("_", "").replace(" ", "")
    if word not in _GIVEN:
        raise InputError(f"'{part}' names no part{did_you_mean(word, _GIVEN)}")
    return _GIVEN[word]


def content(group: str, parts: Mapping[str, Sequence[str]]) -> str:
    """The part that a content group belongs to.

    Args:
      group: such as "food_market".
      parts: part -> the content groups in it.

    Raises:
      InputError: the group is in none.
    """
    for part, groups in parts.items():
        if group in groups:
            return part
    known = [name for groups in parts.values() for name in groups]
    raise InputError(f"content '{group}' is in no part{did_you_mean(group, known)}")


def check_parts(assigned: Iterable[str | None], wanted: Sequence[str]) -> None:
    """Refuses a split with an empty part.

    Raises:
      InputError: names the part, and the protocol for few people.
    """
    present = set(assigned)
    empty = [part for part in wanted if part not in present]
    if empty:
        raise InputError(
            f"{' and '.join(empty)} would be empty; there are too few groups: use the protocol "
            "'folds'"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the protocols, for a builder."""
    group = parser.add_argument_group("splits")
    group.add_argument("--folds", default=str(DEFAULT_FOLDS), help="number, or 'loso'")
    group.add_argument(
        "--content_parts",
        default=PUBLISHED_PARTS,
        help="content groups of each part, for the protocol 'content'",
    )


def recorded(protocol: str, options: argparse.Namespace) -> dict[str, str]:
    """The flags that the protocol reads, as a dataset remembers them."""
    read = {"folds": ("folds",), "content": ("content_parts",)}.get(protocol, ())
    return {name: getattr(options, name) for name in read}


def assign(
    rows: Sequence[dict[str, Any]], protocol: str, namespace: str, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Gives every row its split.

    Args:
      rows: with `record_id` and, where known, `subject_id`, `clip_id`, `content`, and `_given`
        (the collection's own word for the part).
      protocol: one of `PROTOCOLS`.
      namespace: of the groups.
      options: the flags of `add_arguments`.

    Returns:
      (rows with "split", those that belong to none: (record_id, reason)).

    Raises:
      InputError: a part would be empty, or the flags make no sense.
    """
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
        check_parts(assigned, PARTS)
    elif protocol == "folds":
        dealt = folds(keys, _fold_count(options.folds))
        assigned = [dealt[key] for key in keys]
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
        if protocol == "content":
            check_parts([part for part in assigned if part], list(parts))
    kept = [row | {"split": part} for row, part in zip(rows, assigned, strict=True) if part]
    return kept, refused


def _fold_count(text: str) -> int | None:
    if text == "loso":
        return None
    if not text.isdecimal():
        raise InputError(f"--folds is a number or 'loso', not '{text}'")
    return int(text)


def content_parts(text: str) -> dict[str, list[str]]:
    """Reads --content_parts: part -> the content groups in it.

    Raises:
      InputError: not of the form PART=GROUP,GROUP;PART=GROUP, or a part or a group occurs twice.
    """
    parts: dict[str, list[str]] = {}
    for piece in text.split(";"):
        part, equals, groups = piece.partition("=")
        if not equals:
            raise InputError(f"--content_parts is PART=GROUP,GROUP;PART=GROUP, not '{text}'")
        if given(part) in parts:
            raise InputError(f"--content_parts names {given(part)} twice: '{text}'")
        parts[given(part)] = [group.strip() for group in groups.split(",")]
    groups = collections.Counter(group for part in parts.values() for group in part)
    twice = [group for group, count in groups.items() if count > 1]
    if twice:
        raise InputError(f"--content_parts puts '{twice[0]}' twice: '{text}'")
    return parts
