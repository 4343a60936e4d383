"""Reads built datasets: labels as columns, faces as uint8 arrays, without TensorFlow."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from fer_jax import forms
from fer_jax.errors import InputError, did_you_mean
from fer_jax.media.images import resized
from fer_jax.schema import EMOTIONS, TASKS, UNKNOWN
from fer_jax.storage import read_json, read_table

TEXT_COLUMNS = (
    *("record_id", "source", "content", "stimulus_id", "subject_id", "clip_id", "gender", "url"),
)
NUMBER_COLUMNS = {
    "emotion": np.int64,
    "interest": np.int64,
    "frame_index": np.int64,
    "age": np.float32,
    "seed": np.int64,
}
# What array_record, the parser and the columns raise for damaged bytes.
UNREADABLE = (IndexError, RuntimeError, ValueError, DecodeError)
# What TFDS raises for damaged metadata, which may name types, classes and modules.
METADATA_ERRORS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RecursionError),
    json_format.Error,
)
REBUILD = "build the dataset again"


@dataclasses.dataclass(frozen=True)
class Records:
    """Records of one split of a dataset; an image is read and decoded when it is asked for.

    The columns are everything but the images, one array of length n each; "image_digest" (uint64)
    is equal for images that are equal byte for byte.
    """

    name: str  # of the dataset
    split: str  # the split expression
    columns: dict[str, np.ndarray]
    serialized: Sequence[bytes]  # random access to the split's records
    rows: np.ndarray  # int64 [n], where each record is in `serialized`
    shards: Sequence[Any] = ()  # TFDS's instructions which part of which file is read
    config: str = ""  # how the dataset was built, such as "grouped" or "content"
    skipped: Sequence[str] = ()  # damaged records, each with file, number and reason

    def __len__(self) -> int:
        return len(self.rows)

    def labels(self, task: str) -> np.ndarray:
        """Returns int64 [n], the index of the task's class, -1 where unknown."""
        return self.columns[task]

    def targets(self, task: str, soft: bool) -> np.ndarray:
        """Returns float32 [n, classes]: the annotators' votes if `soft`, else one-hot labels."""
        if soft and task == "emotion":
            return self.columns["emotion_probabilities"]
        return (self.labels(task)[:, None] == np.arange(len(TASKS[task]))).astype(np.float32)

    def images(
        self, rows: Sequence[int] | np.ndarray, image_size: int, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Decodes n faces to uint8 RGB [n, image_size, image_size, 3], or raises InputError."""
        if out is None:
            out = np.empty((len(rows), image_size, image_size, 3), np.uint8)
        for face, row in zip(out, rows, strict=True):
            resized(self.image(int(row)), image_size, out=face)
        return out

    def image(self, row: int) -> np.ndarray:
        """Decodes one face at its own size, uint8 RGB [s, s, 3], or raises InputError."""
        face = cv2.imdecode(np.frombuffer(self.jpeg(row), np.uint8), cv2.IMREAD_COLOR_RGB)
        if face is None:
            raise InputError(f"the image of {self.describe(row)} is damaged; {REBUILD}")
        return face

    def jpeg(self, row: int) -> bytes:
        """Returns one face as it is stored; InputError if the record cannot be read."""
        try:
            stored = _parse(self.serialized[int(self.rows[row])])
            return stored["image"].bytes_list.value[0]
        except UNREADABLE as error:
            raise InputError(self.unreadable(row, error)) from error

    def describe(self, row: int) -> str:
        """Returns "record R of DATASET SPLIT (number N in FILE)" for error messages."""
        place, number = "", int(self.rows[row])
        for shard in self.shards:
            if number < shard.take:
                place = f" (number {number + shard.skip} in {shard.filename})"
                break
            number -= shard.take
        return f"record {row} of {self.name} {self.split}{place}"

    def unreadable(self, row: int, error: Exception) -> str:
        """Returns the error message for a record that a library cannot read."""
        return f"{self.describe(row)} cannot be read ({_first_line(error)}); {REBUILD}"

    def select(self, rows: np.ndarray) -> "Records":
        """Returns some of the records, by int64 [m] row indices."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return dataclasses.replace(self, columns=columns, rows=self.rows[rows])


def _first_line(error: Exception) -> str:
    # Some errors of array_record's readers have no message.
    return next(iter(str(error).splitlines()), "it is cut off")


def _parse(serialized: bytes) -> Mapping[str, Any]:
    example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue] (made by protobuf at import)
    example.ParseFromString(serialized)
    return example.features.feature


