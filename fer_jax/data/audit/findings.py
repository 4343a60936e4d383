"""Finds leakage between the parts of a split: shared identities and near-duplicate images."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from fer_jax import forms, storage
from fer_jax.data.audit import duplicates
from fer_jax.data.records import Records, fingerprint
from fer_jax.schema import TASKS, UNKNOWN, canonical_url

# What each kind of finding means. Leaks make the audit fail, warnings do not.
LEAKS = {
    "record": "record in more than one split",
    "subject": "person in more than one split",
    "clip": "clip in more than one split",
    "url": "video URL in more than one split",
    "seed": "generator seed in more than one split",
    "seed_labels": "generator seed with more than one label",
    "image": "image in more than one split",
    "content": "content group in more than one split of the protocol 'content'",
    "stimulus": "advertisement in more than one split of the protocol 'content'",
    "generator": "test set of which the generator of synthetic images saw people",
    "teacher": "test set of which the teacher of synthetic images saw people",
    "start": "test set of which the network that the training starts from saw people",
}
WARNINGS = {
    "image_labels": "image with more than one label within a split",
    "stimulus_content": "advertisement in more than one content group",
    "shared_stimulus": "advertisement in more than one split (not unseen content there)",
}
KINDS = LEAKS | WARNINGS
# What is compared without decoding images: by `identity_findings`, and in `provenance`.
LOOKED_FOR = (
    "people, clips, URLs, advertisements, generator seeds and records, people who are known to be "
    "behind synthetic images, and images that are equal byte for byte"
)
AUDIT_FILE = "audit.json"
# A record that leaks is left out of the earlier of its two splits, never out of the test data.
PRIORITY = ("train", "validation", "test")
# Two images of one person or clip are one image if all of them correlates so well: photographs of
# one session reach 0.995 in yale, frames of a face at rest 0.999 in ckseq.
SAME_PERSON_CORRELATION = 0.998
# Frames of one person are neighbours by the million; a copy has nearly the same hash.
SAME_PERSON_DISTANCE = 2
# Of rendered people some are as similar as copies. It shows in many pairs of different people
# slightly below the usual similarity; then so much is required. In photographs of jaffe, ck48,
# ckseq, yale and lfw_gray there was one such pair, among the demo's rendered people hundreds; of
# these none reached 0.99.
ALMOST_SIMILAR, MAX_ALMOST_SIMILAR = 0.9, 10
LOOK_ALIKE_SIMILARITY = 0.99
IMAGES_PER_BLOCK = 4096  # read between two updates of the progress bar


class Finding(NamedTuple):
    """An identity or image that is found in two splits, or with two labels or content groups."""

    kind: str  # one of `KINDS`
    key: str  # the person, clip, ...; of images the similarity
    a: int  # row of the pool, one example
    b: int  # another, in the other split or with the other label
    rows: tuple[int, ...]  # all rows of the pool that are concerned


@dataclasses.dataclass(frozen=True)
class Pool:
    """The records of all splits, with indices 0..n-1."""

    records: Sequence[Records]  # of each split of each dataset
    source: np.ndarray  # int64 [n], index into `records`
    row: np.ndarray  # int64 [n], row there
    split: np.ndarray  # str [n], such as "train"
    columns: Mapping[str, np.ndarray]  # as in `Records`, of all of them, and "dataset"

    def __len__(self) -> int:
        return len(self.split)

    def image(self, index: int) -> np.ndarray:
        """Decodes an image: uint8 RGB [s, s, 3]."""
        return self.records[self.source[index]].image(self.row[index])

    def select(self, indices: np.ndarray) -> "Pool":
        """Returns some of the records, by int64 [m] indices."""
        return Pool(
            records=self.records,
            source=self.source[indices],
            row=self.row[indices],
            split=self.split[indices],
            columns={name: values[indices] for name, values in self.columns.items()},
        )


def pool_records(parts: Sequence[tuple[str, Records]]) -> Pool:
    """Puts (split, records) pairs together."""
    records = [part for _, part in parts]
    sizes = [len(part) for part in records]
    columns: dict[str, np.ndarray] = {
        name: np.concatenate([part.columns[name] for part in records])
        for name in records[0].columns
    }
    # With its config, whether or not it was named with one.
    built = [f"{part.name.split('/')[0]}/{part.config}" for part in records]
    columns["dataset"] = np.repeat(built, sizes)
    return Pool(
        records=records,
        source=np.repeat(np.arange(len(records)), sizes),
        row=np.concatenate([np.arange(size) for size in sizes]),
        split=np.repeat([split for split, _ in parts], sizes),
        columns=columns,
    )


def identity_findings(pool: Pool) -> list[Finding]:
    """Compares the records' columns; does not decode images."""
    columns, split = pool.columns, pool.split
    dataset = columns["dataset"]
    by_content = np.array([name.endswith("/content") for name in dataset])
    base = np.array([name.split("/")[0] for name in dataset])
    seeds = np.where(columns["seed"] >= 0, columns["seed"].astype(str), "")

    def within_dataset(values: np.ndarray) -> np.ndarray:
        return np.char.add(np.char.add(base, " "), values)

    content, stimulus = columns["content"], columns["stimulus_id"]
    record, seed = within_dataset(columns["record_id"]), within_dataset(seeds)
    given, of = np.unique(columns["url"], return_inverse=True)
    urls = np.array([*map(canonical_url, given)], str)[of]
    everywhere = np.ones(len(split), bool)
    findings = []
    for kind, keys, known in (
        ("record", record, everywhere),
        ("subject", columns["subject_id"], columns["subject_id"] != ""),
        ("clip", columns["clip_id"], columns["clip_id"] != ""),
        ("url", urls, urls != ""),
        ("seed", seed, seeds != ""),
        ("content", within_dataset(content), (content != "") & by_content),
        ("stimulus", within_dataset(stimulus), (stimulus != "") & by_content),
        ("shared_stimulus", within_dataset(stimulus), (stimulus != "") & ~by_content),
    ):
        findings += _shared(kind, keys, known, split)
    # Of the protocol "content" it is in two splits, too.
    filed = (stimulus != "") & (content != "") & ~by_content
    findings += _shared("stimulus_content", within_dataset(stimulus), filed, content)
    for task in TASKS:
        known = (seeds != "") & (columns[task] != UNKNOWN)
        findings += _shared("seed_labels", seed, known, columns[task])
    for finding in _shared("image", columns["image_digest"], everywhere, split):
        # One record in two splits is a finding of its own kind.
        if len(np.unique(record[list(finding.rows)])) > 1:
            findings.append(finding._replace(key="equal byte for byte"))
    return findings


