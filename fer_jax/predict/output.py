"""The folder that `predict` fills: tables of faces, tracked faces and inputs, and drawn pictures.

The rows of an input are written before its row in ledger.csv. What is not in the ledger was not
finished and is dropped when the folder is opened again, so a stopped run resumes.
"""

import collections
import csv
import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from fer_jax import storage
from fer_jax.errors import InputError
from fer_jax.figures import class_colours
from fer_jax.schema import TASKS

LEDGER = ("file", "kind", "bytes", "modified", "pictures", "with_faces", "faces", "drawn", "reason")
NOT_KNOWN = "not known"
INK, PAPER = (36, 31, 27), (255, 255, 255)  # BGR, as everything here
FONT = cv2.FONT_HERSHEY_DUPLEX
SMALLEST_TEXT, LARGEST_TEXT = 0.36, 1.1  # of the font's size
LEGEND_TEXT = 0.45


class Input(NamedTuple):
    """One file or camera."""

    path: Path
    name: str  # in the tables
    relative: str  # path in the folder that was given; the file's name if it was given itself
    kind: str  # "picture", "clip" or "camera"; "" if it is none of them


class Output:
    """A folder of predictions, or standard output if `folder` is None.

    `ledger` has its rows by the input's name.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: dict[str, Any],
        inputs: Iterable[Input],
        *,
        overwrite: bool = False,
    ) -> None:
        """Opens a folder; drops rows of files that are not finished or have changed, or all rows.

        `settings` has the model ("task", "classes", ...) and the options ("smooth", ...). Raises
        InputError if the folder has predictions of other settings.
        """
        self.folder = folder
        self.ledger: dict[str, dict[str, str]] = {}
        self._columns = ["file", "frame", "timestamp_s", "face", "x", "y", "width", "height"]
        self._columns += ["score", settings["task"], *(f"p_{c}" for c in settings["classes"])]
        if settings["certainty"] is not None:
            self._columns += ["answer", "candidates"]
        if settings["smooth"]:
            self._columns += [f"smoothed_{name}" for name in settings["classes"]]
        if folder is None:
            return
        file, text = folder / "settings.json", json.dumps(settings, indent=2) + "\n"
        if file.is_file() and not overwrite:
            before = storage.read_json(file, "--overwrite it")
            if changed := storage.differences(before, json.loads(text)):
                raise InputError(
                    f"'{folder}' has predictions of another model or other settings: "
                    f"{', '.join(changed)}; choose another --out, or --overwrite them"
                )
            now = {one.name: _identity(one.path) for one in inputs}
            found = _count_faces(folder / "faces.jsonl")
            for row in storage.read_table(folder / "ledger.csv", LEDGER):
                before = row["bytes"], row["modified"]
                unchanged = now.get(row["file"], before) == before and row["kind"] != "camera"
                if unchanged and str(found[row["file"]]) == row["faces"]:
                    self.ledger[row["file"]] = row
        storage.write_atomically(file, text)
        storage.write_table(folder / "ledger.csv", LEDGER, self.ledger.values())
        clips = folder / "clips.csv"
        kept = [row for row in storage.read_table(clips) if row["file"] in self.ledger]
        clips.unlink(missing_ok=True)
        if kept:
            storage.write_table(clips, list(kept[0]), kept)
        _keep_lines(folder / "faces.jsonl", self.ledger.keys())

    def path_of(self, one: Input, folder: str, suffix: str) -> Path | None:
        """Returns a unique path for something drawn of an input; None without an output folder."""
        if self.folder is None:
            return None
        name = one.relative if one.relative.lower().endswith(suffix) else one.relative + suffix
        taken = [row["drawn"] for other, row in self.ledger.items() if other != one.name]
        if any(drawn.partition("/")[2] == name for drawn in taken):
            digest = hashlib.sha256(one.name.encode()).hexdigest()[:8]
            name = f"{name[: -len(suffix)]}.{digest}{suffix}"
        path = self.folder / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def append_faces(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends rows of faces, their numbers to six digits."""
        lines = "".join(_to_line(row) for row in rows)
        if self.folder is None:
            sys.stdout.write(lines)
            sys.stdout.flush()
        else:
            storage.append(self.folder / "faces.jsonl", lines, durable=False)

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
        """Records that an input is finished; its faces are appended before.

        `pictures` counts the processed frames (1 for a photo), `with_faces` those with a face,
        `num_faces` the faces in all of them. `people` are rows of clips.csv; `reason` is why the
        input was not, or not fully, processed.
        """
        size, modified = _identity(one.path)
        where = drawn.relative_to(self.folder).as_posix() if self.folder and drawn else ""
        counts = map(str, (pictures, with_faces, num_faces))
        row = [one.name, one.kind, size, modified, *counts, where, reason]
        self.ledger[one.name] = dict(zip(LEDGER, row, strict=True))
        if reason:
            tqdm.write(f"{one.name}: {reason}", file=sys.stderr)
        if self.folder is None:
            return
        if people:
            rows = [{"file": one.name} | row for row in people]
            storage.append_table(self.folder / "clips.csv", list(rows[0]), rows)
        storage.append_table(self.folder / "ledger.csv", LEDGER, [self.ledger[one.name]])

    def close(self) -> None:
        """Writes faces.csv from faces.jsonl, one row in memory at a time.

        Raises InputError if a line of faces.jsonl is damaged.
        """
        if self.folder is None:
            return
        lines, table = self.folder / "faces.jsonl", self.folder / "faces.csv"
        lines.touch()
        with storage.replacing(table) as temporary:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self._columns, lineterminator="\n")
                writer.writeheader()
                try:
                    writer.writerows(map(_flat, storage.json_lines(lines)))
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    raise InputError(f"'{lines}' is damaged; --overwrite it") from error


