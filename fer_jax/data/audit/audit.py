"""The verb `audit`: does anything of one side of a split stand on another side?

A side is what must not be seen while something is learned on another: the training, validation
and test parts of an experiment, or the splits of datasets.
"""

import argparse
import base64
import collections
import csv
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jinja2
import numpy as np
from tqdm import tqdm

from fer_jax.config import (
    Config,
    OneLineParser,
    default_data_dir,
    from_json,
    parse_with_config,
    to_json,
)
from fer_jax.data.audit import duplicates
from fer_jax.data.records import (
    Records,
    as_source,
    built_datasets,
    dataset_directory,
    only,
    open_records,
    read_exclusions,
    without,
)
from fer_jax.data.splits import PROTOCOLS
from fer_jax.errors import InputError
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
EXCLUSIONS_FILE = "exclusions.csv"  # a run's copy of its config.exclusions
SHOWN = 100  # findings of a kind on the page
THUMBNAIL = 96


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


def dataset_sides(names: Iterable[str], data_dir: Path) -> list[tuple[str, Records]]:
    """Datasets by themselves: every split is a side; splits of one name are one side.

    Args:
      names: a name without a config stands for all its configs, unless these are protocols,
        which split the same records in different ways.
      data_dir: where they were built.

    Raises:
      InputError: a dataset that is not built, or one that is built by several protocols.
    """
    built = built_datasets(data_dir)
    labels: list[str] = []
    for name in names:
        configs = [label for label in built if label.split("/")[0] == name]
        if not configs or any(label.split("/")[1] in PROTOCOLS for label in configs):
            directory = dataset_directory(name, data_dir)
            configs = ["/".join(directory.relative_to(data_dir).parts[:-1])]
        labels += [label for label in configs if label not in labels]
    parts = []
    for label in labels:
        info = json.loads((built[label] / "dataset_info.json").read_text())
        for split in sorted(part["name"] for part in info["splits"]):
            parts.append((split, open_records(label, split, data_dir)))
    return parts


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


