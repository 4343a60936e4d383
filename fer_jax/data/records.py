"""Prepared datasets, opened: their labels as columns, their faces as uint8 arrays.

Reads the array_record shards that the builders wrote, without TensorFlow.
"""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from fer_jax.errors import InputError, did_you_mean
from fer_jax.media.images import resized
from fer_jax.schema import EMOTIONS, TASKS, UNKNOWN

TEXT_COLUMNS = (
    "record_id",
    "source",
    "content",
    "stimulus_id",
    "subject_id",
    "clip_id",
    "gender",
    "url",
)
NUMBER_COLUMNS = {
    "emotion": np.int64,
    "interest": np.int64,
    "frame_index": np.int64,
    "age": np.float32,
    "seed": np.int64,
}


@dataclasses.dataclass(frozen=True)
class Records:
    """One split of one dataset.

    Attributes:
      name: the dataset.
      split: the split expression.
      columns: everything but the images, one array of length n each; of an image only
        "image_digest", uint64, equal where two are equal byte for byte.
      serialized: random access to the n records as bytes.
      config: how the dataset was built, such as "grouped" or "content".
      skipped: records that are damaged and were left out, each with file, number and reason.
    """

    name: str
    split: str
    columns: dict[str, np.ndarray]
    serialized: Sequence[bytes]
    config: str = ""
    skipped: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.serialized)

    def labels(self, task: str) -> np.ndarray:
        """int64 [n], index into the task's classes, -1 where unknown."""
        return self.columns[task]

    def targets(self, task: str, soft: bool) -> np.ndarray:
        """float32 [n, classes]: the annotators' votes if `soft`, else one-hot labels."""
        if soft and task == "emotion":
            return self.columns["emotion_probabilities"]
        return (self.labels(task)[:, None] == np.arange(len(TASKS[task]))).astype(np.float32)

    def images(self, rows: Sequence[int] | np.ndarray, image_size: int) -> np.ndarray:
        """Decodes faces: uint8 RGB [len(rows), image_size, image_size, 3].

        Raises:
          InputError: a record that cannot be read or decoded, by name and index.
        """
        images = np.empty((len(rows), image_size, image_size, 3), np.uint8)
        self.decode_into(images, rows)
        return images

    def decode_into(self, images: Iterable[np.ndarray], rows: Iterable[int] | np.ndarray) -> None:
        """Decodes faces into buffers that are there already.

        Args:
          images: uint8 RGB [s, s, 3] each, as many as there are rows.
          rows: which.

        Raises:
          InputError: a record that cannot be read or decoded, by name and index.
        """
        for face, row in zip(images, rows, strict=True):
            resized(self.image(int(row)), len(face), out=face)

    def image(self, row: int) -> np.ndarray:
        """Decodes one face as it was stored: uint8 RGB [s, s, 3].

        Raises:
          InputError: the record cannot be read or decoded.
        """
        face = _decoded(self.jpeg(row))
        if face is None:
            raise InputError(f"the image of {self._where(row)} is damaged; {MEND}")
        return face

    def jpeg(self, row: int) -> bytes:
        """One face as it was stored.

        Raises:
          InputError: the record cannot be read.
        """
        try:
            return _parse(self.serialized[row])["image"].bytes_list.value[0]
        except UNREADABLE as error:
            reason = _reason(error)
            raise InputError(f"{self._where(row)} cannot be read ({reason}); {MEND}") from error

    def _where(self, row: int) -> str:
        """A record in words: its place in the split, and in which file."""
        stored, number = self.serialized, row
        while isinstance(stored, _Chosen):
            stored, number = stored.within(number)
        place = f" ({stored.place(number)})" if isinstance(stored, _Stored) else ""
        return f"record {row} of {self.name} {self.split}{place}"


# What array_record, the parser and the columns raise at bytes that are not what was written.
UNREADABLE = (IndexError, RuntimeError, ValueError, DecodeError)
MEND = "build the dataset again"


def _reason(error: Exception) -> str:
    """The first line of what a library says; of array_record's readers some say nothing."""
    return next(iter(str(error).splitlines()), "it is cut off")


def _decoded(jpeg: bytes) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)


def _parse(serialized: bytes) -> Mapping[str, Any]:
    example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue] (made by protobuf at import)
    example.ParseFromString(serialized)
    return example.features.feature


def built_datasets(data_dir: Path) -> dict[str, Path]:
    """Every prepared dataset, "dataset/config", and the folder of its newest version."""
    return {
        "/".join(info.parent.relative_to(data_dir).parts[:-1]): info.parent
        for info in sorted(data_dir.glob("*/*/*/dataset_info.json"))
    }