def _to_line(row: dict[str, Any]) -> str:
    rounded = json.loads(json.dumps(row), parse_float=lambda text: float(f"{float(text):.6g}"))
    return json.dumps(rounded) + "\n"


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in row.items() if not isinstance(value, list | dict)}
    flat |= dict(zip(("x", "y", "width", "height"), row["box"], strict=True))
    if "answer" in row:
        flat |= {"answer": row["answer"] or NOT_KNOWN, "candidates": " ".join(row["candidates"])}
    flat |= {f"p_{name}": value for name, value in row["probabilities"].items()}
    return flat | {f"smoothed_{name}": value for name, value in row.get("smoothed", {}).items()}


def _identity(path: Path) -> tuple[str, str]:
    """Returns (bytes, time of the last change) of a file; empty for a camera."""
    try:
        status = path.stat()
    except OSError:
        return "", ""
    return str(status.st_size), str(status.st_mtime_ns)


def _count_faces(file: Path) -> collections.Counter[str]:
    """Returns how many lines each input has, without a last line without its end."""
    rows = storage.json_lines(file, "--overwrite it", form={"file": str})
    return collections.Counter(str(row["file"]) for row in rows)


def _keep_lines(file: Path, names: Collection[str]) -> None:
    """Drops the lines of all inputs but these, and a last line without its end."""
    if not names:
        file.unlink(missing_ok=True)
        return
    with storage.replacing(file) as temporary, temporary.open("w", encoding="utf-8") as new:
        for row in storage.json_lines(file, "--overwrite it"):
            if row.get("file") in names:
                new.write(json.dumps(row) + "\n")


class DrawnFace(NamedTuple):
    """A face to draw."""

    box: Sequence[float]  # (x, y, width, height) in pixels
    name: str  # precedes the label, such as the number of a tracked face; may be empty
    probabilities: np.ndarray  # float [classes]


