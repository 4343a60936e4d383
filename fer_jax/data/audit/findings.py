"""What leaks between the parts of a split: identities in the columns, near-duplicate images."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from fer_jax.data.audit import duplicates
from fer_jax.data.records import Records
from fer_jax.schema import TASKS, UNKNOWN

# What each kind of finding says. The first ones are leaks; the last are for a person to judge.
LEAKS = {
    "record": "the same record on two sides",
    "subject": "a person on two sides",
    "clip": "a clip on two sides",
    "url": "a video's address on two sides",
    "seed": "a generator's seed on two sides",
    "seed_labels": "a generator's seed under two labels",
    "image": "the same picture on two sides",
    "content": "a content group on two sides of the protocol content",
    "stimulus": "an advertisement on two sides of the protocol content",
}
WARNINGS = {
    "image_labels": "the same picture under two labels on one side",
    "shared_stimulus": "an advertisement on two sides (its content is not new there)",
}
KINDS = LEAKS | WARNINGS
# Sides in the order in which they give way: test data stays whole.
PRIORITY = ("train", "validation", "test")
# Where a collection itself tells its people apart, two of them must be more alike to be one
# picture (drawn people reach 0.99), and two pictures of one person, or of one clip, even more:
# photographs of one session reach 0.995 in yale, and frames of a face at rest 0.999 in ckseq.
NAMED_LIKENESS = 0.99
KIN_LIKENESS = 0.998
# Frames of one person are neighbours by the million; a copy has nearly the same hash.
KIN_DISTANCE = 2
BLOCK = 4096  # pictures that are read between two looks at the progress


class Finding(NamedTuple):
    """Something that stands in two places.

    Attributes:
      kind: one of `KINDS`.
      key: what it is: a person, a clip, ...; for pictures their likeness.
      a: row of the pool, one example.
      b: another on the other side, or under the other label.
      rows: all rows of the pool that it concerns.
    """

    kind: str
    key: str
    a: int
    b: int
    rows: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Pool:
    """The records of all sides in one numbering 0..n-1.

    Attributes:
      records: opened splits.
      part: int64 [n], index into `records`.
      row: int64 [n], row there.
      side: str [n].
      columns: as in `Records`, of all of them, and "dataset".
    """

    records: Sequence[Records]
    part: np.ndarray
    row: np.ndarray
    side: np.ndarray
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.side)


def pool(parts: Sequence[tuple[str, Records]]) -> Pool:
    """Puts opened splits together.

    Args:
      parts: (side, records).
    """
    records = [part for _, part in parts]
    sizes = [len(part) for part in records]
    columns: dict[str, np.ndarray] = {
        name: np.concatenate([part.columns[name] for part in records])
        for name in records[0].columns
    }
    # As it was built, however it was named: a dataset with one config may be named without.
    built = [f"{part.name.split('/')[0]}/{part.config}" for part in records]
    columns["dataset"] = np.repeat(built, sizes)
    return Pool(
        records=records,
        part=np.repeat(np.arange(len(records)), sizes),
        row=np.concatenate([np.arange(size) for size in sizes]),
        side=np.repeat([side for side, _ in parts], sizes),
        columns=columns,
    )


def identity_findings(everything: Pool) -> list[Finding]:
    """What the records' own columns say; takes no look at the pictures."""
    columns, side = everything.columns, everything.side
    dataset = columns["dataset"]
    by_content = np.array([name.endswith("/content") for name in dataset])
    base = np.array([name.split("/")[0] for name in dataset])
    seeds = np.where(columns["seed"] >= 0, columns["seed"].astype(str), "")
    # A seed means something within its dataset, an advertisement and a content group too.
    within = {
        name: np.char.add(np.char.add(base, " "), values)
        for name, values in (
            ("seed", seeds),
            ("record", columns["record_id"]),
            ("content", columns["content"]),
            ("stimulus", columns["stimulus_id"]),
        )
    }
    findings = []
    for kind, keys, known in (
        ("record", within["record"], np.ones(len(side), bool)),
        ("subject", columns["subject_id"], columns["subject_id"] != ""),
        ("clip", columns["clip_id"], columns["clip_id"] != ""),
        ("url", columns["url"], columns["url"] != ""),
        ("seed", within["seed"], seeds != ""),
        ("content", within["content"], (columns["content"] != "") & by_content),
        ("stimulus", within["stimulus"], (columns["stimulus_id"] != "") & by_content),
        ("shared_stimulus", within["stimulus"], (columns["stimulus_id"] != "") & ~by_content),
    ):
        findings += _shared(kind, keys, known, side)
    for task in TASKS:
        known = (seeds != "") & (columns[task] != UNKNOWN)
        findings += _shared("seed_labels", within["seed"], known, columns[task])
    for finding in _shared("image", columns["image_digest"], np.ones(len(side), bool), side):
        # A record on two sides has its own kind.
        if len(np.unique(within["record"][list(finding.rows)])) > 1:
            findings.append(finding._replace(key="equal byte for byte"))
    return findings


