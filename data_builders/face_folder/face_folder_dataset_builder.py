"""Face images in a folder, a zip or FER2013's CSV, labelled by a manifest or by class folders."""

import argparse
import collections
import csv
import dataclasses
import io
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fer_jax import schema
from fer_jax.data import splits
from fer_jax.data.builder import Inputs, RecordBuilder, files_in, protocols
from fer_jax.errors import InputError, did_you_mean
from fer_jax.media import extraction, images
from fer_jax.media.extraction import Found

# Manifest columns that go into the record as they are, and their types.
PLAIN = {
    "content": str,
    "clip_id": str,
    "stimulus_id": str,
    "url": str,
    "gender": str,
    "frame_index": int,
    "timestamp": float,
    "age": float,
    "label_confidence": float,
}
# FERPlus' ten vote columns, beside our own words: those outside the seven emotions.
OTHER_VOTES = ("contempt", "unknown", "nf")
FER2013_EMOTIONS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
FER2013_COLUMNS = {"emotion", "pixels", "Usage"}
MAX_MANIFEST_BYTES = 512 * 2**20


@dataclasses.dataclass(frozen=True)
class Files:
    """Image files by path inside the source, and how to read one."""

    names: list[str]
    read: Any  # name -> bytes
    unread: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (item, reason)


class Builder(RecordBuilder):
    """Face images in a folder, a zip or FER2013's CSV."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = protocols("grouped", "folds", "given", "content")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "A folder of images with manifest.csv, or with class folders."
    SOURCE = "folder, .zip, or fer2013.csv"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the builder's options."""
        super().add_arguments(parser)
        parser.add_argument(
            "--manifest", type=Path, help="CSV; default: manifest.csv in or beside the source"
        )
        parser.add_argument("--namespace", help="shared by datasets of the same people")
        parser.add_argument("--source_kind", help="controlled, social, ...; default: name")
        parser.add_argument(
            "--label_source",
            default="annotated",
            choices=schema.LABEL_SOURCES,
            help="how the labels came about",
        )
        splits.add_arguments(parser)
        extraction.add_arguments(parser, clips=False, detector="none")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.record_info(f"Face images of {self.name}.")

    def list_inputs(self) -> Inputs:
        """Reads the manifest or the class folders."""
        options, source = self.options, Path(self.options.source)
        if not source.exists():
            raise InputError(f"--source '{source}' does not exist")
        if source.suffix == ".csv":
            rows, skipped = _fer2013_csv(source)
        else:
            self._files = _open(source)
            manifest = _find_manifest(source, options.manifest, self._files)
            rows, skipped = (
                _from_manifest(manifest, self.name, self._files)
                if manifest is not None
                else _from_folders(self._files)
            )
            skipped += self._files.unread
        known = {
            "namespace": options.namespace or self.name,
            "source_kind": options.source_kind or self.name,
            "label_source": options.label_source,
        }
        for row in rows:
            path = PurePosixPath(row["_path"])
            row["record_id"] = f"{self.name}/{path.with_suffix('')}"
            row["source"] = known["source_kind"]
            row["label_source"] = options.label_source
            for name in ("subject_id", "clip_id"):
                if row.get(name):
                    row[name] = f"{known['namespace']}/{row[name]}"
        # Two files that differ in their ending only keep it.
        taken = collections.Counter(row["record_id"] for row in rows)
        for row in rows:
            if taken[row["record_id"]] > 1:
                row["record_id"] = f"{self.name}/{row['_path']}"
        rows, outside = splits.assign(rows, self.protocol, known["namespace"], options)
        settings = {"source": source.name, "faces": extraction.recorded(self.extraction)} | known
        settings |= splits.recorded(self.protocol, options)
        return Inputs(rows, skipped + outside, settings)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # nothing is downloaded
        return self.splits_of_inputs()

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[Any]:
        return self.examples(rows, self._find_faces)

    def _find_faces(self, row: dict[str, Any]) -> list[Found]:
        if "_pixels" in row:
            image = _fer2013_image(row["_pixels"])
        else:
            image = images.decode(self._files.read(row["_path"]))
        if self.extraction.detector != "none":
            return [
                extraction.faces_in_image(image, row["record_id"], row["_path"], self.extraction)
            ]
        face, box = images.square(image)
        fields = {"image": images.encode_jpeg(face), "box": np.asarray(box, np.float32)}
        return [Found(row["record_id"], [fields])]


