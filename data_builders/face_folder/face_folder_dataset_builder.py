"""A folder or a zip of face images, with a manifest or class folders, as records."""

import argparse
import collections
import csv
import dataclasses
import functools
import io
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fer_jax import schema
from fer_jax.data import splits
from fer_jax.data.plan import Plan, check_name, files_in
from fer_jax.errors import InputError, did_you_mean
from fer_jax.media import clips, images
from fer_jax.media.clips import Extraction, Found

CONFIGS = splits.PROTOCOLS
BUILD_ALL = False

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The builder's own flags."""
    parser.add_argument("--source", type=Path, required=True, help="folder, .zip, or fer2013.csv")
    parser.add_argument("--name", required=True, help="of the dataset, such as jaffe")
    parser.add_argument("--manifest", type=Path, help="CSV; default: manifest.csv in or beside it")
    parser.add_argument("--namespace", help="datasets of the same people share one; default: name")
    parser.add_argument("--source_kind", help="controlled, social, ...; default: name")
    parser.add_argument("--label_source", default="annotated", choices=schema.LABEL_SOURCES)
    splits.add_arguments(parser)
    clips.add_arguments(parser, clips=False, detector="none")


@dataclasses.dataclass(frozen=True)
class Files:
    """Image files by path inside the source, and how to read one."""

    names: list[str]
    read: Any  # (name) -> bytes
    unread: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (item, reason)


def plan(config: str, options: argparse.Namespace) -> Plan:
    """Reads the manifest or the class folders and assigns splits; decodes nothing yet."""
    check_name(options.name)
    source = Path(options.source)
    if not source.exists():
        raise InputError(f"--source '{source}' does not exist")
    extraction = clips.from_arguments(options)
    if source.suffix == ".csv":
        rows, refused = _fer2013_csv(source)
        read = _read_pixels
    else:
        _open.cache_clear()  # the source may have changed since an earlier plan
        files = _open(source)
        manifest = _find_manifest(source, options.manifest, files)
        rows, refused = (
            _from_manifest(manifest, options.name, files)
            if manifest is not None
            else _from_folders(files)
        )
        refused += files.unread
        read = functools.partial(_read_file, source=source)
    namespace = options.namespace or options.name
    for row in rows:
        path = PurePosixPath(row["_path"])
        row["record_id"] = f"{options.name}/{path.with_suffix('')}"
        row["source"] = options.source_kind or options.name
        row["label_source"] = options.label_source
        if row.get("subject_id"):
            row["subject_id"] = f"{namespace}/{row['subject_id']}"
        if row.get("clip_id"):
            row["clip_id"] = f"{namespace}/{row['clip_id']}"
    # Two files that differ in their ending only keep it.
    taken = collections.Counter(row["record_id"] for row in rows)
    for row in rows:
        if taken[row["record_id"]] > 1:
            row["record_id"] = f"{options.name}/{row['_path']}"
    rows, outside = splits.assign(rows, config, namespace, options)
    recorded = {
        "source": source.name,
        "namespace": namespace,
        "source_kind": options.source_kind or options.name,
        "label_source": options.label_source,
        "faces": clips.recorded(extraction),
    } | splits.recorded(config, options)
    face = functools.partial(_face, read=read, extraction=extraction)
    return Plan(options.name, config, rows, refused + outside, recorded, read=face)


def _face(
    row: dict[str, Any], read: Callable[[dict[str, Any]], np.ndarray], extraction: Extraction
) -> list[Found]:
    image = read(row)
    if extraction.detector != "none":
        return [clips.faces_in_photo(image, row["record_id"], row["_path"], extraction)]
    face, box = images.square(image)
    fields = {"image": images.encode_jpeg(face), "box": np.asarray(box, np.float32)}
    return [Found(row["record_id"], [fields])]


def _read_file(row: dict[str, Any], source: Path) -> np.ndarray:
    return images.decode(_open(source).read(row["_path"]))


@functools.lru_cache(maxsize=1)
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
    rows, refused = [], []
    for entry in table:
        if entry["path"] not in there:
            refused.append((entry["path"], "no such file"))
            continue
        try:
            rows.append({"_path": entry["path"]} | _labels(entry, votes) | _known(entry))
        except InputError as error:
            refused.append((entry["path"], str(error)))
    named = {entry["path"] for entry in table}
    refused += [(path, "not in the manifest") for path in files.names if path not in named]
    return rows, refused


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
    rows, refused = [], []
    for path in files.names:
        folders = PurePosixPath(path).parent.parts
        try:
            if not folders:
                raise InputError("no class folder and no manifest")
            row: dict[str, Any] = {"_path": path, "emotion": schema.emotion_index(folders[-1])}
        except InputError as error:
            refused.append((path, str(error)))
            continue
        if len(folders) > 1:
            row["_given"] = folders[-2]
        rows.append(row)
    if not rows:
        raise InputError(
            "no image stands in a folder named after an emotion, and there is no manifest.csv"
        )
    return rows, refused


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
    rows, refused = [], []
    for number, entry in enumerate(entries):
        item = f"row_{number:05}"
        if entry["emotion"] not in "0123456" or len(entry["emotion"]) != 1:
            refused.append((item, f"emotion {entry['emotion']} is not 0 to 6"))
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

    return rows, refused


def _read_pixels(row: dict[str, Any]) -> np.ndarray:
    values = row["_pixels"].split()
    if len(values) != 48 * 48 or not all(v.isdecimal() and int(v) < 256 for v in values):
        raise InputError("not 48 x 48 grey values")
    grey = np.asarray(values, np.uint8).reshape(48, 48, 1)
    return np.repeat(grey, 3, axis=2)
