"""What is written beside the shards: ledger.csv, quality.csv, clips.csv, build.json, the table."""

import collections
import csv
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fer_jax import schema
from fer_jax.data.plan import Outcome, Plan, listing, reasons
from fer_jax.media import clips, faces
from fer_jax.media.clips import Extraction


def summary(plan: Plan, outcomes: list[Outcome], ledger: list[tuple[str, str]]) -> dict[str, Any]:
    """What build.json says: counts that add up, classes by split, options, a fingerprint."""
    by_split = _records_by_split(outcomes)
    records = [record for of_split in by_split.values() for record in of_split]
    inputs = len(plan.refused) + sum(outcome.num_inputs for outcome in outcomes)
    digests = sorted((record["record_id"], record["digest"]) for record in records)
    return {
        "inputs": inputs,
        "inputs_with_faces": inputs - len(ledger),
        "records": len(records),
        "skipped": dict(collections.Counter(reason for _, reason in ledger)),
        "splits": {split: len(of_split) for split, of_split in by_split.items()},
        "classes": {
            split: {task: _class_counts(of_split, task) for task in schema.TASKS}
            for split, of_split in by_split.items()
        },
        "subjects": len({record["subject_id"] for record in records} - {""}),
        "options": plan.options,
        "fingerprint": hashlib.sha256(json.dumps(digests).encode()).hexdigest(),
    }


def _records_by_split(outcomes: list[Outcome]) -> dict[str, list[dict[str, Any]]]:
    by_split: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for outcome in outcomes:
        by_split[outcome.split] += outcome.records
    return dict(sorted(by_split.items()))


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table for a spreadsheet."""
    with file.open("w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows([header, *rows])


def write_measured(file: Path, outcomes: list[Outcome]) -> None:
    """quality.csv, where a detector measured the faces: a line per record."""
    measured = [r for outcome in outcomes for r in outcome.records if r["measured"]]
    if measured:
        names = list(measured[0]["measured"])
        rows = [
            [record["record_id"], *(f"{record['measured'][name]:.1f}" for name in names)]
            for record in sorted(measured, key=lambda record: record["record_id"])
        ]
        write_csv(file, ("record_id", *names), rows)


def write_clips(file: Path, plan: Plan, extraction: Extraction, folder: Path) -> None:
    """A line per clip: what it claims to hold, what it held, and what was made of it."""
    rows = []
    for row in plan.rows:
        clip = clips.read_clip(clips.finished_file(row["_job"], extraction, folder))
        with_faces = sum(bool(found.faces) for found in clip.found)
        rows.append([row["record_id"], row["_job"].path, *clip[1:], len(clip.found), with_faces])
    header = ("clip", "file", *clips.Clip._fields[1:], "frames_wanted", "frames_with_faces")
    write_csv(file, header, rows)


def _class_counts(rows: list[dict[str, Any]], task: str) -> dict[str, int]:
    indices = collections.Counter(row.get(task, schema.UNKNOWN) for row in rows)
    counts = {name: indices[i] for i, name in enumerate(schema.TASKS[task]) if indices[i]}
    return counts | ({"unknown": indices[schema.UNKNOWN]} if indices[schema.UNKNOWN] else {})


def table(label: str, plan: Plan, outcomes: list[Outcome], ledger: list[tuple[str, str]]) -> str:
    """The same for a terminal."""
    by_split = _records_by_split(outcomes)
    num_records = sum(map(len, by_split.values()))
    lines = [f"{label}: {num_records} records"]
    if plan.extraction:
        frames = sum(outcome.num_inputs for outcome in outcomes)
        lines[0] += f" from {frames} frames of {len(plan.rows)} clips"
    for split, records in by_split.items():
        subjects = len({record["subject_id"] for record in records} - {""})
        people = f"{subjects} subjects" if subjects else "no subjects named"
        lines.append(f"  {split}: {len(records)} images, {people}")
        for task in schema.TASKS:
            counts = _class_counts(records, task)
            if set(counts) != {"unknown"}:
                lines.append(f"    {task}: {listing(counts)}")
    measured = [r["measured"] for records in by_split.values() for r in records if r["measured"]]
    if measured:
        limits = {"contrast": faces.PUBLISHED_CONTRAST, "sharpness": faces.PUBLISHED_SHARPNESS}
        below = {
            f"{name} below {limit:g}": sum(one[name] < limit for one in measured)
            for name, limit in limits.items()
        }
        lines.append(f"  of the records the published gates would refuse: {listing(below)}")
    return "\n".join([*lines, reasons(ledger)])
