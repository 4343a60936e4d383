"""Generated faces on disk: a folder's two tables, and whom its networks were trained on.

`records.csv` has a row for every face that is kept, `rejected.csv` for every one that is not. An
image is written before its row, and a row is there when its line ends: what a later step reads
is whole, whenever the run was stopped, and the run can go on.
"""

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_jax.data.records import Records, build_summary, open_records
from fer_jax.data.splits import group_key
from fer_jax.errors import InputError, did_you_mean
from fer_jax.schema import LABEL_SOURCES, TASKS

RECORDS, REJECTED, SETTINGS = "records.csv", "rejected.csv", "synthesis.json"
# What was asked, what came of it, and what was measured.
RECORD_COLUMNS = (
    *("file", "seed", "psi", "class", "direction", "strength"),
    *("label", "label_source", "confidence"),
    *("quality", "size", "contrast", "sharpness", "num_faces", "face_share"),
)
REJECTED_COLUMNS = ("face", "seed", "psi", "class", "direction", "label", "confidence", "reason")
MAX_TABLE_BYTES = 2 * 2**30

Row = dict[str, str]


def record_columns(task: str) -> tuple[str, ...]:
    """The header of records.csv: the teacher's probabilities come last."""
    return (*RECORD_COLUMNS, *(f"p_{name}" for name in TASKS[task]))


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is there complete or not at all.

    Raises:
      InputError: it could not be written; says why (a full disk, most often).
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritten(path, error) from error


def append(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to a table, all of them or none.

    Args:
      path: of the table; begun with its header where it is missing.
      columns: its header.
      rows: values by column; a missing one is left empty.

    Raises:
      InputError: it could not be written; the table is as it was.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.is_file():
        writer.writerow(columns)
    writer.writerows([_cell(row.get(name, "")) for name in columns] for row in rows)
    data = text.getvalue().encode()
    before = path.stat().st_size if path.is_file() else 0
    try:
        with path.open("ab", buffering=0) as file:
            # A disk that fills up takes a part and says so at the next call.
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
    except OSError as error:
        if path.is_file():
            os.truncate(path, before)
            if not before:
                path.unlink()
        raise _unwritten(path, error) from error


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _unwritten(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(
        f"'{path}' could not be written ({reason}); what is finished is whole: make room and give "
        "the same command again"
    )


def read(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a table; [] where it is not begun.

    A last line without its end was being written when the run was stopped: it is no row.

    Raises:
      InputError: the header is another one, or a line has another number of values.
    """
    if not path.is_file():
        return []
    if path.stat().st_size > MAX_TABLE_BYTES:
        raise InputError(f"'{path}' is over {MAX_TABLE_BYTES // 2**30} GiB")
    lines = list(csv.reader(_whole_lines(path).decode().splitlines()))
    if not lines:
        return []
    header, *rows = lines
    missing = [name for name in columns if name not in header]
    if missing:
        raise InputError(f"'{path}' lacks the columns {', '.join(missing)}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"'{path}', line {number}: {len(row)} values, not {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _whole_lines(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]


def cut_torn_line(path: Path) -> None:
    """Takes away what a stopped run left of a line, before the next is appended."""
    if path.is_file():
        whole = len(_whole_lines(path))
        if whole != path.stat().st_size:
            os.truncate(path, whole)
        if not whole:
            path.unlink()


def group_of(row: Mapping[str, Any]) -> str:
    """The class that a row of either table counts for: its label, else the network's class."""
    return row["label"] or row["class"]


def probabilities(row: Row, task: str) -> list[float] | None:
    """The teacher's probabilities of a row; None where it had no teacher.

    Raises:
      InputError: they are no distribution.
    """
    cells = [row[f"p_{name}"] for name in TASKS[task]]
    if not any(cells):
        return None
    values = [number(cell, "a probability") for cell in cells]
    if min(values) < 0 or abs(sum(values) - 1) > 1e-3:
        raise InputError("the probabilities do not sum to 1")
    return values


def number(text: str, what: str) -> float:
    """A finite number from a cell.

    Raises:
      InputError: it is none.
    """
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"'{text}' is not {what}") from error
    if not math.isfinite(value):
        raise InputError(f"'{text}' is not {what}")
    return value


def label_source(word: str) -> str:
    """How a label came about.

    Raises:
      InputError: not one of the ways.
    """
    if word not in LABEL_SOURCES:
        raise InputError(f"label_source '{word}'{did_you_mean(word, LABEL_SOURCES)}")
    return word


def identities(records: Records) -> set[str]:
    """Who or what is in the records: people, else clips, else the images themselves."""
    columns = (records.columns[name] for name in ("subject_id", "clip_id", "record_id"))
    return {
        group_key("", subject=str(subject), clip=str(clip), record=str(record))
        for subject, clip, record in zip(*columns, strict=True)
    }


def check_teachers(
    train: Iterable[Records], test: Sequence[Records], data_dir: Path, *, allow: bool
) -> None:
    """Refuses training on faces whose teacher or generator saw people of the test sets.

    Args:
      train: what is trained on.
      test: what will be tested on.
      data_dir: where these are built.
      allow: `config.allow_leaks`: only says so.

    Raises:
      InputError: names the datasets and one of the people.
    """
    for part in train:
        options = build_summary(part.name, data_dir).get("options", {})
        for role, did, remedy in (
            ("teacher", "labelled", "label with another teacher"),
            ("generator", "made", "make faces with another generator"),
        ):
            for tested in test:
                shared = sorted(_seen_of(options.get(role, {}), tested, data_dir))
                if not shared:
                    continue
                kind, _, name = shared[0].removeprefix("/").partition("/")
                found = (
                    f"the {role} that {did} {part.name} saw {len(shared)} of the {kind}s of the "
                    f"test set {tested.name} {tested.split} (such as '{name}')"
                )
                if not allow:
                    raise InputError(
                        f"{found}; test on others, {remedy}, or say --config.allow_leaks=true"
                    )
                print(f"  LEAK, as config.allow_leaks allows: {found}")


def _seen_of(trained: Mapping[str, Any], tested: Records, data_dir: Path) -> set[str]:
    """Who of a test set was among what a network was trained on ("subjects" and "saw")."""
    named = {group_key("", subject=who, clip="", record="") for who in trained.get("subjects", [])}
    # Where nobody is named, the pictures themselves are what was seen.
    saw = named.union(
        *(
            identities(open_records(one["dataset"], one["split"], data_dir))
            for one in trained.get("saw", [])
            if one["dataset"].split("/")[0] == tested.name.split("/")[0]
        )
    )
    return saw & identities(tested)
