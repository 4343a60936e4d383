"""Tables of synthetic faces that `synthesize` writes.

`records.csv` has one row per accepted face, `rejected.csv` one per rejected candidate. An image is
written before its row, so every row that a later step reads has its image, whenever the run was
stopped.
"""

import math
from collections.abc import Mapping
from typing import Any

from fer_jax.errors import InputError, did_you_mean
from fer_jax.schema import LABEL_SOURCES, TASKS

RECORDS, REJECTED, SETTINGS = "records.csv", "rejected.csv", "synthesis.json"
# How the face was sampled, its label, and its measured quality.
RECORD_COLUMNS = (
    *("file", "seed", "psi", "class", "direction", "strength"),
    *("label", "label_source", "confidence"),
    *("quality", "size", "contrast", "sharpness", "num_faces", "face_share"),
)
REJECTED_COLUMNS = ("face", "seed", "psi", "class", "direction", "label", "confidence", "reason")

Row = dict[str, str]


def record_columns(task: str) -> tuple[str, ...]:
    """Returns the header of records.csv; the teacher's probabilities are its last columns."""
    return (*RECORD_COLUMNS, *(f"p_{name}" for name in TASKS[task]))


def group_of(row: Mapping[str, Any]) -> str:
    """Returns the class that a row of either table counts for: its label, else the network's."""
    return row["label"] or row["class"]


def probabilities(row: Row, task: str) -> list[float] | None:
    """Returns the teacher's probabilities in a row, if any; InputError if they do not sum to 1."""
    cells = [row[f"p_{name}"] for name in TASKS[task]]
    if not any(cells):
        return None
    values = [number(cell, "a probability") for cell in cells]
    if min(values) < 0 or abs(sum(values) - 1) > 1e-3:
        raise InputError(f"class probabilities must sum to 1, got {sum(values):g}")
    return values


def number(text: str, what: str) -> float:
    """Returns the finite number in a cell; `what` describes it in the InputError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"'{text}' is not {what}")
    return value


def label_source(name: str) -> str:
    """Returns one of `schema.LABEL_SOURCES`, or raises InputError."""
    if name not in LABEL_SOURCES:
        raise InputError(f"unknown label_source '{name}'{did_you_mean(name, LABEL_SOURCES)}")
    return name