def _open(source: Path) -> Files:
    if source.is_dir():
        names, unread = files_in(source, images.IMAGE_SUFFIXES)
        return Files(names, lambda name: _read_capped(source / name), unread)
    if not zipfile.is_zipfile(source):
        raise InputError(f"--source '{source}' is neither a folder, nor a zip, nor a CSV")
    archive = zipfile.ZipFile(source)
    lock = threading.Lock()
    for info in archive.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"'{source}' holds a path that leaves it: '{info.filename}'")

    def read(name: str) -> bytes:
        if archive.getinfo(name).file_size > images.MAX_FILE_BYTES:
            raise InputError(f"file over {images.MAX_FILE_BYTES // 2**20} MiB")
        with lock:
            return _unpack(archive, name)

    names = [name for name in archive.namelist() if not name.endswith("/")]
    known = [name for name in names if name.lower().endswith(images.IMAGE_SUFFIXES)]
    return Files(sorted(known), read)


def _unpack(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise InputError("damaged in the archive") from error
    except RuntimeError as error:  # what zipfile says of a password it was not given
        raise InputError("encrypted, or compressed in an unknown way") from error


def _read_capped(path: Path) -> bytes:
    if path.stat().st_size > images.MAX_FILE_BYTES:
        raise InputError(f"file over {images.MAX_FILE_BYTES // 2**20} MiB")
    return path.read_bytes()


def _find_manifest(source: Path, given: Path | None, files: Files) -> str | None:
    """The manifest's text: the one that is given, in the source, or beside it."""
    if given is not None:
        if not given.is_file():
            raise InputError(f"--manifest '{given}' does not exist")
        return _text(given.read_bytes())
    within = source / "manifest.csv"
    if within.is_file():
        return _text(within.read_bytes())
    if source.is_file():
        with zipfile.ZipFile(source) as archive:
            inside = [name for name in archive.namelist() if name.endswith("manifest.csv")]
            if inside:
                if archive.getinfo(inside[0]).file_size > MAX_MANIFEST_BYTES:
                    raise InputError(f"the manifest in '{source}' is too large")
                try:
                    return _text(_unpack(archive, inside[0]))
                except InputError as error:
                    raise InputError(f"'{inside[0]}' in '{source}': {error}") from error
    beside = source.parent / "manifest.csv"
    if beside.is_file():
        text = _text(beside.read_bytes())
        # A manifest beside the source may be about other things.
        paths = {row.get("path", "") for row in _table(text)[1]}
        if paths & set(files.names):
            return text
    return None


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("the manifest is not a CSV in UTF-8") from error


def _table(text: str) -> tuple[set[str], list[dict[str, str]]]:
    """A CSV's columns and rows; absent cells are empty."""
    reader = csv.DictReader(io.StringIO(text, newline=None), restval="")
    try:
        return set(reader.fieldnames or ()), list(reader)
    except csv.Error as error:
        raise InputError(f"the manifest is not a CSV: {error}") from error


def _from_manifest(
    text: str, name: str, files: Files
) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    columns, table = _table(text)
    votes = _vote_columns(columns)
    if "path" not in columns or not (columns & {"label", "emotion", "interest"} or votes):
        raise InputError(
            "the manifest needs the columns path and label (or emotion, interest, or one column "
            f"of votes per emotion); it has {', '.join(sorted(columns)) or 'none'}"
        )
    if "dataset" in columns:
        sets = {row["dataset"] for row in table}
        table = [row for row in table if row["dataset"] == name]
        if not table:
            raise InputError(
                f"the manifest describes no dataset '{name}'{did_you_mean(name, sets)}"
            )
    twice = [p for p, n in collections.Counter(row["path"] for row in table).items() if n > 1]
    if twice:
        raise InputError(f"the manifest names {len(twice)} files twice, such as '{twice[0]}'")
    there = set(files.names)
    rows, skipped = [], []
    for entry in table:
        if entry["path"] not in there:
            skipped.append((entry["path"], "no such file"))
            continue
        try:
            rows.append({"_path": entry["path"]} | _labels(entry, votes) | _known(entry))
        except InputError as error:
            skipped.append((entry["path"], str(error)))
    named = {entry["path"] for entry in table}
    skipped += [(path, "not in the manifest") for path in files.names if path not in named]
    return rows, skipped


def _vote_columns(columns: set[str]) -> dict[str, int]:
    """Column -> index of the emotion (-1: outside the seven), if all seven have one."""
    found: dict[str, int] = {}
    for column in columns - {"emotion", "label"}:
        word = column.strip().lower()
        word = schema.EMOTION_ALIASES.get(word, word)
        if word in schema.EMOTIONS:
            found[column] = schema.EMOTIONS.index(word)
        elif word in OTHER_VOTES:
            found[column] = schema.UNKNOWN
    complete = set(range(len(schema.EMOTIONS))) <= set(found.values())
    return found if complete else {}


def _labels(entry: dict[str, str], votes: dict[str, int]) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    if votes:
        counts = np.zeros(len(schema.EMOTIONS) + 1)  # the last: outside the seven
        for column, index in votes.items():
            counts[index] += _number(entry[column] or "0", float, column)
        inside = counts[:-1]
        if counts[-1] >= inside.max() or inside.sum() <= 0:
            raise InputError("most votes are for none of the seven emotions")
        labels["emotion"] = int(inside.argmax())
        labels["emotion_probabilities"] = (inside / inside.sum()).astype(np.float32)
        labels["label_confidence"] = float(inside.max() / counts.sum())
    elif word := entry.get("emotion") or entry.get("label"):
        labels["emotion"] = schema.emotion_index(word)
    if word := entry.get("interest"):
        labels["interest"] = schema.interest_index(word)
    if not labels:
        raise InputError("no label")
    return labels


def _known(entry: dict[str, str]) -> dict[str, Any]:
    known: dict[str, Any] = {
        name: _number(entry[name], kind, name) if kind is not str else entry[name]
        for name, kind in PLAIN.items()
        if entry.get(name)
    }
    if entry.get("subject_id"):
        known["subject_id"] = entry["subject_id"]
    if entry.get("orig_split"):
        known["_given"] = entry["orig_split"]
    if "gender" in known:
        known["gender"] = schema.gender(known["gender"])
    return known


def _number(text: str, kind: Any, column: str) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise InputError(f"{column} is not a number") from error


def _from_folders(files: Files) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """.../[part/]label/image: the label is the folder, a part's name above it is the part."""
    rows, skipped = [], []
    for path in files.names:
        folders = PurePosixPath(path).parent.parts
        try:
            if not folders:
                raise InputError("no class folder and no manifest")
            row: dict[str, Any] = {"_path": path, "emotion": schema.emotion_index(folders[-1])}
        except InputError as error:
            skipped.append((path, str(error)))
            continue
        if len(folders) > 1:
            row["_given"] = folders[-2]
        rows.append(row)
    if not rows:
        raise InputError(
            "no image is in a folder named after an emotion, and there is no manifest.csv"
        )
    return rows, skipped


def _fer2013_csv(source: Path) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """FER2013's own form: emotion 0-6, 48 x 48 grey values as text, Usage."""
    csv.field_size_limit(2**20)
    with source.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        try:
            known = FER2013_COLUMNS <= set(reader.fieldnames or ())
            entries = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"'{source}' is not a CSV in UTF-8") from error
    if not known:
        raise InputError(f"'{source}' lacks FER2013's columns emotion, pixels, Usage")
    rows, skipped = [], []
    for number, entry in enumerate(entries):
        item = f"row_{number:05}"
        if entry["emotion"] not in "0123456" or len(entry["emotion"]) != 1:
            skipped.append((item, f"emotion {entry['emotion']} is not 0 to 6"))
            continue
        word = FER2013_EMOTIONS[int(entry["emotion"])]
        rows.append(
            {
                "_path": item,
                "_pixels": entry["pixels"],
                "_given": entry["Usage"],
                "emotion": schema.EMOTIONS.index(word),
            }
        )
    return rows, skipped


def _fer2013_image(pixels: str) -> np.ndarray:
    values = pixels.split()
    if len(values) != 48 * 48 or not all(v.isdecimal() and int(v) < 256 for v in values):
        raise InputError("not 48 x 48 grey values")
    grey = np.asarray(values, np.uint8).reshape(48, 48, 1)
    return np.repeat(grey, 3, axis=2)
