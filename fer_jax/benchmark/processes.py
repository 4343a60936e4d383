"""Programs to compare, each in a process of its own, so that its peak memory is its own.

The child, `python -m fer_jax.benchmark.processes ARGUMENTS`, makes one of `PROGRAMS` and answers
each line of its standard input with a line of JSON: "rates" measures the machine, anything else
runs one step. It imports neither JAX nor PyTorch unless the program needs it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from fer_jax.benchmark.benchmark import peak_memory

NUM_CLASSES = 7
# Name: (the packages it needs, the function that makes it, an argument of that).
PROGRAMS = {
    "ours": (("jax",), "train_step.network_step", ""),
    "ours, grouped convolution": (("jax",), "train_step.network_step", "grouped"),
    "ours, shifted adds": (("jax",), "train_step.network_step", "shifted"),
    "PyTorch eager": (("torch",), "peers.pytorch_step", "eager"),
    "PyTorch compiled": (("torch",), "peers.pytorch_step", "compiled"),
    "Keras on JAX": (("keras",), "peers.keras_step", "jax"),
    "Keras on PyTorch": (("keras", "torch"), "peers.keras_step", "torch"),
}


def missing_package(name: str) -> str:
    """Returns a package that the program needs and that is not installed, or ""."""
    return next((package for package in PROGRAMS[name][0] if find_spec(package) is None), "")


def random_batch(batch: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns noise as uint8 [batch, image_size, image_size, 3], and labels int64 [batch]."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, image_size, image_size, 3), dtype=np.uint8)
    return images, rng.integers(0, NUM_CLASSES, batch)


class Program:
    """A child process that answers requests; `first` is its answer when it is ready."""

    def __init__(self, command: Sequence[str]):
        # A file, because a pipe that is not read blocks a library that warns a lot.
        self._messages = tempfile.TemporaryFile("w+")
        pipe = subprocess.PIPE
        # Two processes share a GPU: neither may reserve most of its memory.
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
        try:
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=self._messages, text=True, env=environment
            )
        except OSError:
            self._messages.close()
            raise
        self.first = self.last = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if line:
            return json.loads(line)
        self._process.communicate()
        self._messages.seek(0)
        lines = [line.strip() for line in self._messages if line.strip()]
        self._messages.close()
        raise RuntimeError(lines[-1] if lines else f"it ended with {self._process.returncode}")

    def ask(self, request: str = "step") -> dict[str, Any]:
        """Sends a line and returns the answer; RuntimeError if the process ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{request}\n")
        self._process.stdin.flush()
        self.last = self._answer()
        return self.last

    def close(self) -> None:
        """Ends the process, if it has not ended."""
        if not self._messages.closed:
            self._process.communicate()
            self._messages.close()


def start(name: str, **spec: Any) -> Program:
    """Starts one of `PROGRAMS` and runs two steps; RuntimeError if it does not run here.

    `spec` has mode ("train": forward, backward, AdamW; or "inference"), dtype, batch, image_size
    (pixels) and width (a factor on the number of channels).
    """
    spec = {"name": name} | spec
    program = Program([sys.executable, "-m", "fer_jax.benchmark.processes", json.dumps(spec)])
    program.ask()
    return program


def _device_memory(packages: Sequence[str]) -> float | None:
    """Returns the most memory used of the accelerator, in MB; None where there is none."""
    if "torch" in packages:
        cuda = import_module("torch").cuda
        return cuda.max_memory_allocated() / 2**20 if cuda.is_available() else None
    device = import_module("jax").devices()[0]
    if device.platform == "cpu":
        return None
    return (device.memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**20


def _serve(name: str, **spec: Any) -> None:
    def answer(**values: Any) -> None:
        print(json.dumps(values), file=stdout, flush=True)

    # Libraries may print: the answers have the real standard output for themselves.
    with os.fdopen(os.dup(1), "w") as stdout:
        os.dup2(2, 1)
        packages, function, kind = PROGRAMS[name]
        module, _, function = function.partition(".")
        make = getattr(import_module(f"fer_jax.benchmark.{module}"), function)
        started = time.perf_counter()
        step, num_parameters = make(kind, **spec)
        step()
        seconds = time.perf_counter() - started
        accelerator = _device_memory(packages) is not None
        answer(first_step_s=seconds, num_parameters=num_parameters, accelerator=accelerator)
        for line in sys.stdin:
            rates = {}
            if line.strip() == "rates":
                rates = import_module("fer_jax.benchmark.train_step").measure_rates(spec["dtype"])
            else:
                step()
            memory = _device_memory(packages)
            memory = peak_memory() if memory is None else memory
            answer(peak_mb=memory, **rates)


if __name__ == "__main__":
    _serve(**json.loads(sys.argv[1]))
