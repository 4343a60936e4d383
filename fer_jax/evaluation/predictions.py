"""The predictions table: one CSV row per image, from which every number is computed.

In memory a table is a dict of columns, with `label` int64 [n] (index of the class, -1 unknown)
and `probabilities` float64 [n, k].
"""

import csv
import io
import re
from pathlib import Path

import numpy as np

from fer_jax.errors import InputError

TEXT = (
    "record_id",
    "dataset",
    "split",
    "source",
    "content",
    "stimulus_id",
    "subject_id",
    "clip_id",
    "gender",
)
ORDER = (
    *("record_id", "dataset", "split", "source", "content", "stimulus_id", "subject_id"),
    *("clip_id", "frame_index", "gender", "age", "label"),
)
# float32 probabilities are written with as many digits as bring them back.
DIGITS = 9
SUM_TOLERANCE = 1e-5

Table = dict[str, np.ndarray]


def file_name(dataset: str, split: str, variant: str = "") -> str:
    """`<dataset>.<split>[.<variant>].csv`, in characters every file system takes.

    "/" in a dataset becomes "-"; other characters outside letters, digits, "_", "+" and "-"
    become their code in hexadecimal, so that different names stay different.
    """

    def safe(text: str) -> str:
        return re.sub(r"[^\w+-]", lambda match: f"~{ord(match[0]):x}", text.replace("/", "-"))

    parts = [safe(dataset), safe(split), *([safe(variant)] if variant else [])]
    return ".".join(parts) + ".csv"


def write(path: Path, table: Table, classes: tuple[str, ...]) -> None:
    """Writes a table whole or not at all."""
    columns = [*ORDER, *(f"p_{name}" for name in classes)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    labels = [classes[label] if label >= 0 else "" for label in table["label"]]
    plain = [table[name].tolist() if name != "label" else labels for name in ORDER]
    chances = [[f"{p:.{DIGITS}g}" for p in row] for row in table["probabilities"]]
    for *known, probabilities in zip(*plain, chances, strict=True):
        writer.writerow([*known, *probabilities])
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text.getvalue())
    temporary.replace(path)


def read(path: Path) -> tuple[Table, tuple[str, ...]]:
    """Reads a table and the classes it is about.

    Raises:
      InputError: columns are missing, or a row does not make sense; names the line.
    """
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if len(rows) < 2:
        raise InputError(f"{path} holds no predictions")
    header, *rows = rows
    missing = [name for name in ORDER if name not in header]
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}")
    classes = tuple(name.removeprefix("p_") for name in header if name.startswith("p_"))
    known = {name: index for index, name in enumerate(classes)} | {"": -1}
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}, line {number}: {len(row)} values, not {len(header)}")
    cells = dict(zip(header, zip(*rows, strict=True), strict=True))
    strangers = [label for label in cells["label"] if label not in known]
    if strangers:
        raise InputError(f"{path}: label '{strangers[0]}' is none of {', '.join(classes)}")
    try:
        table: Table = {name: np.asarray(cells[name], np.str_) for name in TEXT}
        table["frame_index"] = np.asarray(cells["frame_index"], np.int64)
        table["age"] = np.asarray(cells["age"], np.float64)
        table["label"] = np.asarray([known[label] for label in cells["label"]], np.int64)
        chances = [np.asarray(cells[f"p_{name}"], np.float64) for name in classes]
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    table["probabilities"] = np.stack(chances, axis=1)
    sums = table["probabilities"].sum(axis=1)
    wrong = np.flatnonzero(~(np.abs(sums - 1) <= SUM_TOLERANCE))
    if len(wrong):
        raise InputError(f"{path}, line {wrong[0] + 2}: probabilities sum to {sums[wrong[0]]}")
    if len(set(cells["record_id"])) != len(rows):
        raise InputError(f"{path}: an image occurs twice")
    return table, classes