def dataset_directory(name: str, data_dir: Path) -> Path:
    """The folder of a prepared dataset's newest version.

    Args:
      name: "dataset", where it was built with a single config, or "dataset/config".
      data_dir: what `build --data_dir` was given.

    Raises:
      InputError: not built there; names what is.
    """
    built = built_datasets(data_dir)
    configs = [known for known in built if known == name or known.split("/")[0] == name]
    if name in built:
        return built[name]
    if len(configs) == 1:
        return built[configs[0]]
    if configs:
        raise InputError(f"'{name}' is built in several ways; name one: {', '.join(configs)}")
    there = did_you_mean(name, built) if built else "; nothing is built there yet"
    raise InputError(
        f"dataset '{name}' is not built in {data_dir}{there} (build it with `fer-jax build`)"
    )


def open_records(name: str, split: str, data_dir: Path, skip_corrupt: bool = False) -> Records:
    """Opens one split of a prepared dataset and reads everything but its images.

    Args:
      name: as in `dataset_directory`.
      split: a TFDS split expression ("train", "fold_0+fold_1", "train[90%:]") or "all"; at its
        end "[content=food_market]", or several names by commas, keeps the records of these content
        groups alone.
      data_dir: what `build --data_dir` was given.
      skip_corrupt: leaves out records that cannot be read or decoded; each is decoded once to
        find them. `Records.skipped` tells which.

    Raises:
      InputError: not built, no such split, an empty one, or not records of this project; a file
        that is missing or of which nothing can be read; and, unless they are skipped, a record
        that cannot be read, with its file and number.
    """
    directory = dataset_directory(name, data_dir)
    builder: Any = tfds.builder_from_directory(directory)  # its decorators hide its types
    missing = {"image", "record_id", *TASKS} - set(builder.info.features)
    if missing:
        raise InputError(f"'{name}' holds no face records: it lacks {', '.join(sorted(missing))}")
    splits = builder.info.splits
    whole, _, wanted = split.removesuffix("]").partition("[content=")
    expression = "+".join(splits) if whole == "all" else whole if wanted else split
    try:
        serialized = builder.as_data_source(
            split=expression, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        count = len(serialized)
    except (ValueError, KeyError, AssertionError) as error:
        known = ", ".join(f"{key} ({part.num_examples})" for key, part in splits.items())
        raise InputError(f"'{name}' has no split '{split}'; it has {known}") from error
    if count == 0:
        raise InputError(f"split '{split}' of '{name}' is empty")
    stored = _Stored(serialized, splits[expression].file_instructions)
    stored.check_files(f"'{name}'")
    records = _with_columns(Records(name, split, {}, stored, directory.parent.name), skip_corrupt)
    if not wanted:
        return records
    content = records.columns["content"]
    known = np.unique(content).tolist()
    for group in wanted.split(","):
        if group not in known:
            hint = did_you_mean(group, known)
            raise InputError(f"'{whole}' of '{name}' has no content '{group}'{hint}")
    return only(records, np.flatnonzero(np.isin(content, wanted.split(","))))


def _with_columns(records: Records, skip_corrupt: bool) -> Records:
    """Reads the columns, and leaves out what is damaged where that is asked for."""
    rows: dict[str, list[Any]] = {key: [] for key in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}
    votes, digests, whole, skipped = [], [], [], []
    for number in range(len(records)):
        try:
            columns, vote, jpeg = _columns_of(records.serialized[number])
            if skip_corrupt:
                records.image(number)
        except UNREADABLE as error:
            reason = _reason(error)
            if not isinstance(error, InputError):
                reason = f"{records._where(number)} cannot be read ({reason}); {MEND}"
            if not skip_corrupt:
                raise InputError(
                    f"{reason}, or leave such records out with config.corrupt_records=skip"
                ) from error
            skipped.append(reason.removesuffix(f"; {MEND}"))
            continue
        whole.append(number)
        for key, value in columns.items():
            rows[key].append(value)
        votes.append(vote)
        digests.append(int.from_bytes(hashlib.blake2b(jpeg, digest_size=8).digest()))
    columns: dict[str, np.ndarray] = {key: np.asarray(rows[key], np.str_) for key in TEXT_COLUMNS}
    columns |= {key: np.asarray(rows[key], dtype) for key, dtype in NUMBER_COLUMNS.items()}
    columns["image_digest"] = np.asarray(digests, np.uint64)
    columns["emotion_probabilities"] = np.asarray(votes, np.float32).reshape(-1, len(EMOTIONS))
    if not skipped:
        return dataclasses.replace(records, columns=columns)
    if not whole:
        raise InputError(f"no record of {records.name} {records.split} can be read; {MEND}")
    chosen = _Chosen(records.serialized, np.asarray(whole))
    return dataclasses.replace(records, columns=columns, serialized=chosen, skipped=skipped)


def _columns_of(record: bytes) -> tuple[dict[str, Any], list[float], bytes]:
    """A record's columns, its annotators' votes, and its image as it was stored."""
    feature = _parse(record)
    columns: dict[str, Any] = {k: feature[k].bytes_list.value[0].decode() for k in TEXT_COLUMNS}
    for key, dtype in NUMBER_COLUMNS.items():
        integer = np.issubdtype(dtype, np.integer)
        values = feature[key].int64_list if integer else feature[key].float_list
        columns[key] = values.value[0]
    # As a list of its own: a view would keep the whole record alive, image and all.
    votes = list(feature["emotion_probabilities"].float_list.value)
    return columns, votes, feature["image"].bytes_list.value[0]


def build_summary(name: str, data_dir: Path) -> dict[str, Any]:
    """What `build` wrote beside the shards: counts and the fingerprint of the content."""
    file = dataset_directory(name, data_dir) / "build.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def labelled_rows(records: Records, task: str) -> np.ndarray:
    """int64 [m]: the rows whose label for the task is known.

    Raises:
      InputError: there are none.
    """
    rows = np.flatnonzero(records.labels(task) != UNKNOWN)
    if not len(rows):
        raise InputError(f"no record of {records.name} {records.split} has a label for '{task}'")
    return rows


class _Stored(Sequence[bytes]):
    """A split's records in their files."""

    def __init__(self, serialized: Sequence[bytes], files: Sequence[Any]) -> None:
        """Takes TFDS's source, and its instructions which part of which file that is."""
        self._serialized, self._files = serialized, files

    def __len__(self) -> int:
        return len(self._serialized)

    def __getitem__(self, index: Any) -> Any:
        return self._serialized[index]

    def place(self, number: int) -> str:
        """Where a record is: its number in a file."""
        for file in self._files:
            if number < file.take:
                return f"number {number + file.skip} in {file.filename}"
            number -= file.take
        raise IndexError(number)

    def check_files(self, name: str) -> None:
        """Refuses a dataset of which a file is missing or cannot be read at all.

        Raises:
          InputError: names it.
        """
        for file in self._files:
            wrong = f"{name}: {file.filename}"
            if not Path(file.filename).is_file():
                raise InputError(f"{wrong} is missing; {MEND}")
            # Its end says where the records are; without it a reader finds none, or raises.
            try:
                reader = ArrayRecordReader(str(file.filename))
                count = reader.num_records()
                reader.close()
            except RuntimeError as error:
                raise InputError(f"{wrong} cannot be read ({_reason(error)}); {MEND}") from error
            if count != file.examples_in_shard:
                raise InputError(
                    f"{wrong} cannot be read: {count} of {file.examples_in_shard} records are "
                    f"there; {MEND}"
                )


class _Chosen(Sequence[bytes]):
    """Some of a split's records, as a sequence of their own."""

    def __init__(self, serialized: Sequence[bytes], rows: np.ndarray) -> None:
        self._serialized, self._rows = serialized, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._serialized[int(self._rows[index])]

    def within(self, index: int) -> tuple[Sequence[bytes], int]:
        """What these were chosen from, and the record's place in that."""
        return self._serialized, int(self._rows[index])


def without(records: Records, excluded: set[tuple[str, str]]) -> tuple[Records, int]:
    """A split without some of its records.

    Args:
      records: the split.
      excluded: (dataset without its config, record_id) pairs, from `read_exclusions`.

    Returns:
      (the other records, how many were left out).

    Raises:
      InputError: none would remain.
    """
    dataset = records.name.split("/")[0]
    ids = records.columns["record_id"].tolist()
    kept = np.flatnonzero([(dataset, name) not in excluded for name in ids])
    if not len(kept):
        raise InputError(f"config.exclusions leaves nothing of {records.name} {records.split}")
    return only(records, kept), len(records) - len(kept)


def only(records: Records, rows: np.ndarray) -> Records:
    """Some of a split's records, by their rows, int64 [m]."""
    columns = {name: values[rows] for name, values in records.columns.items()}
    chosen = _Chosen(records.serialized, rows)
    return dataclasses.replace(records, columns=columns, serialized=chosen)


def read_exclusions(file: str) -> set[tuple[str, str]]:
    """The records that `fer-jax audit --write_exclusions=FILE` listed; "" lists none.

    Returns:
      (dataset without its config, record_id) pairs.

    Raises:
      InputError: no such file, or it is no CSV with these columns.
    """
    if not file:
        return set()
    wrong = f"config.exclusions: '{file}'"
    if not Path(file).is_file():
        raise InputError(f"{wrong} does not exist")
    try:
        with Path(file).open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text, strict=True)
            if not {"dataset", "record_id"} <= set(reader.fieldnames or ()):
                raise InputError(f"{wrong} lacks the columns dataset, record_id")
            rows = [(row["dataset"], row["record_id"]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{wrong} cannot be read: {str(error).splitlines()[0]}") from error
    # A record that is named in half would be left out of nothing, without a word.
    for number, row in enumerate(rows, 1):
        if not all(row):
            raise InputError(f"{wrong}, record {number}: no dataset or no record_id")
    return {(dataset.split("/")[0], record_id) for dataset, record_id in rows}