def _shared(kind: str, keys: np.ndarray, known: np.ndarray, groups: np.ndarray) -> list[Finding]:
    """Finds keys that occur in more than one group."""
    rows = np.flatnonzero(known)
    if not len(rows):
        return []
    names, inverse = np.unique(keys[rows], return_inverse=True)
    group_names, group = np.unique(groups[rows], return_inverse=True)
    present = np.zeros((len(names), len(group_names)), bool)
    present[inverse, group] = True
    findings = []
    order = np.argsort(inverse, kind="stable")
    bounds = np.searchsorted(inverse[order], np.arange(len(names) + 1))
    for name in np.flatnonzero(present.sum(axis=1) > 1):
        own = rows[order[bounds[name] : bounds[name + 1]]]
        other = own[groups[own] != groups[own[0]]][0]
        findings.append(
            Finding(kind, str(names[name]), int(own[0]), int(other), tuple(own.tolist()))
        )
    return findings


def image_findings(pool: Pool) -> tuple[list[Finding], dict[str, Any]]:
    """Finds near-duplicates in different splits, or with different labels within a split.

    Images that are equal byte for byte in two splits are left to `identity_findings`. Returns the
    findings and {"candidates", "confirmed", "precision"} of the pairs that the hashes propose,
    "similarities": the numbers of confirmed and rejected pairs in 100 equal steps from 0 to 1,
    "look_alikes": namespaces whose different people must be more similar, and "blank": images
    without content, which are not compared.
    """
    columns = pool.columns
    digest = columns["image_digest"]
    split = np.unique(pool.split, return_inverse=True)[1]
    people, clips = _numbered(columns["subject_id"]), _numbered(columns["clip_id"])
    names = np.char.partition(columns["subject_id"], "/")[:, 0]
    namespaces = _numbered(names)

    def agree(ids: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return (ids[i] == ids[j]) & (ids[i] >= 0)

    def same_person(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return agree(people, i, j) | agree(clips, i, j)

    def is_candidate(i: np.ndarray, j: np.ndarray, distance: np.ndarray) -> np.ndarray:
        crosses = split[i] != split[j]
        contradict = np.zeros(len(i), bool)
        for labels in (columns[task] for task in TASKS):
            contradict |= (labels[i] != labels[j]) & (labels[i] >= 0) & (labels[j] >= 0)
        related = same_person(i, j) | (agree(namespaces, i, j) & ~crosses)
        sought = np.where(crosses, digest[i] != digest[j], contradict)
        return sought & (~related | (distance <= SAME_PERSON_DISTANCE))

    thumbnails = _thumbnails(pool)
    found = duplicates.find_near_duplicates(thumbnails, is_candidate)
    i, j = found.i, found.j
    same = same_person(i, j)
    enough = np.full(len(i), duplicates.MIN_SIMILARITY)
    look_alikes = []
    strangers = np.where(agree(namespaces, i, j) & ~same, namespaces[i], -1)
    for namespace in np.unique(strangers[strangers >= 0]):
        own = strangers == namespace
        almost = (found.similarity[own] >= ALMOST_SIMILAR) & (found.similarity[own] < enough[own])
        if almost.sum() > MAX_ALMOST_SIMILAR:
            enough[own] = LOOK_ALIKE_SIMILARITY
            look_alikes.append(str(names[i[own][0]]))
    for pair in np.flatnonzero(same & (found.similarity >= enough)):
        whole = duplicates.correlation(thumbnails[i[pair]], thumbnails[j[pair]])
        enough[pair] = 0 if whole >= SAME_PERSON_CORRELATION else np.inf
    findings = [
        Finding(
            "image" if split[a] != split[b] else "image_labels",
            f"similarity {similarity:.3f}",
            a,
            b,
            (a, b),
        )
        for a, b, similarity in found.pairs(enough)
    ]
    confirmed, candidates = len(findings), len(i)
    return findings, {
        "candidates": candidates,
        "confirmed": confirmed,
        "precision": confirmed / candidates if candidates else None,
        "similarities": {
            name: np.histogram(found.similarity[pairs].clip(0, 1), 100, (0, 1))[0].tolist()
            for name, pairs in (
                ("confirmed", found.similarity >= enough),
                ("rejected", found.similarity < enough),
            )
        },
        "look_alikes": look_alikes,
        "blank": found.num_blank,
    }


def describe_parts(parts: Sequence[tuple[str, Records]]) -> list[dict[str, Any]]:
    """Returns (part, records) pairs as audit.json has them, with their fingerprints."""
    return [
        {"part": part, "dataset": records.name, "split": records.split, "records": len(records)}
        | {"fingerprint": fingerprint(records)}
        for part, records in parts
    ]


def find_near_duplicates(
    folder: Path, parts: Sequence[tuple[str, Records]]
) -> dict[str, Any] | None:
    """Reads what `fer-jax audit` found between (part, records) pairs, in its folder.

    Returns {"date", "fingerprint": of what was audited, "found": near-duplicates in different
    parts}; None if the audit in the folder was of other images, or there is none.
    """
    audited = storage.read_json(folder / AUDIT_FILE, "audit again", forms.AUDIT)
    known = {(one["part"], one["fingerprint"]) for one in audited.get("parts", [])}
    if not all((part, fingerprint(records)) in known for part, records in parts):
        return None
    ids = {name for _, records in parts for name in records.columns["record_id"].tolist()}
    found = [
        one
        for one in audited["findings"]
        # Images that are equal byte for byte are counted without an audit.
        if one["kind"] == "image" and one["key"].startswith("similarity")
        if {one[side]["record_id"] for side in "ab"} <= ids
    ]
    return {name: audited[name] for name in ("date", "fingerprint")} | {"found": len(found)}


def near_duplicate_groups(records: Records) -> np.ndarray:
    """Returns of each image the first record_id of its group of near-duplicates, by name."""
    from scipy.sparse import coo_array, csgraph  # which reading audits does not need

    found = duplicates.find_near_duplicates(_thumbnails(pool_records([("test", records)])))
    same = found.similarity >= duplicates.MIN_SIMILARITY
    pairs = (np.ones(same.sum()), (found.i[same], found.j[same]))
    graph = coo_array(pairs, shape=(len(records), len(records)))
    of = csgraph.connected_components(graph, directed=False)[1].tolist()
    ids = records.columns["record_id"].tolist()
    # The names do not depend on the order in which the records are stored.
    first = dict(sorted(zip(of, ids, strict=True), reverse=True))
    return np.asarray([first[group] for group in of])


def _numbered(names: np.ndarray) -> np.ndarray:
    """Returns int64 [n], equal for equal names, -1 for ""."""
    return np.where(names == "", -1, np.unique(names, return_inverse=True)[1])


def _thumbnails(pool: Pool) -> np.ndarray:
    """Decodes all images to uint8 grey [n, 48, 48]."""
    size = duplicates.THUMBNAIL_SIZE
    thumbnails = np.empty((len(pool), size, size), np.uint8)
    with (
        ThreadPoolExecutor() as threads,
        tqdm(total=len(pool), desc="decoding", unit="image", disable=None) as progress,
    ):
        for first in range(0, len(pool), IMAGES_PER_BLOCK):
            block = range(first, min(first + IMAGES_PER_BLOCK, len(pool)))
            read = threads.map(lambda index: duplicates.thumbnail(pool.image(index)), block)
            thumbnails[block.start : block.stop] = list(read)
            progress.update(len(block))
    return thumbnails


def count_kinds(findings: Iterable[Finding], kinds: Iterable[str]) -> dict[str, int]:
    """Counts the findings of each kind; kinds without any are left out."""
    counts = collections.Counter(finding.kind for finding in findings)
    return {kind: counts[kind] for kind in kinds if counts[kind]}


def leaks_in_words(counts: Mapping[str, int]) -> str:
    """Returns the kinds and their counts as "3 x person in more than one split, ..."."""
    return ", ".join(f"{count} x {LEAKS[kind]}" for kind, count in counts.items())


def rank(split: str) -> tuple[int, str]:
    """Returns the sort key of a split: others, such as folds, come before `PRIORITY`, by name."""
    return (PRIORITY.index(split), "") if split in PRIORITY else (-1, split)