def built_datasets(data_dir: Path) -> dict[str, Path]:
    """Returns "dataset/config" -> the folder of its newest version, for every built dataset."""
    return {
        "/".join(info.parent.relative_to(data_dir).parts[:-1]): info.parent
        for info in sorted(data_dir.glob("*/*/*/dataset_info.json"))
    }


def dataset_directory(name: str, data_dir: Path) -> Path:
    """Returns the folder of a dataset's newest version; a name without a config is of its only one.

    Raises InputError if it is not built there, or with several configs; names those.
    """
    built = built_datasets(data_dir)
    configs = [known for known in built if known == name or known.split("/")[0] == name]
    if name in built:
        return built[name]
    if len(configs) == 1:
        return built[configs[0]]
    if configs:
        raise InputError(f"'{name}' is built with several configs; name one: {', '.join(configs)}")
    known = did_you_mean(name, built) if built else "; no dataset is built there yet"
    raise InputError(
        f"dataset '{name}' is not built in {data_dir}{known} (build it with `fer-jax build`)"
    )


def open_records(name: str, split: str, data_dir: Path, skip_corrupt: bool = False) -> Records:
    """Opens one split of a dataset and reads everything but its images.

    `name` is as in `dataset_directory`; `split` is a TFDS split expression ("train",
    "fold_0+fold_1", "train[90%:]") or "all"; a suffix "[content=A,B]" keeps the records of these
    content groups. `skip_corrupt` leaves out records that cannot be read or decoded and lists them
    in `Records.skipped`; it decodes every image once to find them. Raises InputError if the dataset
    is not built, is not one of face records or is damaged (names the file and the record), or the
    split is unknown or empty.
    """
    directory = dataset_directory(name, data_dir)
    builder = _open_builder(name, directory)
    splits = builder.info.splits
    base, _, groups = split.removesuffix("]").partition("[content=")
    expression = "+".join(splits) if base == "all" else base if groups else split
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
    shards = splits[expression].file_instructions
    _check_shards(name, shards)
    records = _read_columns(
        Records(name, split, {}, serialized, np.arange(count), shards, directory.parent.name),
        skip_corrupt,
    )
    if not groups:
        return records
    content = records.columns["content"]
    known = np.unique(content).tolist()
    for group in groups.split(","):
        if group not in known:
            hint = did_you_mean(group, known)
            raise InputError(f"'{base}' of '{name}' has no content '{group}'{hint}")
    return records.select(np.flatnonzero(np.isin(content, groups.split(","))))


def fingerprint(records: Records) -> str:
    """Returns the SHA-256 of the records' ids and images, in whatever order they are."""
    ids, digests = (records.columns[name].tolist() for name in ("record_id", "image_digest"))
    text = json.dumps(sorted(zip(ids, digests, strict=True)))
    return hashlib.sha256(text.encode()).hexdigest()


def split_names(name: str, data_dir: Path) -> list[str]:
    """Returns the names of a dataset's splits; errors as in `open_records`."""
    return sorted(_open_builder(name, dataset_directory(name, data_dir)).info.splits)


def _open_builder(name: str, directory: Path) -> Any:
    """Returns TFDS's read-only builder; its decorators hide its types."""
    for file in (directory / "features.json", directory / "dataset_info.json"):
        # Before TFDS reads them, which would wait for a pipe.
        if not read_json(file, REBUILD):
            raise InputError(f"'{file}' is missing; {REBUILD}")
    try:
        builder: Any = tfds.builder_from_directory(directory)
        features = set(builder.info.features)
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(f"its files are {builder.info.file_format}, not array_record")
    except METADATA_ERRORS as error:
        raise InputError(
            f"'{directory}' has damaged metadata ({_first_line(error)}); {REBUILD}"
        ) from error
    if missing := {"image", "record_id", *TASKS} - features:
        raise InputError(
            f"'{name}' is not a dataset of face records: it lacks {', '.join(sorted(missing))}"
        )
    return builder


def _check_shards(name: str, shards: Sequence[Any]) -> None:
    """Refuses a dataset of which a file is missing or cut off."""
    for shard in shards:
        file = f"'{name}': {shard.filename}"
        if not Path(shard.filename).is_file():
            raise InputError(f"{file} is missing; {REBUILD}")
        # The end of a file says where its records are; without it a reader finds none, or raises.
        try:
            reader = ArrayRecordReader(str(shard.filename))
            count = reader.num_records()
            reader.close()
        except RuntimeError as error:
            raise InputError(f"{file} cannot be read ({_first_line(error)}); {REBUILD}") from error
        if count != shard.examples_in_shard:
            raise InputError(
                f"{file} cannot be read: {count} of {shard.examples_in_shard} records are there; "
                f"{REBUILD}"
            )


