"""A trained run, loaded: faces in, class probabilities and features out."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util
from jax.sharding import Mesh
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fer_jax import checkpoints
from fer_jax.config import Config, check_config, completed, from_json, read_config, to_json
from fer_jax.data.augment import normalize
from fer_jax.errors import InputError
from fer_jax.inference.network import (
    PredictStep,
    compile_predict_step,
    model_arguments,
    network_shapes,
)
from fer_jax.inference.runtime import FORMAT
from fer_jax.media.images import resized
from fer_jax.models import xception
from fer_jax.schema import TASKS
from fer_jax.sharding import batch_sharding, make_mesh, replicated, to_devices

SCALE = ".scale"  # after the name of a kernel: of its int8 values
# Of an exported folder.
CONFIG, ARRAYS = "config.json", "model.safetensors"
BATCH_SIZE = 64
BATCHES_IN_FLIGHT = 4
# Where faces come a few at a time they are run in blocks of these sizes: each is a program to be
# compiled, and none is filled up with black, which on a CPU costs as much as faces do.
BLOCKS = (32, 8, 1)


@dataclasses.dataclass(frozen=True)
class Model:
    """A network with its parameters on the devices.

    Attributes:
      workdir: where it came from.
      step: of its checkpoint.
      config: of its run.
      network: {"params", "batch_stats", "ema"}.
      mesh: the devices that share a batch.
      batch_size: images at once, over all devices.
      margin: by which share the tight framing of the faces it was trained on was widened.
      score: (network, images) to probabilities.
      pool: (network, images) to features.
    """

    workdir: Path
    step: int
    config: Config
    network: dict[str, Any]
    mesh: Mesh
    batch_size: int
    margin: float
    score: PredictStep
    pool: Callable[[dict[str, Any], jax.Array], jax.Array]

    @property
    def classes(self) -> tuple[str, ...]:
        """What the probabilities are of."""
        return TASKS[self.config.task]

    @property
    def image_size(self) -> int:
        """Pixels a side of the network's input."""
        return self.config.model.image_size

    def probabilities(self, faces: Iterable[np.ndarray]) -> np.ndarray:
        """Class probabilities.

        Args:
          faces: uint8 RGB [n, h, w, 3], or n faces [h, w, 3] of any sizes: aligned square
            crops, as in the records. They are brought to the network's size as records are.

        Returns:
          float64 [n, classes], rows sum to 1.
        """
        return self._run(self.score, faces).reshape(-1, len(self.classes))

    def features(self, faces: Iterable[np.ndarray]) -> np.ndarray:
        """The last activations, averaged over the face.

        Args:
          faces: as for `probabilities`.

        Returns:
          float64 [n, 2048 * width].
        """
        return self._run(self.pool, faces)

    def about(self) -> dict[str, Any]:
        """What every exported form says of the network, as JSON has it."""
        return {
            "format": FORMAT,
            "task": self.config.task,
            "classes": list(self.classes),
            "image_size": self.image_size,
            "step": self.step,
            "margin": self.margin,
            "fingerprint": self.fingerprint(),
            "config": json.loads(to_json(self.config)),
        }

    def fingerprint(self) -> str:
        """SHA-256 of the arrays that are used, in hexadecimal: which network this is."""
        arrays = {
            "params": self.network["ema"] or self.network["params"],
            "batch_stats": self.network["batch_stats"],
        }
        return checkpoints.fingerprint(arrays)

    def _run(self, step: Any, faces: Iterable[np.ndarray]) -> np.ndarray:
        done: list[jax.Array] = []
        counts: list[int] = []
        for batch, count in self._batches(faces):
            done.append(step(self.network, to_devices(batch, self.mesh)))
            counts.append(count)
            # Resizing runs ahead of the device, but no further than memory allows.
            if len(done) > BATCHES_IN_FLIGHT:
                done[-BATCHES_IN_FLIGHT].block_until_ready()
        rows = [np.asarray(out, np.float64)[:n] for out, n in zip(done, counts, strict=True)]
        return np.concatenate(rows) if rows else np.zeros((0, 0))

    def _batches(self, faces: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
        """uint8 [batch_size, s, s, 3], filled up with black, and how many are faces."""
        size = self.image_size
        batch, count = np.zeros((self.batch_size, size, size, 3), np.uint8), 0
        for face in faces:
            resized(face, size, out=batch[count])
            count += 1
            if count == self.batch_size:
                yield batch, count
                batch, count = np.zeros_like(batch), 0
        if count:
            yield batch, count


def load(
    path: str | Path,
    checkpoint: str = "best",
    *,
    batch_size: int = BATCH_SIZE,
    devices: Sequence[Any] | None = None,
) -> Model:
    """Loads a trained run, or what `export` wrote of one.

    Args:
      path: of the run's workdir, or of a folder with `model.safetensors`.
      checkpoint: of a run: "best" by its selection metric, "last", or a step.
      batch_size: images at once; rounded up to a multiple of the devices.
      devices: that share a batch; None means all.

    Raises:
      InputError: no run, no such checkpoint, one of another architecture, or a damaged export.
    """
    path = Path(path)
    mesh = make_mesh(devices)
    if (path / ARRAYS).is_file():
        step, config, network, margin = _read_exported(path, mesh)
    else:
        config, margin = _checked(read_config(path), path), _margin(path)
        step, network = checkpoints.restore_network(
            path, checkpoint, network_shapes(config, mesh), config.selection_metric
        )
    sharding = jax.tree.map(lambda _: replicated(mesh), network)
    graphdef = xception.graphdef(**model_arguments(config))
    pool = jax.jit(
        functools.partial(_pooled, graphdef=graphdef),
        in_shardings=(sharding, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
    return Model(
        workdir=path,
        step=step,
        config=config,
        network=network,
        mesh=mesh,
        batch_size=-(-batch_size // mesh.size) * mesh.size,
        margin=margin,
        score=compile_predict_step(graphdef, sharding, mesh, flip=config.test_time_flip),
        pool=pool,
    )


def blocks(count: int) -> Iterator[slice]:
    """Divides so many faces into blocks of `BLOCKS` sizes, the largest that fit first."""
    start = 0
    for size in BLOCKS:
        while count - start >= size:
            yield slice(start, start + size)
            start += size


def _checked(config: Config, path: Path) -> Config:
    """Refuses what cannot be loaded before anything is made of it."""
    try:
        return check_config(config)
    except InputError as error:
        raise InputError(f"'{path}' holds no run of this version of fer_jax: {error}") from error


def _margin(workdir: Path) -> float:
    """The margin of the datasets that a run was trained on; 0 where they differ or do not say."""
    try:
        datasets = json.loads((workdir / "environment.json").read_text())["datasets"].values()
        margins = {float(one["margin"]) for one in datasets}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0.0
    return margins.pop() if len(margins) == 1 else 0.0


def _read_exported(folder: Path, mesh: Mesh) -> tuple[int, Config, dict[str, Any], float]:
    """(step, config, network, margin) of an exported folder."""
    wrong = f"'{folder / CONFIG}' is not what fer-jax export writes"
    try:
        written = json.loads((folder / CONFIG).read_text())
        if written["format"] != FORMAT:
            raise InputError(wrong)
        step = int(written["step"])
        config = completed(from_json(json.dumps(written["config"])))
        margin = float(written.get("margin", 0.0))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(wrong) from error
    _checked(config, folder)
    try:
        arrays = dequantized_weights(load_file(folder / ARRAYS))
    except SafetensorError as error:
        raise InputError(f"'{folder / ARRAYS}' is damaged: {error}") from error
    except ValueError as error:
        raise InputError(f"'{folder / ARRAYS}' is damaged: scales of another shape") from error
    shapes = network_shapes(config, mesh) | {"ema": {}}
    wanted: dict[str, Any] = traverse_util.flatten_dict(
        {k: v for k, v in shapes.items() if v}, sep="/"
    )
    for name in sorted(wanted.keys() | arrays.keys()):
        there = arrays[name].shape if name in arrays else "absent"
        needed = wanted[name].shape if name in wanted else "absent"
        if there != needed:
            raise InputError(
                f"'{folder / ARRAYS}' is of another network: {name} is {there}, not {needed}"
            )
    network: Any = traverse_util.unflatten_dict(arrays, sep="/")
    return step, config, jax.device_put(network | {"ema": {}}, replicated(mesh)), margin


def _pooled(network: dict[str, Any], images: jax.Array, *, graphdef: Any) -> jax.Array:
    parameters = network["ema"] or network["params"]
    merged = nnx.merge(graphdef, parameters, network["batch_stats"])
    return merged.features(normalize(images)).astype("float32").mean(axis=(1, 2))


def dequantized_weights(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The float32 kernels of what `quantized_weights` returned; other arrays as they are."""
    return {
        name: array * arrays[name + SCALE] if name + SCALE in arrays else array
        for name, array in arrays.items()
        if not name.endswith(SCALE)
    }