def exclusions(everything: Pool, findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    """The records to leave out so that nothing leaks: (dataset, record_id, reason).

    Of two sides the one nearer to the test gives nothing up; of folds, the later one. A seed
    under two labels goes as a whole, but for what is in a test.
    """
    left_out: dict[int, str] = {}
    for finding in findings:
        if finding.kind not in LEAKS:
            continue
        sides = [str(everything.side[row]) for row in finding.rows]
        stays = max(_rank(side) for side in sides)
        for row, side in zip(finding.rows, sides, strict=True):
            if _rank(side) < stays or (finding.kind == "seed_labels" and side != PRIORITY[-1]):
                left_out.setdefault(row, finding.kind)
    datasets, ids = everything.columns["dataset"], everything.columns["record_id"]
    return sorted({(str(datasets[row]), str(ids[row]), reason) for row, reason in left_out.items()})


def lasting_exclusions(everything: Pool, findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    """`exclusions`, and those of the audit of what then remains, until nothing is added.

    What is usual among the pictures, by which their hashes are made, changes with every record
    that is left out: a pair at the very edge of likeness may be found only then.
    """
    left_out = exclusions(everything, findings)
    added = left_out
    while added:
        names = {(dataset.split("/")[0], record_id) for dataset, record_id, _ in added}
        everything = _without(everything, names)
        if not len(everything):
            break
        print(f"looking again without {len(left_out)} records")
        findings = identity_findings(everything) + image_findings(everything)[0]
        added = [row for row in exclusions(everything, findings) if row not in left_out]
        left_out = left_out + added
    return sorted(left_out)


def write_exclusions(
    file: Path, rows: Sequence[tuple[str, str, str]], before: Iterable[tuple[str, str]]
) -> int:
    """Writes what `config.exclusions` reads.

    Args:
      file: the CSV.
      rows: from `exclusions`.
      before: what was left out already, from `read_exclusions`.

    Returns:
      How many records it lists.
    """
    # A list that replaces another goes on leaving out what that one did.
    listed = [*rows, *((*pair, "excluded before") for pair in sorted(before))]
    with file.open("w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows([("dataset", "record_id", "reason"), *listed])
    return len(listed)


def _without(everything: Pool, names: set[tuple[str, str]]) -> Pool:
    """What remains when records are left out: (dataset without its config, record_id) pairs."""
    columns = everything.columns
    datasets = [dataset.split("/")[0] for dataset in columns["dataset"].tolist()]
    listed = [pair in names for pair in zip(datasets, columns["record_id"].tolist(), strict=True)]
    kept = np.flatnonzero((everything.side == PRIORITY[-1]) | ~np.asarray(listed))
    return Pool(
        records=everything.records,
        part=everything.part[kept],
        row=everything.row[kept],
        side=everything.side[kept],
        columns={name: values[kept] for name, values in columns.items()},
    )


def _rank(side: str) -> tuple[int, str]:
    return (PRIORITY.index(side), "") if side in PRIORITY else (-1, side)


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


def prevalence(everything: Pool) -> dict[str, Any]:
    """Per side: how many records, people, and what share each class and source has."""
    found = {}
    for side in sorted(set(everything.side.tolist()), key=_rank):
        here = everything.side == side
        described: dict[str, Any] = {
            "records": int(here.sum()),
            "subjects": len(set(everything.columns["subject_id"][here].tolist()) - {""}),
            "sources": _shares(everything.columns["source"][here]),
            "content": _shares(everything.columns["content"][here]),
        }
        for task, classes in TASKS.items():
            labels = everything.columns[task][here]
            labels = labels[labels != UNKNOWN]
            described[task] = _shares(np.asarray(classes)[labels]) if len(labels) else {}
        found[side] = described
    return found


def _shares(values: np.ndarray) -> dict[str, float]:
    names, counts = np.unique(values, return_counts=True)
    shares = counts / max(1, len(values))
    return {str(name): round(float(x), 4) for name, x in zip(names, shares, strict=True) if name}


def audit(parts: Sequence[tuple[str, Records]]) -> tuple[Pool, list[Finding], dict[str, Any]]:
    """Everything: identities and pictures.

    Args:
      parts: (side, records) pairs.

    Returns:
      (the pool, its findings, what audit.json says).
    """
    everything = pool(parts)
    findings = identity_findings(everything)
    pictures, near = image_findings(everything)
    findings += pictures
    described = {
        "datasets": sorted(set(everything.columns["dataset"].tolist())),
        "records": len(everything),
        "leaks": count_kinds(findings, LEAKS),
        "warnings": count_kinds(findings, WARNINGS),
        "hashes": near,
        "sides": prevalence(everything),
        "findings": [
            {
                "kind": finding.kind,
                "key": finding.key,
                "records": len(finding.rows),
                "a": _place(everything, finding.a),
                "b": _place(everything, finding.b),
            }
            for finding in findings
        ],
    }
    return everything, findings, described


def _place(everything: Pool, row: int) -> dict[str, Any]:
    words = {
        name: str(everything.columns[name][row]) for name in ("dataset", "record_id", "subject_id")
    }
    labels = {
        task: classes[index] if (index := int(everything.columns[task][row])) >= 0 else None
        for task, classes in TASKS.items()
    }
    return words | {"side": str(everything.side[row])} | labels


def page(everything: Pool, findings: Sequence[Finding], described: Mapping[str, Any]) -> str:
    """The findings with their pictures, as one self-contained HTML page."""

    def picture(row: int) -> str:
        face = everything.records[int(everything.part[row])].image(int(everything.row[row]))
        small = cv2.resize(face, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1].tobytes()
        return "data:image/jpeg;base64," + base64.b64encode(data).decode()

    groups = []
    for kind, meaning in KINDS.items():
        own = [finding for finding in findings if finding.kind == kind]
        shown = [
            {
                "key": finding.key,
                "records": len(finding.rows),
                "places": [
                    _place(everything, row) | {"picture": picture(row)}
                    for row in (finding.a, finding.b)
                ],
            }
            for finding in own[:SHOWN]
        ]
        if own:
            leak = kind in LEAKS
            groups.append(
                {"kind": kind, "meaning": meaning, "leak": leak, "count": len(own), "shown": shown}
            )
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (Path(__file__).parent / "audit.html").read_text()
    )
    return template.render(groups=groups, described=described)


def summary(described: Mapping[str, Any]) -> str:
    """The audit for a terminal."""
    lines = [f"{described['records']} records of {', '.join(described['datasets'])}"]
    for side, here in described["sides"].items():
        lines.append(f"  {side}: {here['records']} records, {here['subjects'] or 'no'} subjects")
        for name in ("sources", "content", *TASKS):
            if here[name]:
                shares = ", ".join(f"{word} {share:.1%}" for word, share in here[name].items())
                lines.append(f"    {name}: {shares}")
    near = described["hashes"]
    if near["candidates"]:
        lines.append(
            f"  of {near['candidates']} pairs with like hashes {near['confirmed']} are the same "
            f"picture (precision {near['precision']:.3f})"
        )
    if near["blank"]:
        lines.append(f"  {near['blank']} pictures show nothing and were not compared")
    for name, kinds in (("leaks", LEAKS), ("warnings", WARNINGS)):
        counts = described[name]
        lines.append(f"{name}: {sum(counts.values()) or 'none'}")
        for kind, count in counts.items():
            lines.append(f"  {count} x {kinds[kind]}")
            first = [finding for finding in described["findings"] if finding["kind"] == kind][:3]
            for finding in first:
                a, b = finding["a"], finding["b"]
                lines.append(
                    f"    {finding['key']}: {a['record_id']} ({a['side']}), "
                    f"{b['record_id']} ({b['side']})"
                )
            if count > len(first):
                lines.append(f"    and {count - len(first)} more")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """The verb `audit`; exit code 1 if something leaks."""
    parser = OneLineParser(
        prog="fer-jax audit",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help="or --config=FILE.py")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    parser.add_argument(
        "--workdir", type=Path, required=True, help="gets audit.json and audit.html"
    )
    parser.add_argument(
        "--write_exclusions",
        "--write-exclusions",
        type=Path,
        metavar="FILE",
        help="list the records to leave out, for config.exclusions",
    )
    if any(word.startswith("--config") for word in argv) or "--help" in argv:
        arguments, config = parse_with_config(parser, argv)
        if arguments.datasets:
            raise InputError("name datasets or a --config, not both")
        experiment = open_experiment(config, arguments.data_dir)
        parts, before = experiment.sides, read_exclusions(config.exclusions)
        if experiment.absent:
            print(f"not built here, and so not looked at: {', '.join(experiment.absent)}")
    else:
        arguments = parser.parse_args(argv)
        if not arguments.datasets:
            raise InputError("name datasets, or an experiment with --config=FILE.py")
        parts, before = dataset_sides(arguments.datasets, arguments.data_dir), set()
    listed = arguments.write_exclusions
    if listed is not None:
        listed.parent.mkdir(parents=True, exist_ok=True)
    everything, findings, described = audit(parts)
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    (arguments.workdir / "audit.json").write_text(
        json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    )
    (arguments.workdir / "audit.html").write_text(page(everything, findings, described))
    print(summary(described))
    print(f"  -> {arguments.workdir / 'audit.html'}")
    if listed is not None:
        count = write_exclusions(listed, lasting_exclusions(everything, findings), before)
        print(f"{count} records to leave out -> {listed}")
    return int(bool(described["leaks"]))