def _shared(kind: str, keys: np.ndarray, known: np.ndarray, side: np.ndarray) -> list[Finding]:
    """Keys that occur on more than one side."""
    rows = np.flatnonzero(known)
    if not len(rows):
        return []
    names, inverse = np.unique(keys[rows], return_inverse=True)
    sides, side_of = np.unique(side[rows], return_inverse=True)
    present = np.zeros((len(names), len(sides)), bool)
    present[inverse, side_of] = True
    findings = []
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(len(names) + 1))
    for name in np.flatnonzero(present.sum(axis=1) > 1):
        own = rows[order[bounds[name] : bounds[name + 1]]]
        other = own[side[own] != side[own[0]]][0]
        findings.append(
            Finding(kind, str(names[name]), int(own[0]), int(other), tuple(own.tolist()))
        )
    return findings


def image_findings(everything: Pool) -> tuple[list[Finding], dict[str, Any]]:
    """Pictures that stand on two sides, or under two labels on one.

    Byte for byte the same on two sides is an identity, and not looked for again.

    Returns:
      (findings, {"candidates", "confirmed", "precision"} of the hashes across all pairs that
      were looked at, and "blank": pictures that show nothing).
    """
    columns = everything.columns
    side = np.unique(everything.side, return_inverse=True)[1]
    people, clips = _numbered(columns["subject_id"]), _numbered(columns["clip_id"])
    namespaces = _numbered(np.char.partition(columns["subject_id"], "/")[:, 0])
    labels = [columns[task] for task in TASKS]

    def agree(ids: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return (ids[i] == ids[j]) & (ids[i] >= 0)

    def kin(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return agree(people, i, j) | agree(clips, i, j)

    def wanted(i: np.ndarray, j: np.ndarray, apart: np.ndarray) -> np.ndarray:
        crosses = side[i] != side[j]
        digest = columns["image_digest"]
        contradict = np.zeros(len(i), bool)
        for known in labels:
            contradict |= (known[i] != known[j]) & (known[i] >= 0) & (known[j] >= 0)
        near = kin(i, j) | (agree(namespaces, i, j) & ~crosses)
        sought = np.where(crosses, digest[i] != digest[j], contradict)
        return sought & (~near | (apart <= KIN_DISTANCE))

    def needed(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        named = np.where(agree(namespaces, i, j), NAMED_LIKENESS, duplicates.SAME_LIKENESS)
        return np.where(kin(i, j), KIN_LIKENESS, named)

    found = duplicates.same_pictures(_thumbnails(everything), wanted, needed)
    findings = [
        Finding(
            "image" if side[i] != side[j] else "image_labels", f"likeness {alike:.3f}", i, j, (i, j)
        )
        for i, j, alike in found.pairs
    ]
    confirmed, candidates = len(found.pairs), found.num_candidates
    return findings, {
        "candidates": candidates,
        "confirmed": confirmed,
        "precision": confirmed / candidates if candidates else None,
        "blank": found.num_blank,
    }


def _numbered(names: np.ndarray) -> np.ndarray:
    """int64: equal numbers for equal names, -1 for none."""
    return np.where(names == "", -1, np.unique(names, return_inverse=True)[1])


def _thumbnails(everything: Pool) -> np.ndarray:
    """uint8 [n, 48, 48]."""

    def read(place: int) -> np.ndarray:
        records = everything.records[int(everything.part[place])]
        return duplicates.thumbnail(records.image(int(everything.row[place])))

    size = duplicates.THUMBNAIL_SIZE
    thumbnails = np.empty((len(everything), size, size), np.uint8)
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(everything), desc="pictures", unit="image", disable=None) as progress,
    ):
        for first in range(0, len(everything), BLOCK):
            places = range(first, min(first + BLOCK, len(everything)))
            thumbnails[places.start : places.stop] = list(pool.map(read, places))
            progress.update(len(places))
    return thumbnails


def count_kinds(findings: Iterable[Finding], kinds: Iterable[str]) -> dict[str, int]:
    """How many findings there are of each kind; kinds without any are left out."""
    counts = collections.Counter(finding.kind for finding in findings)
    return {kind: counts[kind] for kind in kinds if counts[kind]}


def leaks_in_words(counts: Mapping[str, int]) -> str:
    """The kinds and their counts, for a line of text."""
    return ", ".join(f"{count} x {LEAKS[kind]}" for kind, count in counts.items())


def rank(side: str) -> tuple[int, str]:
    """The order in which parts give up records: the test part never does."""
    return (PRIORITY.index(side), "") if side in PRIORITY else (-1, side)