def _read_columns(records: Records, skip_corrupt: bool) -> Records:
    """Reads the columns; leaves out damaged records if `skip_corrupt`."""
    values: dict[str, list[Any]] = {key: [] for key in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}
    votes, digests, rows, skipped = [], [], [], []
    for row in range(len(records)):
        try:
            columns, vote, jpeg = _columns_of(records.serialized[row])
            if skip_corrupt:
                records.image(row)
        except UNREADABLE as error:
            message = (
                str(error) if isinstance(error, InputError) else records.unreadable(row, error)
            )
            if not skip_corrupt:
                raise InputError(
                    f"{message}, or leave such records out with config.corrupt_records=skip"
                ) from error
            skipped.append(message.removesuffix(f"; {REBUILD}"))
            continue
        rows.append(row)
        for key, value in columns.items():
            values[key].append(value)
        votes.append(vote)
        digests.append(int.from_bytes(hashlib.blake2b(jpeg, digest_size=8).digest()))
    if not rows:
        raise InputError(f"no record of {records.name} {records.split} can be read; {REBUILD}")
    columns: dict[str, np.ndarray] = {key: np.asarray(values[key], np.str_) for key in TEXT_COLUMNS}
    columns |= {key: np.asarray(values[key], dtype) for key, dtype in NUMBER_COLUMNS.items()}
    columns["image_digest"] = np.asarray(digests, np.uint64)
    columns["emotion_probabilities"] = np.asarray(votes, np.float32).reshape(-1, len(EMOTIONS))
    return dataclasses.replace(records, columns=columns, rows=np.asarray(rows), skipped=skipped)


def _columns_of(record: bytes) -> tuple[dict[str, Any], list[float], bytes]:
    """Returns a record's columns, its annotators' votes, and its image as it is stored."""
    feature = _parse(record)
    columns: dict[str, Any] = {k: feature[k].bytes_list.value[0].decode() for k in TEXT_COLUMNS}
    for key, dtype in NUMBER_COLUMNS.items():
        integer = np.issubdtype(dtype, np.integer)
        values = feature[key].int64_list if integer else feature[key].float_list
        columns[key] = values.value[0]
    # Copied to a list: a view would keep the whole record in memory, with its image.
    votes = list(feature["emotion_probabilities"].float_list.value)
    return columns, votes, feature["image"].bytes_list.value[0]


def build_summary(name: str, data_dir: Path) -> dict[str, Any]:
    """Returns build.json of a dataset, as `read_summary` does."""
    return read_summary(dataset_directory(name, data_dir))


def read_summary(directory: Path) -> dict[str, Any]:
    """Reads build.json beside the shards: {} if there is none, InputError if it is damaged."""
    return read_json(directory / "build.json", REBUILD, forms.BUILD)


def is_feature_file(path: Path) -> bool:
    """Returns whether a path is an array of features with the ids of its rows beside it."""
    return path.suffix in (".npy", ".safetensors") and path.with_suffix(".csv").is_file()


def labelled_rows(records: Records, task: str) -> np.ndarray:
    """Returns int64 [m], the rows whose label for the task is known; InputError if none is."""
    rows = np.flatnonzero(records.labels(task) != UNKNOWN)
    if not len(rows):
        raise InputError(f"no record of {records.name} {records.split} has a label for '{task}'")
    return rows


def without(records: Records, excluded: set[tuple[str, str]]) -> tuple[Records, int]:
    """Removes records by (dataset without its config, record_id), as from `read_exclusions`.

    Returns the remaining records, and how many were removed. Raises InputError if none would
    remain.
    """
    dataset = records.name.split("/")[0]
    ids = records.columns["record_id"].tolist()
    kept = np.flatnonzero([(dataset, name) not in excluded for name in ids])
    if not len(kept):
        raise InputError(f"config.exclusions leaves nothing of {records.name} {records.split}")
    return records.select(kept), len(records) - len(kept)


def read_exclusions(file: str) -> set[tuple[str, str]]:
    """Reads the list that `fer-jax audit --write_exclusions=FILE` wrote; "" is an empty list.

    Returns (dataset without its config, record_id) pairs. Raises InputError if there is no such
    file, or it is not a CSV with these columns.
    """
    if not file:
        return set()
    if not Path(file).is_file():
        raise InputError(f"config.exclusions: '{file}' does not exist")
    rows = read_table(Path(file), ("dataset", "record_id"), appended=False)
    # Half a name would match no record and exclude nothing, unnoticed.
    for number, row in enumerate(rows, 2):
        if not (row["dataset"] and row["record_id"]):
            raise InputError(f"'{file}', line {number}: dataset or record_id is empty")
    return {(row["dataset"].split("/")[0], row["record_id"]) for row in rows}
