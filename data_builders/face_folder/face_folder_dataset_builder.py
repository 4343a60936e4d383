"""Face images in a folder, a zip or FER2013's CSV, labelled by a manifest or by class folders."""

import argparse
import contextlib
import csv
import functools
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_builders import layouts
from data_builders.layouts import MAX_CSV_BYTES, Source
from fer_jax import storage
from fer_jax.data import splits
from fer_jax.data.builder import Inputs, RecordBuilder, is_system_file, protocols
from fer_jax.errors import InputError
from fer_jax.media import extraction, images
from fer_jax.media.detector import SAMPLED, framing
from fer_jax.media.extraction import Found

FER2013_COLUMNS = {"emotion", "pixels"}
# Medians of 24 pictures: FER2013, CK+ and LFW 0.82 to 0.85; JAFFE, Yale, photos 0.59 to 0.71.
WIDE = 0.72


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
        layouts.add_arguments(parser)
        splits.add_arguments(parser)
        extraction.add_arguments(parser, clips=False, detector="none")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.record_info(f"Face images of {self.name}.")

    @functools.cached_property
    def _source(self) -> Source:
        return _open(Path(self.options.source))

    def list_inputs(self) -> Inputs:
        """Finds the pictures and their labels."""
        options, path = self.options, Path(self.options.source)
        tables = [name for name in self._source.files if _has_pixels(self._source, name)]
        found = (
            _from_pixels(self._source, tables, options)
            if tables or path.suffix.lower() == ".csv"
            else layouts.label_files(self._source, options, self.protocol)
        )
        print(found.note)
        if self.extraction.detector == "none" and not tables:
            _note_framing(self._source, found.rows)
        return layouts.to_inputs(self, self._source, found)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # nothing is downloaded
        return self.splits_of_inputs()

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[Any]:
        return self.examples(rows)

    def find_faces(self, row: dict[str, Any]) -> list[Found]:
        """Returns the faces of a picture."""
        if "_pixels" in row:
            image = _fer2013_image(row["_pixels"])
        else:
            image = images.decode(self._source.read(row["_path"], images.MAX_FILE_BYTES))
        item, name = row["record_id"], row["_path"]
        if "_face" in row or ("_box" in row and self.extraction.detector in ("none", "boxes")):
            box = row.get("_box") or extraction.annotated(name, 0, self.extraction, row["_face"])
            return [extraction.face_in_box(image, item, box, self.extraction)]
        if self.extraction.detector != "none":
            return [extraction.faces_in_image(image, item, name, self.extraction)]
        face, box = images.square(image)
        fields = {"image": images.encode_jpeg(face), "box": np.asarray(box, np.float32)}
        return [Found(item, [fields])]


def _note_framing(source: Source, rows: list[dict[str, Any]]) -> None:
    """Warns if pictures without annotated faces look wider than face crops."""
    rows = [row for row in rows if "_box" not in row and "_face" not in row]
    sample = []
    for row in rows[:: max(1, len(rows) // SAMPLED)][:SAMPLED]:
        with contextlib.suppress(InputError):
            sample.append(images.decode(source.read(row["_path"], images.MAX_FILE_BYTES)))
    share = framing(sample)
    if share < WIDE:
        print(
            f"note: faces are {share:.0%} as wide as these pictures, in tight crops over 75%; "
            "if your other datasets are tight crops, add --detector=yunet"
        )


def _open(path: Path) -> Source:
    """The files of a folder or a zip, or a CSV."""
    if not path.exists():
        raise InputError(f"--source '{path}' does not exist")
    if path.is_dir():
        return layouts.open_folder(path)
    if path.suffix.lower() == ".csv":
        return layouts.open_file(path)
    if not zipfile.is_zipfile(path):
        raise InputError(f"--source '{path}' is neither a folder, nor a zip, nor a CSV")
    archive = zipfile.ZipFile(path)
    lock = threading.Lock()
    members: dict[str, zipfile.ZipInfo] = {}
    unread, num_ignored = [], 0
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")  # of a zip that Windows wrote
        if name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"'{path}' holds a path that leaves it: '{info.filename}'")
        if name.endswith("/"):
            continue
        if is_system_file(name):
            num_ignored += 1
        elif name in members:
            unread.append((name, "the archive has another file of this name"))
        else:
            members[name] = info

    def read(name: str, most: int, head: int = -1) -> bytes:
        if members[name].file_size > most:
            raise InputError(f"file over {most // 2**20} MiB")
        with lock:
            return _unpack(archive, members[name], head)

    return Source(path, sorted(members), read, unread, num_ignored)


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, head: int) -> bytes:
    try:
        with archive.open(member) as file:
            # Without a number, all that is compressed is unpacked, whatever size is declared.
            return file.read(head if head >= 0 else member.file_size)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise InputError("damaged in the archive") from error
    except RuntimeError as error:  # what zipfile says of a password it was not given
        raise InputError("encrypted, or compressed in an unknown way") from error


