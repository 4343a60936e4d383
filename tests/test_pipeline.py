"""Whatever the input, the batches are the same bits, and so is what is trained from them."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_runs import write_dataset

from fer_jax import checkpoints
from fer_jax.config import default_config
from fer_jax.data import batches
from fer_jax.data.records import open_records
from fer_jax.errors import InputError
from fer_jax.sharding import batch_sharding, make_mesh
from fer_jax.training import classifier as program
from fer_jax.training import memory, pipeline

pytestmark = pytest.mark.usefixtures("short_network")

INPUTS = ("stream", "memmap", "device")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets, so that a batch is of several sources."""
    directory = tmp_path_factory.mktemp("data")
    for first, name in ((0, "one"), (50, "two")):
        rows = {
            "train": [(f"{name}{number}", number % 7) for number in range(11)],
            "validation": [(f"{name}v{number}", number % 7) for number in range(7)],
        }
        write_dataset(directory, name, rows, first=first)
    return directory


def small_config(**changes: Any) -> Any:
    config = default_config()
    config.sources = ("one", "two")
    config.batch_size = 8
    config.num_epochs = 2.0
    config.validate_every_epochs = 1.0
    config.model.update({"width": 0.03, "num_middle_blocks": 0, "image_size": 71})
    config.update(changes)
    return config


def mixture_of(data_dir: Path) -> batches.Mixture:
    records = [open_records(name, "train", data_dir) for name in ("one", "two")]
    return batches.mix(records, "emotion", weights=[1.0, 3.0])


def opened(kind: str, mixture: Any, workdir: Path, free: int = 2**40) -> Any:
    config = small_config(input=kind)
    mesh = make_mesh()
    return pipeline.open_pipeline(config, mixture, mesh, workdir, num_steps=5, free=free)


def taken(iterator: Any, place: Any) -> list[Any]:
    return [jax.device_get(place(batch)) for batch in iterator]


def test_batches_are_the_same_bits(data_dir: Path, tmp_path: Path):
    mixture = mixture_of(data_dir)
    stream = taken(*opened("stream", mixture, tmp_path))
    assert len(stream) == 5 and stream[0]["image"].shape == (8, 71, 71, 3)
    assert not np.array_equal(stream[0]["image"], stream[1]["image"])
    # As large on each device, or an eighth of it.
    size = 24 * 71 * 71 * 3
    for kind, free in (("memmap", 0), ("device", size), ("device", size // 8)):
        other = taken(*opened(kind, mixture, tmp_path, free))
        jax.tree.map(np.testing.assert_array_equal, other, stream)


def test_an_iterator_continues_as_another_input(data_dir: Path, tmp_path: Path):
    mixture = mixture_of(data_dir)
    stream = taken(*opened("stream", mixture, tmp_path))
    iterator, _ = opened("stream", mixture, tmp_path)
    for _ in range(2):
        next(iterator)
    for kind in INPUTS:
        continued, place = opened(kind, mixture, tmp_path)
        continued.set_state(iterator.get_state())
        jax.tree.map(np.testing.assert_array_equal, taken(continued, place), stream[2:])


def test_training_gives_the_same_bits_and_may_change_its_input(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program.train(small_config(), tmp_path / "stream", data_dir)
    save = checkpoints.save

    def save_then_stop(manager: Any, step: int, **items: Any) -> None:
        save(manager, step, **items)
        manager.wait_until_finished()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        program.train(small_config(input="device"), tmp_path / "changed", data_dir)
    monkeypatch.undo()
    program.train(small_config(input="memmap"), tmp_path / "changed", data_dir)
    changed, stream = (final_state(tmp_path / name) for name in ("changed", "stream"))
    assert int(stream["training"]["step"]) == 4
    jax.tree.map(np.testing.assert_array_equal, changed, stream)


def final_state(workdir: Path) -> Any:
    metric = small_config().selection_metric
    with checkpoints.open_checkpoints(workdir, keep=2, metric=metric) as manager:
        items = manager.restore(manager.latest_step())
    return {"network": items["network"], "training": items["training"]}


def test_divided_rows_are_added_up_and_nothing_else_travels():
    mesh = make_mesh()
    take = pipeline.row_taker(mesh, divided=True)
    images = jax.device_put(
        np.arange(16 * 12, dtype=np.uint8).reshape(16, 2, 2, 3), batch_sharding(mesh)
    )
    numbers = jax.device_put(np.asarray([15, 0, 0, 7, 8, 3, 15, 2], np.int32), batch_sharding(mesh))
    np.testing.assert_array_equal(take(images, numbers), np.asarray(images)[np.asarray(numbers)])
    compiled: Any = take.lower(images, numbers).compile()  # pyright: ignore[reportFunctionMemberAccess] (jitted)
    found = set(re.findall(r"= (\w+)\[([\d,]+)\]\S* all-gather\(", compiled.as_text()))
    assert found == {("s32", "8")}, "the images stay where they are"


def test_a_map_of_other_data_is_made_anew(data_dir: Path, tmp_path: Path):
    mixture = mixture_of(data_dir)

    def mapped(mixture: Any, size: int = 71) -> np.ndarray:
        return batches.memory_map(mixture, size, tmp_path, writes=True, written=lambda: None)

    before = mapped(mixture)
    (file,) = tmp_path.iterdir()
    made = file.stat().st_mtime_ns
    np.testing.assert_array_equal(mapped(mixture), before)
    assert file.stat().st_mtime_ns == made
    for records in mixture.records:
        records.columns["image_digest"][3] += np.uint64(1)
    mapped(mixture)
    (other,) = tmp_path.iterdir()
    assert other != file
    assert mapped(mixture, 80).shape[1] == 80


def test_no_room_is_said_before_anything_is_decoded(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mixture = mixture_of(data_dir)
    with pytest.raises(InputError, match=r"config.input=device: .*set config.input=memmap"):
        opened("device", mixture, tmp_path, free=24 * 71 * 71 * 3 // 8 - 1)
    monkeypatch.setattr(pipeline, "host_free_bytes", lambda: 1000)
    with pytest.raises(InputError, match="on the host"):
        opened("device", mixture, tmp_path)
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr(batches.shutil, "disk_usage", lambda folder: usage(1000))
    with pytest.raises(InputError, match=r"config.input=memmap: .*set config.input=stream"):
        opened("memmap", mixture, tmp_path)
    assert not list((tmp_path / "decoded").iterdir())


def test_a_step_that_does_not_fit_is_refused_before_the_workdir_is_made(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    with pytest.raises(InputError, match="config.batch_size 8 does not fit"):
        program.train(small_config(), tmp_path / "run", data_dir)
    assert not (tmp_path / "run").exists()
