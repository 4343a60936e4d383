"""Predicts records: one CSV row per image, the predictions, from which every number is computed.

Beside it is a JSON file of the same name with its origin: "step" and "checksum" of the checkpoint,
"chosen" (how: "best" on validation data, "last", or "step", which a user named), and "fingerprint"
of the dataset. Tables of hand have none.

In memory a table is a dict of columns, with `label` int64 [n] (index of the class, -1 unknown)
and `probabilities` float64 [n, k].
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from fer_jax import forms, storage
from fer_jax.data.batches import evaluation_batches
from fer_jax.data.records import Records
from fer_jax.errors import InputError
from fer_jax.inference.network import PredictStep
from fer_jax.sharding import to_devices

ORDER = (
    *("record_id", "dataset", "split", "source", "content", "stimulus_id", "subject_id"),
    *("clip_id", "frame_index", "gender", "age", "label"),
)
TEXT = tuple(name for name in ORDER if name not in ("frame_index", "age", "label"))
# Column of a table in memory: the name of an image's group of near-duplicates; "": not looked for.
GROUP = "near_duplicate_group"
# In a workdir, what `evaluate` found in the records of each test set: the file name of its plain
# table -> {"relation", "near_duplicates": {record_id: group}, "annotators", "differences": how its
# images differ from those of the training, a sentence each}.
TEST_SETS = "test_sets.json"
# 9 digits identify a float32, so probabilities are read back exactly.
DIGITS = 9
SUM_TOLERANCE = 1e-5
BATCHES_IN_FLIGHT = 4

Table = dict[str, np.ndarray]


def predict(
    step: PredictStep,
    network: dict[str, Any],
    records: Records,
    rows: np.ndarray,
    *,
    batch_size: int,
    image_size: int,
    mesh: Mesh,
) -> np.ndarray:
    """Predicts records: probabilities, float64 [n, classes], in the order of `rows`, int64 [n].

    `batch_size` is over all devices and processes, and divisible by the devices.
    """
    predicted = []
    for images in evaluation_batches(records, rows, batch_size=batch_size, image_size=image_size):
        predicted.append(step(network, to_devices(images, mesh)))
        # Decoding runs ahead of the device, but no further than memory allows.
        if len(predicted) > BATCHES_IN_FLIGHT:
            predicted[-BATCHES_IN_FLIGHT].block_until_ready()
    # Only the last batch was padded, at its end.
    return np.concatenate([np.asarray(p, np.float64) for p in predicted])[: len(rows)]


def from_records(records: Records, rows: np.ndarray, task: str, probabilities: np.ndarray) -> Table:
    """Returns the predictions table of some rows of the records."""
    columns = take(records.columns, rows)
    table = {name: columns[name] for name in ORDER if name in columns}
    table["dataset"] = np.full(len(rows), records.name)
    table["split"] = np.full(len(rows), records.split)
    return table | {"label": columns[task], "probabilities": probabilities}


def file_name(dataset: str, split: str, variant: str = "") -> str:
    """Returns `<dataset>.<split>[.<variant>].csv`, in characters that every file system takes.

    "/" in a dataset becomes "-"; other characters outside letters, digits, "_", "+" and "-"
    become their code in hexadecimal, so that different names stay different.
    """

    def safe(text: str) -> str:
        return re.sub(r"[^\w+-]", lambda match: f"~{ord(match[0]):x}", text.replace("/", "-"))

    return ".".join(safe(part) for part in (dataset, split, variant) if part) + ".csv"


def description(file: Path, table: Table) -> dict[str, str]:
    """Returns the "dataset", "split" and "variant" ("" for none) of a table."""
    dataset, split = str(table["dataset"][0]), str(table["split"][0])
    plain = file_name(dataset, split).removesuffix(".csv")
    # A table of several datasets has one of their names, if any.
    variant = file.name.removesuffix(".csv").partition(plain)[2].removeprefix(".")
    return {"dataset": dataset, "split": split, "variant": variant}


def split_by_dataset(table: Table) -> list[Table]:
    """Splits a table into one for each dataset and split that it has images of."""
    names = np.stack([table["dataset"], table["split"]])
    found, of_row = np.unique(names, axis=1, return_inverse=True)
    return [take(table, of_row == number) for number in range(found.shape[1])]


def take(table: Table, rows: np.ndarray) -> Table:
    """Returns some rows of a table, by their numbers or as a mask."""
    return {name: column[rows] for name, column in table.items()}


def labelled(table: Table) -> Table:
    """Returns the rows of a table that have a label."""
    return take(table, table["label"] >= 0)


def count_named(table: Table, column: str) -> int:
    """Counts the different values of a text column, without ""."""
    return len(set(table[column].tolist()) - {""})


def sizes(table: Table) -> dict[str, int]:
    """Counts the images, subjects and clips of a table as "n", "n_subjects" and "n_clips"."""
    named = {f"n_{kind}s": count_named(table, f"{kind}_id") for kind in ("subject", "clip")}
    return {"n": len(table["record_id"])} | named


def write(
    path: Path, table: Table, classes: tuple[str, ...], origin: dict[str, Any] | None = None
) -> None:
    """Writes a table in one piece or not at all, then its origin beside it."""
    beside = path.with_suffix(".json")
    beside.unlink(missing_ok=True)  # of the table that is replaced
    columns = {name: table[name].tolist() for name in ORDER}
    columns["age"] = [str(age) for age in columns["age"]]
    columns["label"] = [classes[label] if label >= 0 else "" for label in table["label"]]
    for name, chances in zip(classes, table["probabilities"].T, strict=True):
        columns[f"p_{name}"] = [f"{p:.{DIGITS}g}" for p in chances]
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    storage.write_table(path, list(columns), rows)
    if origin:
        storage.write_atomically(beside, json.dumps(origin, indent=1) + "\n")


def read_origin(path: Path) -> dict[str, Any]:
    """Returns the origin of a table; {} if none is beside it."""
    return storage.read_json(path.with_suffix(".json"), "evaluate again", forms.ORIGIN)


def read_record_ids(path: Path) -> set[str]:
    """Reads the images that a table is about."""
    return {row["record_id"] for row in storage.read_table(path, ("record_id",), appended=False)}


def read(path: Path, expected: tuple[str, ...] | None = None) -> tuple[Table, tuple[str, ...]]:
    """Reads a table and the classes of its probabilities.

    Raises InputError if columns are missing, a row does not make sense (names the line), or the
    classes are not the expected ones.
    """
    rows = storage.read_table(path, ORDER, appended=False)
    if not rows:
        raise InputError(f"{path} has no predictions")
    classes = tuple(name.removeprefix("p_") for name in rows[0] if name.startswith("p_"))
    if expected and classes != expected:
        raise InputError(f"{path} is about {', '.join(classes)}, not {', '.join(expected)}")
    known = {name: index for index, name in enumerate(classes)} | {"": -1}
    for row in rows:
        if row["label"] not in known:
            raise InputError(f"{path}: unknown label '{row['label']}'; known: {', '.join(classes)}")
    try:
        table: Table = {name: np.asarray([row[name] for row in rows], np.str_) for name in TEXT}
        table["frame_index"] = np.asarray([row["frame_index"] for row in rows], np.int64)
        table["age"] = np.asarray([row["age"] for row in rows], np.float64)
        table["label"] = np.asarray([known[row["label"]] for row in rows], np.int64)
        chances = [np.asarray([row[f"p_{name}"] for row in rows], np.float64) for name in classes]
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    table[GROUP] = _groups(path.parent.parent, table)
    table["probabilities"] = np.stack(chances, axis=1)
    sums = table["probabilities"].sum(axis=1)
    wrong = np.flatnonzero(~(np.abs(sums - 1) <= SUM_TOLERANCE))
    if len(wrong):
        raise InputError(f"{path}, line {wrong[0] + 2}: probabilities sum to {sums[wrong[0]]}")
    outside = np.argwhere((table["probabilities"] < 0) | (table["probabilities"] > 1))
    if len(outside):
        row, label = outside[0]
        value = table["probabilities"][row, label]
        raise InputError(
            f"{path}, line {row + 2}: p_{classes[label]} must be from 0 to 1, got {value}"
        )
    if len(set(table["record_id"].tolist())) != len(rows):
        raise InputError(f"{path}: an image occurs twice")
    return table, classes


def read_test_sets(workdir: Path) -> dict[str, dict[str, Any]]:
    """Returns what `TEST_SETS` says; {} where `evaluate` wrote none."""
    return storage.read_json(workdir / TEST_SETS, "evaluate again", forms.TEST_SETS)


def _groups(workdir: Path, table: Table) -> np.ndarray:
    found = read_test_sets(workdir)
    looked_for = {name: one["near_duplicates"] for name, one in found.items()}
    names = zip(*(table[name].tolist() for name in ("dataset", "split", "record_id")), strict=True)
    groups = []
    for dataset, split, record in names:
        of_set = looked_for.get(file_name(dataset, split))
        groups.append("" if of_set is None else of_set.get(record, record))
    return np.asarray(groups, np.str_)