def annotate(picture: np.ndarray, found: Sequence[DrawnFace], task: str) -> np.ndarray:
    """Draws faces onto a copy of a picture, and a legend of the colours below it.

    `picture` is uint8 BGR [height, width, 3]; the largest face comes first. Returns uint8 BGR
    [height + the legend's, width, 3].
    """
    bgr = [tuple(bytes.fromhex(colour[1:])[::-1]) for colour in class_colours(task)]
    names = [name.replace("_", " ") for name in TASKS[task]]
    out = np.concatenate([picture, _legend(names, bgr, picture.shape[1])])
    # The largest last, so that the label of a face in front is not covered.
    for one in reversed(found):
        _draw_face(out[: len(picture)], one, names, bgr)
    return out


def _draw_face(
    picture: np.ndarray, one: DrawnFace, names: Sequence[str], bgr: Sequence[tuple[int, ...]]
) -> None:
    height, width = picture.shape[:2]
    x, y, box_width, box_height = one.box
    left, top = round(max(x, 0)), round(max(y, 0))
    right, bottom = round(min(x + box_width, width - 1)), round(min(y + box_height, height - 1))
    best = int(np.argmax(one.probabilities))
    thick = 1 + (right - left) // 90
    cv2.rectangle(picture, (left, top), (right, bottom), PAPER, thick + 2)
    cv2.rectangle(picture, (left, top), (right, bottom), bgr[best], thick)
    # As wide as the box, if the text is readable then.
    text = " ".join(filter(None, [one.name, names[best], f"{one.probabilities[best]:.0%}"]))
    scale = float(np.clip((right - left) / _text_size(text, 1)[0], SMALLEST_TEXT, LARGEST_TEXT))
    text_width, text_height = _text_size(text, scale)
    pad = 2 + text_height // 3
    bar = max(4, (right - left) // 24)
    tag_height = text_height + 2 * pad
    tag_width = max(text_width + 2 * pad, right - left)
    tag_left = max(0, min(left, width - tag_width))
    # Above the face if there is room, else below it.
    tag_top = top - tag_height - bar if top - tag_height - bar >= 0 else bottom
    tag_top = max(0, min(tag_top, height - tag_height - bar))
    tag_right, text_bottom = min(tag_left + tag_width, width - 1), tag_top + tag_height
    cv2.rectangle(picture, (tag_left, tag_top), (tag_right, text_bottom), PAPER, cv2.FILLED)
    text_position = (tag_left + pad, tag_top + pad + text_height)
    cv2.putText(picture, text, text_position, FONT, scale, INK, 1, cv2.LINE_AA)
    edges = tag_left + np.round((tag_right - tag_left) * np.cumsum([0, *one.probabilities]))
    for index, colour in enumerate(bgr):
        start, end = (int(edges[index]), text_bottom), (int(edges[index + 1]), text_bottom + bar)
        if end[0] > start[0]:
            cv2.rectangle(picture, start, end, colour, cv2.FILLED)


def _legend(names: Sequence[str], bgr: Sequence[tuple[int, ...]], width: int) -> np.ndarray:
    """Draws a strip that names the colours of the classes, in as many lines as needed."""
    _, text_height = _text_size("Ag", LEGEND_TEXT)
    line, gap = text_height * 2 + 4, text_height
    positions: list[tuple[int, int]] = []
    x, y = gap, 0
    for name in names:
        needed = text_height + gap // 2 + _text_size(name, LEGEND_TEXT)[0]
        if x + needed > width and x > gap:
            x, y = gap, y + line
        positions.append((x, y))
        x += needed + gap
    # Video formats need an even height.
    strip = np.full(((y + line + 1) // 2 * 2, width, 3), PAPER, np.uint8)
    for name, colour, (x, y) in zip(names, bgr, positions, strict=True):
        top = y + (line - text_height) // 2
        corner = (x + text_height, top + text_height)
        cv2.rectangle(strip, (x, top), corner, colour, cv2.FILLED)
        position = (x + text_height + gap // 2, top + text_height)
        cv2.putText(strip, name, position, FONT, LEGEND_TEXT, INK, 1, cv2.LINE_AA)
    return strip


def _text_size(text: str, scale: float) -> tuple[int, int]:
    width, height = cv2.getTextSize(text, FONT, scale, 1)[0]
    return width, height
