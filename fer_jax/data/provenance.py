"""Whose faces are behind synthetic images, over any number of generators and teachers.

What a network has seen is {"saw": [{"dataset", "split", "images", "unnamed" (records without a
person), "fingerprint"}], "subjects": names, "unknown": what of it is not known}: in a generator's
config.json, in synthesis.json, in build.json, and in DATA_DIR/.networks by the fingerprint of the
network's arrays, by which copied, renamed and stripped folders are still recognized.
"""

import collections
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fer_jax import forms, storage
from fer_jax.data.records import Records, build_summary, built_datasets, open_records
from fer_jax.data.splits import group_key
from fer_jax.errors import InputError

NETWORKS = ".networks"  # in the data folder
DIGITS = 16  # of a fingerprint: as many as the people of synthetic faces have in their names
NAMESPACE = "stylegan"  # of these people
KINDS = ("saw", "subjects", "unknown")
# How a network is behind synthetic images, with the words for it; START is behind a training.
ROLES = {"teacher": "that labelled", "generator": "of"}
START = "start"

Provenance = Mapping[str, Any]
Opener = Callable[[Mapping[str, Any]], Records | None]


class Seen(NamedTuple):
    """People or images of a test set that a network behind a training part has seen."""

    role: str  # one of `ROLES`, or START
    test: Records
    sentence: str


def merged(*several: Provenance) -> dict[str, list[Any]]:
    """Returns everything that is in one of them, each once."""
    saw = {json.dumps(one, sort_keys=True): one for each in several for one in each.get("saw", [])}
    texts = {kind: {text for each in several for text in each.get(kind, [])} for kind in KINDS[1:]}
    return {"saw": list(saw.values())} | {kind: sorted(found) for kind, found in texts.items()}


def of_training(parts: Iterable[Records], data_dir: Path) -> dict[str, list[Any]]:
    """Returns what a network saw that was trained on the parts, and what is behind these."""
    found: list[Provenance] = []
    for part in parts:
        people = part.columns["subject_id"]
        entry = {"dataset": part.name, "split": part.split, "images": len(part)}
        entry["unnamed"] = int((people == "").sum())
        entry["fingerprint"] = build_summary(part.name, data_dir).get("fingerprint")
        found.append({"saw": [entry], "subjects": set(people.tolist()) - {""}})
        for provenance in makers(part, data_dir).values():
            found.append(_with_ancestors(provenance, data_dir, opener(data_dir)))
    return merged(*found)


def _with_ancestors(provenance: Provenance, data_dir: Path, opened: Opener) -> dict[str, list[Any]]:
    """Adds what is behind the synthetic images that a network saw, and so on."""
    found, remaining, done = [provenance], list(provenance["saw"]), []
    while remaining:
        entry = remaining.pop()
        part = None if entry in done else opened(entry)
        done.append(entry)
        if part is not None:
            before = makers(part, data_dir).values()
            found += before
            remaining += [one for each in before for one in each["saw"]]
    return merged(*found)


def makers(part: Records, data_dir: Path) -> dict[str, dict[str, list[Any]]]:
    """Returns what the networks behind a part's synthetic images saw, by `ROLES`; {} of others."""
    options = build_summary(part.name, data_dir).get("options", {})
    made_by = options.get("made_by", {})
    names = np.unique(part.columns["subject_id"]).tolist()
    # In the names of its people a network remains, whatever became of build.json.
    generators = {name.split("/")[1] for name in names if name.startswith(f"{NAMESPACE}/")}
    if not generators and not made_by:
        return {}
    networks = {"generator": generators | {made_by.get("network", "")[:DIGITS]} - {""}}
    if "teacher" in made_by or options.get("teacher"):
        networks["teacher"] = {made_by.get("teacher", "")[:DIGITS]} - {""}
    found = {}
    for role, fingerprints in networks.items():
        each = [registered(data_dir, fingerprint) for fingerprint in sorted(fingerprints)]
        found[role] = merged(options.get(role, {}), *each)
        if not found[role]["saw"] and not found[role]["subjects"]:
            of = f"the {role} of {part.name} ({', '.join(sorted(fingerprints)) or 'not named'})"
            found[role]["unknown"] = [of]
    if not made_by:
        found["teacher"] = merged({"unknown": [f"whether {part.name} was labelled by a teacher"]})
    return found


