"""Files of a dataset that are missing, cut off or damaged: named, or left out and counted."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from small_runs import write_dataset

from fer_jax.config import default_config
from fer_jax.data.batches import batch_indices, mix
from fer_jax.data.experiment import open_experiment
from fer_jax.data.records import Records, open_records, split_names, without
from fer_jax.errors import InputError

NAME = "faces"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    people = [(f"person_{number}", number % 7) for number in range(40)]
    write_dataset(directory, NAME, {"train": people, "validation": people[:14]})
    return directory


@pytest.fixture
def data_dir(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "data"))


def shard(data_dir: Path, split: str = "train") -> Path:
    (file,) = data_dir.glob(f"{NAME}/*/*/*-{split}.array_record-*")
    return file


def damage_record(data_dir: Path, part: float) -> int:
    """Flips a bit somewhere in the training file; the number of the one record that this breaks."""
    file = shard(data_dir)
    before = broken(file)
    content = bytearray(file.read_bytes())
    content[2000 + int(part * 60000)] ^= 4
    file.write_bytes(content)
    (number,) = broken(file) - before
    return number


def broken(file: Path) -> set[int]:
    """What array_record itself cannot read."""
    reader, found = ArrayRecordReader(str(file)), set()
    for number in range(40):
        try:
            reader.read([number])
        except RuntimeError:
            found.add(number)
    reader.close()
    return found


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (Path.unlink, "train.array_record-00000-of-00001 is missing; build"),
        (cut, "train.array_record-00000-of-00001 cannot be read.*; build"),
        (lambda file: file.write_bytes(b""), "array_record-00000-of-00001 cannot be read"),
        (
            lambda file: shutil.copy(str(file).replace("-train.", "-validation."), file),
            "train.array_record-00000-of-00001 cannot be read: 14 of 40 records are there; build",
        ),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_a_missing_or_cut_file_is_one_line(
    harm: Callable[[Path], None], says: str, skip: bool, data_dir: Path
):
    harm(shard(data_dir))
    with pytest.raises(InputError, match=says) as error:
        open_records(NAME, "train", data_dir, skip)
    assert "\n" not in str(error.value)
    # The other split is as whole as it was.
    assert len(open_records(NAME, "validation", data_dir)) == 14


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("features.json", None, "features.json' is missing; build the dataset again"),
        ("features.json", b"{", "features.json' is damaged .*; build the dataset again"),
        ("features.json", b'{"a": 1}', "has damaged metadata .*; build the dataset again"),
        ("features.json", b"[" * 100_000, "features.json' is damaged .*; build the dataset again"),
        (
            "features.json",
            b'{"featuresDict": {"features": 5}}',
            "has damaged metadata .*; build the dataset again",
        ),
        ("dataset_info.json", b"{", "dataset_info.json' is damaged .*; build the dataset again"),
        ("dataset_info.json", b"[]", "dataset_info.json' is damaged .*; build the dataset again"),
        ("dataset_info.json", b'{"splits": 5}', "has damaged metadata .*; build the dataset again"),
    ],
)
def test_damaged_metadata_is_one_line(file: str, content: bytes | None, says: str, data_dir: Path):
    (path,) = data_dir.glob(f"{NAME}/*/*/{file}")
    path.unlink() if content is None else path.write_bytes(content)
    for read in (
        lambda: open_records(NAME, "train", data_dir),
        lambda: split_names(NAME, data_dir),
    ):
        with pytest.raises(InputError, match=says) as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_metadata_that_are_a_pipe_are_not_waited_for(file: str, data_dir: Path):
    (path,) = data_dir.glob(f"{NAME}/*/*/{file}")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match=f"{file}' is damaged .not a file"):
        split_names(NAME, data_dir)


def test_a_damaged_record_is_named_by_file_and_number(data_dir: Path):
    number = damage_record(data_dir, 0.5)
    split = "validation[:3]+train[5:]"
    with pytest.raises(InputError) as error:
        open_records(NAME, split, data_dir)
    said = str(error.value)
    assert said.startswith(f"record {number - 2} of {NAME} {split} (number {number} in ")
    assert str(shard(data_dir)) in said and "config.corrupt_records=skip" in said


def test_damaged_records_are_skipped_and_counted_when_the_config_says_so(data_dir: Path):
    whole = open_records(NAME, "train", data_dir)
    pictures = whole.images(range(40), 32)
    bad = [damage_record(data_dir, part) for part in (0.2, 0.7)]
    records = open_records(NAME, "train", data_dir, True)
    kept = [row for row in range(40) if row not in bad]
    assert len(records) == len(kept) == 38
    assert len(records.skipped) == 2
    for number, said in zip(bad, records.skipped, strict=True):
        assert f"(number {number} in " in said
    for name, values in whole.columns.items():
        np.testing.assert_array_equal(records.columns[name], values[kept])
    np.testing.assert_array_equal(records.images(range(38), 32), pictures[kept])
    fewer, left_out = without(records, {(NAME, str(records.columns["record_id"][0]))})
    assert (len(fewer), left_out, len(fewer.skipped)) == (37, 1, 2)


def test_skipping_damaged_records_is_for_training_data_not_for_tests(data_dir: Path):
    number = damage_record(data_dir, 0.1)
    config = default_config()
    config.sources, config.test_sets = (NAME,), ()
    with pytest.raises(InputError, match=f"number {number} in "):
        open_experiment(config, data_dir)
    config.corrupt_records = "skip"
    assert len(open_experiment(config, data_dir).train[0]) == 39
    config.test_sets = ({"name": NAME, "test": "train"},)
    with pytest.raises(InputError, match=f"number {number} in "):
        open_experiment(config, data_dir)


def test_an_image_that_does_not_decode_is_skipped_too(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    jpeg = Records.jpeg
    monkeypatch.setattr(
        Records, "jpeg", lambda self, row: jpeg(self, row)[: 9 if row == 5 else None]
    )
    records = open_records(NAME, "train", data_dir, True)
    assert len(records) == 39 and "the image of record 5 of faces train" in records.skipped[0]


def test_votes_that_are_not_finite_name_their_record(data_dir: Path):
    records = open_records(NAME, "train", data_dir)
    records.columns["emotion_probabilities"][7, 2] = np.nan
    name = records.columns["record_id"][7]
    with pytest.raises(InputError, match=f"record {name} of faces train has votes"):
        mix([records], "emotion", weights=[0.0], soft_labels=True)
    mixture = mix([records], "emotion", weights=[0.0])
    # Two epochs of every image once.
    steps = [batch_indices(mixture, step, batch_size=8, seed=0) for step in range(10)]
    for epoch in (steps[:5], steps[5:]):
        assert sorted(np.concatenate(epoch)) == list(range(40))
