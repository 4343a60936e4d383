"""Writes the files beside a dataset's shards: ledger.csv, quality.csv, clips.csv, build.json."""

import collections
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import schema
from fer_jax.media import clips, faces
from fer_jax.media.extraction import Extraction
from fer_jax.storage import write_atomically, write_table

SUMMARY = "build.json"
REASONS_IN_LINE = 4
FEW_IMAGES = 30  # too few to choose a checkpoint by, or to score on


def counts_in_line(counts: Mapping[str, int]) -> str:
    """Returns counts by name as "a 1, b 2"."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def reasons_in_line(skipped: Sequence[tuple[str, str]]) -> str:
    """Returns how many inputs were skipped for each reason as " (a 1, b 2)", or ""."""
    counts = collections.Counter(reason for _, reason in skipped)
    named = counts_in_line(dict(counts.most_common(REASONS_IN_LINE)))
    others = len(counts) - REASONS_IN_LINE
    return f" ({named}{f', {others} other reasons' * (others > 0)})" if counts else ""


def reasons(
    unit: str,
    not_read: Mapping[str, int],
    skipped: Mapping[str, int],
    not_used: Mapping[str, int],
    ignored: Mapping[str, int],
) -> str:
    """Returns in lines why inputs gave no record, the most frequent reasons first.

    Of clips (`unit`), those that were not read are counted apart from the skipped frames; an image
    is skipped in either case. `not_used` are rows of a list that are no input of their own.
    """
    counted = {"skipped": collections.Counter(not_read) + collections.Counter(skipped)}
    if unit == "clip":
        counted = {"clips that were not read": not_read, "skipped frames": skipped}
    counted |= {"rows of the list that are not used": not_used, "ignored": ignored}
    lines = []
    for title, counts in counted.items():
        if title == "skipped" or any(counts.values()):
            lines.append(f"  {title}: {sum(counts.values())}")
        ordered = sorted(counts.items(), key=lambda pair: -pair[1])
        lines += [f"    {count} x {reason}" for reason, count in ordered if count]
    return "\n".join(lines)


def write_quality(folder: Path, outcomes: Sequence[Any]) -> None:
    """Writes quality.csv, a row for every record, if the faces were measured."""
    measured = [record for one in outcomes for record in one.records if record["measured"]]
    if measured:
        columns = ("record_id", *measured[0]["measured"])
        rows = [
            {"record_id": record["record_id"]}
            | {name: f"{value:.1f}" for name, value in record["measured"].items()}
            for record in sorted(measured, key=lambda record: record["record_id"])
        ]
        write_table(folder / "quality.csv", columns, rows)


def write_clips(
    folder: Path, inputs: Sequence[Mapping[str, Any]], extraction: Extraction, kept: Path
) -> None:
    """Writes clips.csv: for every clip, what its container claims and what it contains."""
    rows = []
    for row in inputs:
        clip = clips.read_clip(clips.finished_file(row["_job"], extraction, kept))
        read = {"frames_requested": len(clip.found)}
        read["frames_with_faces"] = sum(bool(found.faces) for found in clip.found)
        claimed = {name: str(getattr(clip, name)) for name in clips.Clip._fields[1:]}
        rows.append({"clip": row["record_id"], "file": row["_job"].path} | claimed | read)
    write_table(folder / "clips.csv", list(rows[0]), rows)


def write_summary(
    folder: Path, inputs: Any, outcomes: Sequence[Any], skipped: Sequence[tuple[str, str]]
) -> None:
    """Writes build.json: counts that add up, classes by split, settings, and a fingerprint."""
    by_split: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for outcome in outcomes:
        by_split[outcome.split] += outcome.records
    by_split = dict(sorted(by_split.items()))
    records = [record for own in by_split.values() for record in own]
    num_inputs = len(inputs.skipped) + sum(outcome.num_inputs for outcome in outcomes)
    digests = sorted((record["record_id"], record["digest"]) for record in records)
    summary = {
        "inputs": num_inputs,
        "inputs_with_faces": num_inputs - len(skipped),
        "records": len(records),
        "skipped": count_reasons(skipped),
        "not_read": count_reasons(inputs.skipped),  # of the skipped, those that were not opened
        "not_used": count_reasons(inputs.remarks),
        "ignored": {name: count for name, count in inputs.ignored.items() if count},
        "splits": {split: len(own) for split, own in by_split.items()},
        "classes": {
            split: {task: _class_counts(own, task) for task in schema.TASKS}
            for split, own in by_split.items()
        },
        "subjects_by_split": {split: _subjects(own) for split, own in by_split.items()},
        "subjects": _subjects(records),
        "below_published": _below_published(records),
        "options": inputs.settings,
        "fingerprint": hashlib.sha256(json.dumps(digests).encode()).hexdigest(),
        "inputs_digest": inputs_digest(inputs),
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / SUMMARY, text)


def count_reasons(entries: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Returns how many (item, reason) pairs have each reason."""
    return dict(collections.Counter(reason for _, reason in entries))


def _subjects(records: Sequence[Mapping[str, Any]]) -> int:
    return len({record["subject_id"] for record in records} - {""})


def _class_counts(records: Sequence[Mapping[str, Any]], task: str) -> dict[str, int]:
    indices = collections.Counter(record[task] for record in records)
    counts = {name: indices[i] for i, name in enumerate(schema.TASKS[task]) if indices[i]}
    return counts | ({"unknown": indices[schema.UNKNOWN]} if indices[schema.UNKNOWN] else {})


def _below_published(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Counts the measured faces below the published limits."""
    limits = {"contrast": faces.PUBLISHED_CONTRAST, "sharpness": faces.PUBLISHED_SHARPNESS}
    measured = [record["measured"] for record in records if record["measured"]]
    return {
        f"{name} below {limit:g}": sum(one[name] < limit for one in measured)
        for name, limit in limits.items()
        if measured
    }


def inputs_digest(inputs: Any) -> str:
    """Returns a digest of the rows; other files, labels or splits give another one."""
    rows = []
    for row in inputs.rows:
        known = {key: value for key, value in row.items() if not key.startswith("_")}
        if "_job" in row:
            # The size, not the time: copies of a source must have the same digest.
            known["bytes"] = os.stat(row["_job"].path).st_size
        rows.append(json.dumps(known, default=np.ndarray.tolist))
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


def table(label: str, summary: Mapping[str, Any], num_clips: int = 0) -> str:
    """Returns a summary as text for a terminal."""
    lines = [f"{label}: {summary['records']} records"]
    skipped, not_read = (collections.Counter(summary[name]) for name in ("skipped", "not_read"))
    if num_clips:
        frames = summary["inputs"] - not_read.total()
        lines[0] += f" from {frames} frames of {num_clips} clips"
    for split, count in summary["splits"].items():
        subjects = summary["subjects_by_split"][split]
        people = f"{subjects} subject{'s' * (subjects > 1)}" if subjects else "no named subjects"
        lines.append(f"  {split}: {count} images, {people}")
        for task, counts in summary["classes"][split].items():
            if set(counts) != {"unknown"}:
                lines.append(f"    {task}: {counts_in_line(counts)}")
        if split != "train" and count < FEW_IMAGES:
            lines.append(f"    only {count} images: each is {1 / count:.0%} of the accuracy")
    if summary["below_published"]:
        lines.append(
            f"  below the published limits: {counts_in_line(summary['below_published'])} records"
        )
    unit = "clip" if num_clips else "image"
    unused = (summary["not_used"], summary["ignored"])
    return "\n".join([*lines, reasons(unit, not_read, skipped - not_read, *unused)])