def _has_pixels(source: Source, name: str) -> bool:
    """Whether a file is a CSV of FER2013's form."""
    if not name.lower().endswith(".csv"):
        return False
    try:
        head = source.read(name, MAX_CSV_BYTES, 200).decode("utf-8-sig", errors="replace")
    except InputError:
        return False
    header = head.partition("\n")[0].split(",")
    return FER2013_COLUMNS <= {cell.strip(' "\r').lower() for cell in header}


def _from_pixels(
    source: Source, tables: list[str], options: argparse.Namespace
) -> layouts.Labelled:
    """FER2013's own form: emotion 0-6, 48 x 48 grey values as text, and mostly Usage."""
    read = {name: _pixel_rows(source, name) for name in tables}
    # Kaggle's archive has the whole set in one file, and parts of it in others.
    whole = [name for name, rows in read.items() if rows and "usage" in rows[0]] or tables
    if not tables:
        raise InputError(
            f"'{source.path}' lacks FER2013's columns emotion and pixels; a list of pictures is "
            "named by --manifest, and --source is their folder"
        )
    if len(whole) > 1:
        raise InputError(f"there are several sets ({', '.join(whole)}); name one with --source")
    name = whole[0]
    for option in ("dataset", "subject_from"):
        if getattr(options, option):
            raise InputError(
                f"--{option} has no effect, because '{name}' has the labels; leave it out"
            )
    if options.layout not in (None, "fer2013"):
        raise InputError(
            f"--layout={options.layout} has no effect, because '{name}' is in FER2013's format; "
            "leave it out"
        )
    votes = _ferplus(options.manifest, name, read[name]) if options.manifest else None
    rows, skipped = [], [(n, f"not read: '{name}' is") for n in source.files if n != name]
    part, codes = layouts.part(Path(name).name), layouts.LAYOUTS["fer2013"].labels
    for number, entry in enumerate(read[name]):
        row: dict[str, Any] = {"_path": f"row_{number:05}", "_pixels": entry["pixels"]}
        if given := entry.get("usage") or part or options.part:
            row["_given"] = given
        try:
            if votes is not None:
                row |= votes(number)
            elif entry["emotion"].strip() in codes:
                row["emotion"] = layouts.emotion(entry["emotion"], codes)
            else:
                raise InputError(f"emotion {entry['emotion']} is not 0 to 6")
            rows.append(row)
        except InputError as error:
            skipped.append((row["_path"], str(error)))
    note = f"labels from '{options.manifest or name}', pixels from '{name}'"
    return layouts.Labelled(rows, skipped, [name], note)


def _pixel_rows(source: Source, name: str) -> list[dict[str, str]]:
    csv.field_size_limit(2**20)
    _, rows = storage.read_rows(source.read(name, MAX_CSV_BYTES), name)
    return [{column.strip().lower(): cell for column, cell in row.items()} for row in rows]


def _ferplus(manifest: Path, name: str, rows: list[dict[str, str]]) -> Any:
    """FERPlus' votes, a row for each of FER2013's: a function from the row to its fields."""
    if not manifest.is_file():
        raise InputError(f"--manifest '{manifest}' does not exist")
    entries, votes = layouts.read_manifest(manifest.read_bytes(), str(manifest))
    pairs = zip(rows, entries, strict=False)
    parts = [(row.get("usage"), entry.get("orig_split")) for row, entry in pairs]
    if not votes or len(entries) != len(rows) or any(a != b for a, b in parts if a and b):
        raise InputError(
            f"--manifest has no effect: '{name}' has {len(rows)} labels; only votes for the same "
            f"rows, as in FERPlus, can replace them, and '{manifest}' has {len(entries)} rows"
        )

    def fields(number: int) -> dict[str, Any]:
        if not entries[number].get("path"):
            raise InputError("FERPlus names no picture for it")
        return layouts.read_entry(entries[number], votes, {})

    return fields


def _fer2013_image(pixels: str) -> np.ndarray:
    values = pixels.split()
    if len(values) != 48 * 48 or not all(v.isdecimal() and int(v) < 256 for v in values):
        raise InputError("not 48 x 48 grey values")
    grey = np.asarray(values, np.uint8).reshape(48, 48, 1)
    return np.repeat(grey, 3, axis=2)
