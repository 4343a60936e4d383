"""Records to batches, beside a bare decode loop over the same JPEGs and beside the peers.

Counted are CPU seconds, those of worker processes too: in training the cores have other work.
"""

import argparse
import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer_jax.benchmark import records
from fer_jax.benchmark.benchmark import Row, compare, cpu_seconds, single, skipped
from fer_jax.data import batches, decoded
from fer_jax.data.records import open_records
from fer_jax.errors import InputError

BATCH_SIZE = 64
WORKERS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags."""
    parser.add_argument("--data_dir", type=Path, help="default: built in the workdir")
    parser.add_argument("--dataset", help="one in --data_dir instead of drawn faces")
    parser.add_argument("--image_size", type=int, default=256, help="pixels a side")
    parser.add_argument("--images", type=int, default=2048, help="in one repeat")


def run(options: argparse.Namespace) -> list[Row]:
    """Ours, streamed and from a memory map, beside the bare loop, tf.data and a DataLoader."""
    size = options.image_size
    if options.images < BATCH_SIZE or not 1 <= size <= 256:
        raise InputError(f"--images must be at least {BATCH_SIZE} and --image_size 1 to 256")
    data_dir = options.data_dir or options.workdir / "data"
    name = options.dataset or records.build(data_dir, size)
    part = open_records(name, "train", data_dir)
    mixture = batches.mix([part], "emotion", weights=[0.0])
    steps = options.images // BATCH_SIZE
    jpegs = [part.jpeg(row) for row in mixture.row]
    stream = functools.partial(batches.decode, mixture, image_size=size)
    ours = functools.partial(_ours, mixture, stream, steps)
    bare = functools.partial(_bare, jpegs, steps * BATCH_SIZE)
    what = f"input, {size} px"
    beside = functools.partial(
        compare,
        amount=steps * BATCH_SIZE,
        unit="images per CPU-second",
        repeats=options.repeats,
        clock=family_cpu_seconds,
        batch=BATCH_SIZE,
    )
    row = beside(what, ours, bare, peer_name="bare decode loop")
    rows = [row | {"unit": f"{row['unit']} (at least 0.93)"}]
    with tempfile.TemporaryDirectory(dir=options.workdir) as folder:
        images = decoded.memory_map(mixture, size, Path(folder), writes=True, written=lambda: None)
        read = functools.partial(np.take, images, axis=0)
        mapped = functools.partial(_ours, mixture, read, steps)
        rows.append(beside(f"{what}, memory map", mapped, bare, peer_name="bare decode loop"))
    rows.append(_beside_tf_data(what, ours, jpegs, steps, beside))
    rows.append(_beside_torch(what, ours, jpegs, steps, beside))
    rows.append(single("a record's JPEG", float(np.mean([len(j) for j in jpegs])) / 1024, "KiB"))
    return rows


def family_cpu_seconds() -> float:
    """CPU seconds of this process, its finished children, and its workers that still live."""
    ticks = os.sysconf("SC_CLK_TCK")
    used = cpu_seconds()
    for child in multiprocessing.active_children():
        # Fields 14 and 15; the second may hold spaces and ends with a bracket.
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        used += (int(fields[11]) + int(fields[12])) / ticks
    return used


def _ours(mixture: batches.Mixture, read: Callable[[np.ndarray], np.ndarray], steps: int) -> None:
    for _ in batches.train_batches(mixture, read, batch_size=BATCH_SIZE, num_steps=steps, seed=0):
        pass


def _bare(jpegs: list[bytes], amount: int) -> None:
    for number in range(amount):
        data = np.frombuffer(jpegs[number % len(jpegs)], np.uint8)
        cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def _beside_tf_data(
    what: str, ours: Callable[[], None], jpegs: list[bytes], steps: int, beside: Any
) -> Row:
    try:
        tf = import_module("tensorflow")
    except ImportError:
        return skipped(f"{what} / tf.data", "tensorflow is not installed")
    dataset = tf.data.Dataset.from_tensor_slices(jpegs).repeat()
    dataset = dataset.map(
        lambda jpeg: tf.io.decode_jpeg(jpeg, channels=3), num_parallel_calls=tf.data.AUTOTUNE
    )
    dataset = dataset.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE).take(steps)

    def theirs() -> None:
        for _ in dataset:
            pass

    return beside(what, ours, theirs, peer_name="tf.data, its own decoder")


class _Faces:
    """What a PyTorch user would write: one decoded face for a number."""

    def __init__(self, jpegs: list[bytes], amount: int) -> None:
        self.jpegs, self.amount = jpegs, amount

    def __len__(self) -> int:
        return self.amount

    def __getitem__(self, number: int) -> Any:
        data = np.frombuffer(self.jpegs[number % len(self.jpegs)], np.uint8)
        return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def _beside_torch(
    what: str, ours: Callable[[], None], jpegs: list[bytes], steps: int, beside: Any
) -> Row:
    try:
        from torch.utils.data import DataLoader  # pyright: ignore[reportMissingImports] (an optional peer)
    except ImportError:
        return skipped(f"{what} / torch DataLoader", "torch is not installed")
    loader = DataLoader(
        _Faces(jpegs, steps * BATCH_SIZE),  # pyright: ignore[reportArgumentType] (it needs no base class)
        batch_size=BATCH_SIZE,
        num_workers=WORKERS,
        # Workers that are forked from a process with threads may stop for ever.
        multiprocessing_context="spawn",
        persistent_workers=True,
    )

    def theirs() -> None:
        for _ in loader:
            pass

    return beside(what, ours, theirs, peer_name=f"torch DataLoader, {WORKERS} workers")
