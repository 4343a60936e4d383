"""The folder that `predict` fills: tables of faces, people and inputs, and what was drawn.

The rows of an input are written before its row in ledger.csv: what is not in the ledger is not
there, and is dropped when the folder is opened again. So a stopped run continues.
"""

import csv
import hashlib
import io
import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from fer_jax.errors import InputError

LEDGER = ("file", "kind", "bytes", "modified", "pictures", "with_faces", "faces", "drawn", "reason")


class Input(NamedTuple):
    """One thing to be looked at.

    Attributes:
      path: of the file.
      name: in the tables.
      place: where it is in the folder that was given; its name, where a file was.
      kind: "picture", "clip" or "camera"; "" where it is none of them.
    """

    path: Path
    name: str
    place: str
    kind: str


class Answers:
    """A folder of answers, or standard output where there is no folder.

    Attributes:
      out: the folder.
      ledger: its rows, by the input's name.
    """

    def __init__(
        self,
        out: Path | None,
        about: dict[str, Any],
        inputs: Iterable[Input],
        *,
        overwrite: bool = False,
    ) -> None:
        """Opens a folder and drops what is there of files that are not finished or have changed.

        Args:
          out: the folder; made if it is not there. None for none.
          about: the model ("task", "classes", ...) and the settings ("smooth", ...), which must
            be those of what is there already.
          inputs: what is to be answered.
          overwrite: drop all that is there already.

        Raises:
          InputError: it holds the answers of another model or of other settings.
        """
        self.out = out
        self.ledger: dict[str, dict[str, str]] = {}
        self._columns = ["file", "frame", "timestamp_s", "face", "x", "y", "width", "height"]
        self._columns += ["score", about["task"], *(f"p_{name}" for name in about["classes"])]
        if about["smooth"]:
            self._columns += [f"smoothed_{name}" for name in about["classes"]]
        if out is None:
            return
        out.mkdir(parents=True, exist_ok=True)
        settings, text = out / "settings.json", json.dumps(about, indent=2) + "\n"
        if settings.is_file() and not overwrite:
            if settings.read_text() != text:
                raise InputError(
                    f"'{out}' holds the answers of another model, or of other settings; choose "
                    "another --out, or --overwrite them"
                )
            now = {one.name: _identity(one.path) for one in inputs}
            for row in _rows(out / "ledger.csv"):
                then = row["bytes"], row["modified"]
                if now.get(row["file"], then) == then and row["kind"] != "camera":
                    self.ledger[row["file"]] = row
        settings.write_text(text)
        _write_csv(out / "ledger.csv", LEDGER, list(self.ledger.values()))
        people = [row for row in _rows(out / "clips.csv") if row["file"] in self.ledger]
        (out / "clips.csv").unlink(missing_ok=True)
        if people:
            _write_csv(out / "clips.csv", list(people[0]), people)
        _keep_lines(out / "faces.jsonl", self.ledger.keys())

    def place(self, one: Input, folder: str, suffix: str) -> Path | None:
        """Where something drawn of an input goes, under a name of its own; None for nowhere."""
        if self.out is None:
            return None
        place = one.place if one.place.lower().endswith(suffix) else one.place + suffix
        taken = {row["drawn"] for name, row in self.ledger.items() if name != one.name}
        if any(drawn.partition("/")[2] == place for drawn in taken):
            digest = hashlib.sha256(one.name.encode()).hexdigest()[:8]
            place = f"{place[: -len(suffix)]}.{digest}{suffix}"
        path = self.out / folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_faces(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends rows of faces, their numbers to six digits."""
        lines = "".join(json.dumps(_rounded(row)) + "\n" for row in rows)
        if self.out is None:
            sys.stdout.write(lines)
            sys.stdout.flush()
        else:
            with (self.out / "faces.jsonl").open("a", encoding="utf-8") as file:
                file.write(lines)

    def finish(
        self,
        one: Input,
        *,
        pictures: int = 0,
        with_faces: int = 0,
        num_faces: int = 0,
        people: Sequence[dict[str, Any]] = (),
        drawn: Path | None = None,
        reason: str = "",
    ) -> None:
        """An input is done, and its faces are written.

        Args:
          one: the input.
          pictures: how many of it were looked at; a photo is one.
          with_faces: in how many of them there was a face.
          num_faces: in all of them.
          people: rows of clips.csv.
          drawn: what was drawn of it.
          reason: why it was not answered, or not wholly.
        """
        size, modified = _identity(one.path)
        where = drawn.relative_to(self.out).as_posix() if self.out and drawn else ""
        counts = map(str, (pictures, with_faces, num_faces))
        row = [one.name, one.kind, size, modified, *counts, where, reason]
        self.ledger[one.name] = dict(zip(LEDGER, row, strict=True))
        if reason:
            tqdm.write(f"{one.name}: {reason}", file=sys.stderr)
        if self.out is not None:
            if people:
                rows = [_rounded({"file": one.name} | row) for row in people]
                _append_csv(self.out / "clips.csv", rows)
            _append_csv(self.out / "ledger.csv", [self.ledger[one.name]])

    def close(self) -> None:
        """Writes faces.csv from faces.jsonl, a row at a time."""
        if self.out is None:
            return
        lines, table = self.out / "faces.jsonl", self.out / "faces.csv"
        temporary = table.with_suffix(".tmp")
        with lines.open("a+", encoding="utf-8") as rows:
            rows.seek(0)
            with temporary.open("w", newline="", encoding="utf-8") as text:
                writer = csv.DictWriter(text, self._columns)
                writer.writeheader()
                writer.writerows(_flat(json.loads(line)) for line in rows)
        temporary.replace(table)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A face for a table: a column a number."""
    flat = {key: value for key, value in row.items() if not isinstance(value, list | dict)}
    flat |= dict(zip(("x", "y", "width", "height"), row["box"], strict=True))
    flat |= {f"p_{name}": value for name, value in row["probabilities"].items()}
    return flat | {f"smoothed_{name}": value for name, value in row.get("smoothed", {}).items()}


def _identity(path: Path) -> tuple[str, str]:
    """(bytes, time of the last change) of a file; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return "", ""
    return str(status.st_size), str(status.st_mtime_ns)


def _rows(file: Path) -> list[dict[str, str]]:
    """The whole rows of a table; a last one that was cut off while it was written is left out."""
    if not file.is_file():
        return []
    text, end, _ = file.read_text(encoding="utf-8").rpartition("\n")
    rows = csv.DictReader(io.StringIO(text + end, newline=""))
    return [row for row in rows if None not in row and None not in row.values()]


def _write_csv(file: Path, header: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    _append_csv(temporary, rows, header)
    temporary.replace(file)


def _append_csv(file: Path, rows: Sequence[dict[str, Any]], header: Sequence[str] = ()) -> None:
    begins = not file.is_file()
    with file.open("a", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, header or list(rows[0]))
        if begins:
            writer.writeheader()
        writer.writerows(rows)


def _keep_lines(file: Path, names: Collection[str]) -> None:
    """Drops the lines of all files but these, a line at a time."""
    if not file.is_file():
        return
    temporary = file.with_suffix(".tmp")
    with file.open(encoding="utf-8") as old, temporary.open("w", encoding="utf-8") as new:
        for line in old:
            if line.endswith("\n") and json.loads(line)["file"] in names:
                new.write(line)
    temporary.replace(file)