def register(data_dir: Path, fingerprint: str, provenance: Provenance) -> None:
    """Keeps what a network saw, if that is known, by the fingerprint of its arrays."""
    if provenance.get("saw") or provenance.get("subjects"):
        before = registered(data_dir, fingerprint)
        after = merged(before, {kind: provenance.get(kind, []) for kind in KINDS})
        if after != before:
            file = data_dir / NETWORKS / f"{fingerprint[:DIGITS]}.json"
            storage.write_atomically(file, json.dumps(after, indent=1) + "\n")


def registered(data_dir: Path, fingerprint: str) -> dict[str, Any]:
    """Returns what was kept with `register` of a network; {} if nothing was."""
    file = data_dir / NETWORKS / f"{fingerprint[:DIGITS]}.json"
    return storage.read_json(
        file, "remove it, and build the synthetic datasets again", forms.PROVENANCE
    )


def _keys(records: Records) -> np.ndarray:
    """Returns the group key of each record: of its subject, else its clip, else itself, str [n]."""
    columns = (records.columns[name].tolist() for name in ("subject_id", "clip_id", "record_id"))
    return np.asarray(
        [group_key("", subject=s, clip=c, record=r) for s, c, r in zip(*columns, strict=True)]
    )


def opener(data_dir: Path) -> Opener:
    """Returns a function that opens an entry of "saw", under whatever name the dataset has now.

    It returns None for data that is not in `data_dir`, and opens nothing twice.
    """

    @functools.cache
    def opened(entry: str) -> Records | None:
        saw = json.loads(entry)
        fingerprint = saw.get("fingerprint")
        for name in (saw["dataset"], *(built_datasets(data_dir) if fingerprint else ())):
            try:
                if fingerprint in (None, build_summary(name, data_dir).get("fingerprint")):
                    return open_records(name, saw["split"], data_dir)
            except InputError:
                continue
        return None

    return lambda entry: opened(json.dumps(entry))


def shared(provenance: Provenance, test: Records, opened: Opener) -> str:
    """Says which people or images of a test set a network saw; "" if none.

    They are people, else clips, else records that are named alike, and images that are equal byte
    for byte whatever they are called. `opened` is from `opener`.
    """
    keys, digests = _keys(test), test.columns["image_digest"]
    known = [group_key("", subject=who, clip="", record="") for who in provenance["subjects"]]
    found = np.isin(keys, known)
    equal = np.zeros(len(keys), bool)
    for part in map(opened, provenance["saw"]):
        if part is not None:
            found |= np.isin(keys, _keys(part))
            equal |= np.isin(digests, part.columns["image_digest"])
    names = {key.removeprefix("/") for key in keys[found].tolist()}
    names |= {f"image/{name}" for name in test.columns["record_id"][equal & ~found].tolist()}
    if not names:
        return ""
    counts = collections.Counter(name.partition("/")[0] for name in sorted(names, reverse=True))
    what = " and ".join(f"{count} of the {kind}s" for kind, count in counts.items())
    kind = next(iter(counts))
    example = min(name for name in names if name.startswith(kind)).partition("/")[2]
    return f"{what} of the test set {test.name} {test.split} (such as '{example}')"


def behind(
    parts: Iterable[Records], tests: Sequence[Records], data_dir: Path, start: Provenance
) -> tuple[list[Seen], list[str]]:
    """Compares the networks behind training and validation parts with test sets.

    `start` is what the network saw that the training starts from; {} if there is none. Returns what
    all of these saw of the test sets, and what is not known of whom they saw.
    """
    opened = opener(data_dir)
    seen: list[Seen] = []
    unknown: set[str] = set()
    networks = [
        (role, f"the {role} {ROLES[role]} {part.name}", own)
        for part in {part.name: part for part in parts}.values()
        for role, own in makers(part, data_dir).items()
    ]
    if start:
        networks.append((START, "the network that the training starts from", merged(start)))
    for role, name, own in networks:
        provenance = _with_ancestors(own, data_dir, opened)
        unknown.update(provenance["unknown"])
        for entry in provenance["saw"]:
            # People who are named are compared by their names.
            if entry.get("unnamed", 1) and opened(entry) is None:
                where = f"{entry['dataset']} {entry['split']}"
                unknown.add(f"{where}, which {name} saw and is not here")
        for test in tests:
            if what := shared(provenance, test, opened):
                seen.append(Seen(role, test, f"{name} saw {what}"))
    return seen, sorted(unknown)
