"""The log of test accesses: each row has the hash of all rows before it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_jax import forms, storage
from fer_jax.errors import InputError

FILE = "test_access.jsonl"


def read(folder: Path, known: str | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the rows of a folder's log and the hash of the log after each of them.

    Rows of earlier versions have no "previous"; they come first. Raises InputError if a row was
    changed, moved or removed, or if the log never had the hash `known`, which a result carries:
    without one, a removed end cannot be seen.
    """
    rows = storage.read_json_lines(folder / FILE, forms.TEST_ACCESS_ROW)
    hashes: list[str] = []
    for number, row in enumerate(rows, 1):
        previous = hashes[-1] if hashes else ""
        is_chained = number > 1 and "previous" in rows[number - 2]
        if row.get("previous", None if is_chained else previous) != previous:
            raise InputError(
                f"'{folder / FILE}', line {number}: a row before it was changed or removed; "
                "restore the log from a copy"
            )
        hashes.append(_hash(previous, row))
    if known and known not in hashes:
        raise InputError(
            f"'{folder / FILE}' lacks rows that a result was made with; restore it from a copy"
        )
    return rows, hashes


def append(folder: Path, row: Mapping[str, Any]) -> str:
    """Appends a row to a folder's log and returns the log's hash."""
    storage.drop_torn_line(folder / FILE)
    _, hashes = read(folder)
    previous = hashes[-1] if hashes else ""
    chained = {**row, "previous": previous}
    storage.append(folder / FILE, json.dumps(chained) + "\n")
    return _hash(previous, chained)


def _hash(previous: str, row: Mapping[str, Any]) -> str:
    text = json.dumps(row, sort_keys=True)
    return hashlib.sha256(f"{previous}\n{text}".encode()).hexdigest()
