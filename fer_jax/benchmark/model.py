"""The whole network: inference and the train step, beside PyTorch, Keras and plain XLA.

Every side runs in a process of its own under the same environment, so the same allocator.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax

from fer_jax.benchmark import model_side
from fer_jax.benchmark.benchmark import Row, compare, single, skipped
from fer_jax.errors import InputError, did_you_mean
from fer_jax.models import flops, xception

MODES = ("train", "inference")
DTYPES = ("float32", "bfloat16")
CLOCKS = ("wall", "cpu")
PEERS = tuple(side for side in model_side.SIDES if side != "ours")
# What ours should reach on two CPU cores: (mode, dtype, peer): ours / peer.
BARS = {
    ("train", "float32", "PyTorch eager"): 0.8,
    ("train", "bfloat16", "PyTorch eager"): 0.4,
    ("inference", "float32", "PyTorch eager"): 0.9,
    ("inference", "bfloat16", "PyTorch eager"): 0.6,
    ("train", "float32", "ours, grouped convolution"): 4.0,
    ("train", "float32", "Keras on JAX"): 3.0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags."""
    for name, choices in (("modes", MODES), ("dtypes", DTYPES), ("peers", PEERS)):
        parser.add_argument(f"--{name}", nargs="*", default=choices, help=", ".join(choices))
    parser.add_argument("--batches", nargs="+", type=int, default=(8, 32))
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--width", type=float, default=1.0, help="of the network")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: CPU seconds, for a busy machine"
    )


def run(options: argparse.Namespace) -> list[Row]:
    """Ours beside each peer, for every mode, dtype and batch."""
    for name, known in (("modes", MODES), ("dtypes", DTYPES), ("peers", PEERS)):
        for value in getattr(options, name):
            if value not in known:
                raise InputError(f"--{name} cannot be '{value}'{did_you_mean(value, known)}")
    if min(options.batches) < 1:
        raise InputError(f"--batches must be at least 1, not {min(options.batches)}")
    # Refuses what makes no network, before any process starts.
    xception.graphdef(**model_side.model_arguments("float32", options.image_size, options.width))
    rows = []
    for peer in options.peers:
        if package := model_side.missing(peer):
            rows.append(skipped(peer, f"{package} is not installed: pip install -e '.[bench]'"))
    for mode in options.modes:
        for dtype in options.dtypes:
            for batch in options.batches:
                rows += _beside_the_peers(options, mode, dtype, batch)
    return rows


def _beside_the_peers(
    options: argparse.Namespace, mode: str, dtype: str, batch: int
) -> Iterator[Row]:
    what = {"train": "train step", "inference": "inference"}[mode]
    spec = {
        **{"mode": mode, "dtype": dtype, "batch": batch},
        **{"image_size": options.image_size, "width": options.width},
    }
    ours = _Side(side="ours", **spec)
    peaks = {}
    for peer in options.peers:
        if model_side.missing(peer):
            continue
        if peer == f"ours, {'grouped convolution' if ours.accelerator else 'shifted adds'}":
            yield skipped(f"{what} {dtype} {batch} / {peer}", "it is what ours does here")
            continue
        try:
            theirs = _Side(side=peer, **spec)
        except RuntimeError as error:
            yield skipped(f"{what} {dtype} {batch} / {peer}", str(error))
            continue
        if theirs.accelerator != ours.accelerator:
            yield skipped(f"{what} {dtype} {batch} / {peer}", "it does not compute on our device")
            theirs.close()
            continue
        if theirs.num_parameters != ours.num_parameters:
            raise RuntimeError(
                f"{peer}'s network has {theirs.num_parameters} parameters, ours "
                f"{ours.num_parameters}"
            )
        cpu = options.clock == "cpu"
        row = compare(
            what,
            ours.run,
            theirs.run,
            peer_name=peer,
            amount=batch,
            unit=f"images per {'CPU-second' if cpu else 'second'}",
            repeats=options.repeats,
            clock=functools.partial(_cpu_seconds, ours, theirs) if cpu else time.perf_counter,
            dtype=dtype,
            batch=batch,
        )
        if bar := BARS.get((mode, dtype, peer)):
            row["unit"] += f" (at least {bar})"
        yield row
        theirs.close()
        peaks[peer] = theirs.peak_mb
        yield single(f"{peer}, {what} {dtype} {batch}: until the first", theirs.first_s, "s")
        yield single(f"{peer}, {what} {dtype} {batch}: peak memory", peaks[peer], "MB")
    yield single(f"ours, {what} {dtype} {batch}: until the first", ours.first_s, "s")
    bar = ""
    if "PyTorch eager" in peaks and (mode, dtype) == ("train", "float32"):
        bar = f"at most {1.5 * peaks['PyTorch eager']:.0f}, 1.5 times PyTorch's"
    yield single(f"ours, {what} {dtype} {batch}: peak memory", ours.peak_mb, "MB", bar=bar)
    # After the peak memory is read: measuring the machine takes memory, too.
    yield from _limits(ours, options, what, mode, dtype, batch)
    ours.close()


def _cpu_seconds(*sides: "_Side") -> float:
    return sum(side.cpu_s for side in sides)


def _limits(
    ours: "_Side", options: argparse.Namespace, what: str, mode: str, dtype: str, batch: int
) -> Iterator[Row]:
    """How near ours comes to a machine that does nothing but multiply, or nothing but copy."""
    rates = ours.ask("rates")
    started = time.perf_counter()
    for _ in range(options.repeats):
        ours.run()
    seconds = (time.perf_counter() - started) / options.repeats / batch
    model = model_side.model_arguments(dtype, options.image_size, options.width)
    flop, elements = flops.count(**model)
    passes = {"inference": 1, "train": flops.TRAINING_PASSES}[mode]
    flop, moved = passes * flop, passes * elements * jax.numpy.dtype(dtype).itemsize
    name = f"ours, {what} {dtype} {batch}: "
    multiplying, copying = flop / rates["flop_per_second"], moved / rates["bytes_per_second"]
    yield single(name + "operations of an image", flop / 1e9, "GFLOP")
    yield single(name + "bytes of an image's layers", moved / 1e6, "MB")
    yield single(name + "this machine multiplies", rates["flop_per_second"] / 1e9, "GFLOP/s")
    yield single(name + "this machine copies", rates["bytes_per_second"] / 1e9, "GB/s")
    yield single(name + "share of that limit", (multiplying + copying) / seconds, "of 1")


class _Side:
    """A process that has done its first step and waits for words."""

    def __init__(self, **spec: Any):
        # A file: a pipe that nobody reads would stop a library that warns a lot.
        self.said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", model_side.__name__, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            # Two processes share a GPU: neither may take most of its memory beforehand.
            env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ,
        )
        self.cpu_s = self.peak_mb = 0.0
        first = self._answer()
        self.first_s = first["first_step_s"]
        self.num_parameters = first["num_parameters"]
        self.accelerator = first["accelerator"]
        self.run()

    def _answer(self) -> dict[str, float]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            self.process.wait()
            self.said.seek(0)
            lines = [line for line in self.said if line.strip()]
            raise RuntimeError(
                lines[-1].strip() if lines else f"it ended with {self.process.returncode}"
            )
        return json.loads(line)

    def ask(self, word: str) -> dict[str, float]:
        """Says a word and waits for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.cpu_s, self.peak_mb = answer["cpu_seconds"], answer["peak_mb"]
        return answer

    def run(self) -> None:
        """One step."""
        self.ask("run")

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()
        self.said.close()
