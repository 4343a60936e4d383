"""One trained network, ready to run: in JAX, ONNX Runtime or OpenVINO."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fer_jax import checkpoints
from fer_jax.config import Config, check_config, completed, from_json, read_config, to_json
from fer_jax.errors import InputError, did_you_mean
from fer_jax.inference import runtime
from fer_jax.inference.explain import grad_cam
from fer_jax.inference.network import (
    compile_predict_step,
    model_arguments,
    network_shapes,
    pooled_features,
)
from fer_jax.inference.onnx_graph import to_onnx
from fer_jax.inference.runtime import FORMAT
from fer_jax.media.images import resized
from fer_jax.models import xception
from fer_jax.schema import TASKS
from fer_jax.sharding import batch_sharding, make_mesh, replicated, to_devices

SCALE = ".scale"  # follows the name of an int8 kernel: the array of its scales
CONFIG, ARRAYS = "config.json", "model.safetensors"  # of an exported folder
ENGINES = ("jax", *runtime.ENGINES)
BATCHES_IN_FLIGHT = 4
# Batches are padded to one size where images are many. Where faces come a few at a time they are
# divided into these sizes instead: each is compiled once, and nothing is computed for padding.
BATCH_SIZES = (64,)
FEW_FACES = (32, 8, 1)


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network in one engine; its functions may be called from several threads.

    Images are uint8 RGB [n, h, w, 3], or n images [h, w, 3] of any sizes: aligned square crops,
    as in the records. They are resized to `image_size` as records are.

    Attributes:
      engine: one of `ENGINES`.
      folder: of the run or of the exported files.
      about: what the exported forms store: format, task, classes, image_size, step, margin,
        config; of an exported file also its fingerprint.
      probabilities: images to float64 [n, classes]; rows sum to 1.
      features: images to the last activations averaged over the face, float64 [n, 2048 * width];
        JAX only.
      explain: images of the network's size and classes int [n] to (`grad_cam` of each image for
        its class, float32 [n, g, g]; probabilities float32 [n, classes]); JAX only.
      config: of the run.
      arrays: {"params", "batch_stats"} on the devices; empty but in JAX.
    """

    engine: str
    folder: Path
    about: dict[str, Any]
    config: Config
    probabilities: Callable[[Iterable[np.ndarray]], np.ndarray]
    features: Callable[[Iterable[np.ndarray]], np.ndarray]
    explain: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def task(self) -> str:
        """The task, "emotion" or "interest"."""
        return self.about["task"]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return tuple(self.about["classes"])

    @property
    def image_size(self) -> int:
        """The side of the network's input in pixels."""
        return self.about["image_size"]

    @property
    def step(self) -> int:
        """The training step of the checkpoint."""
        return self.about["step"]

    @property
    def margin(self) -> float:
        """The share by which the tight crops it was trained on were widened."""
        return self.about.get("margin", 0.0)

    def fingerprint(self) -> str:
        """SHA-256 of the arrays that inference uses, in hexadecimal."""
        return checkpoints.fingerprint(self.arrays) if self.arrays else self.about["fingerprint"]


def load(
    path: str | Path,
    checkpoint: str = "best",
    *,
    engine: str = "jax",
    batch_sizes: Sequence[int] = BATCH_SIZES,
    devices: Sequence[Any] | None = None,
) -> Network:
    """Loads a trained run or an exported network.

    Args:
      path: a run's workdir, its checkpoints folder or one checkpoint (WORKDIR/checkpoints/STEP),
        or a folder or a file that `export` wrote.
      checkpoint: of a workdir: "best" by its selection metric, "last", or a step.
      engine: one of `ENGINES`; "" chooses by the kind of file.
      batch_sizes: images per call in JAX, the largest first: images are divided into these sizes,
        and the rest is padded to the smallest, rounded up to a multiple of the devices.
      devices: that share a batch in JAX; None means all.

    Raises:
      InputError: no network is there, it does not fit this version or this engine, it is damaged,
        or the engine is unknown or not installed.
    """
    path = Path(path)
    if engine and engine not in ENGINES:
        raise InputError(f"unknown engine '{engine}'{did_you_mean(engine, ENGINES)}")
    if not path.exists():
        raise InputError(f"'{path}' does not exist; name a run's workdir or an exported model")
    only_onnx = (path / runtime.ONNX).is_file() and not (path / ARRAYS).is_file()
    engine = engine or ("onnxruntime" if path.suffix == ".onnx" or only_onnx else "jax")
    if engine == "jax":
        return _load_jax(path, checkpoint, batch_sizes, devices)
    file = path / runtime.ONNX if path.is_dir() else path
    if file.suffix == ".onnx" and file.is_file():
        return _load_onnx(file.read_bytes(), engine, file, file.parent)
    model = _load_jax(path, checkpoint, batch_sizes, devices)
    arrays, arguments = model.arrays, model_arguments(model.config)
    graph = to_onnx(arrays["params"], arrays["batch_stats"], arguments, model.about)
    return _load_onnx(graph.SerializeToString(), engine, path, model.folder)


def _load_onnx(data: bytes, engine: str, path: Path, folder: Path) -> Network:
    about, run = runtime.open_onnx(data, engine, str(path))
    size = about["image_size"]

    def probabilities(images: Iterable[np.ndarray]) -> np.ndarray:
        if not isinstance(images, np.ndarray) or images.shape[1:3] != (size, size):
            sized = [resized(image, size) for image in images]
            images = np.stack(sized) if sized else np.zeros((0, size, size, 3), np.uint8)
        return run(images).astype(np.float64)

    def only_jax(*_: Any) -> Any:
        raise InputError(f"features and heatmaps need the engine jax, not {engine}")

    config = from_json(json.dumps(about["config"]))
    return Network(engine, folder, about, config, probabilities, only_jax, only_jax)


def _load_jax(
    path: Path, checkpoint: str, batch_sizes: Sequence[int], devices: Sequence[Any] | None
) -> Network:
    if path.is_file() and path.name == ARRAYS:
        path = path.parent
    elif path.parent.name == "checkpoints":
        path, checkpoint = path.parent.parent, path.name
    elif path.name == "checkpoints":
        path = path.parent
    elif path.is_file():
        raise InputError(f"JAX cannot read '{path}'; name a workdir or a {ARRAYS}")
    elif (path / runtime.ONNX).is_file() and not (path / ARRAYS).is_file():
        raise InputError(f"'{path}' holds no {ARRAYS}, which JAX reads; export that form, too")
    mesh = make_mesh(devices)
    if (path / ARRAYS).is_file():
        step, config, network, margin = _read_exported(path, mesh)
    else:
        config, margin = _checked(read_config(path), path), _margin(path)
        step, network = checkpoints.restore_network(
            path, checkpoint, network_shapes(config, mesh), config.selection_metric
        )
    about = {
        "format": FORMAT,
        "task": config.task,
        "classes": list(TASKS[config.task]),
        "image_size": config.model.image_size,
        "step": step,
        "margin": margin,
        "config": json.loads(to_json(config)),
    }
    arrays = checkpoints.inference_arrays(network)
    sizes = tuple(-(-size // mesh.size) * mesh.size for size in batch_sizes)
    return Network(
        "jax", path, about, config, *_compile(config, arrays, mesh, sizes), arrays=arrays
    )


def _compile(
    config: Config, arrays: dict[str, Any], mesh: Mesh, sizes: Sequence[int]
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """`probabilities`, `features` and `explain` of a `Network` in JAX."""
    graphdef = xception.graphdef(**model_arguments(config))
    network = arrays | {"ema": {}}
    sharding = jax.tree.map(lambda _: replicated(mesh), network)
    score = compile_predict_step(graphdef, sharding, mesh, flip=config.test_time_flip)
    pool = jax.jit(
        functools.partial(pooled_features, graphdef=graphdef),
        in_shardings=(sharding, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
    cam = jax.jit(functools.partial(grad_cam, graphdef=graphdef))
    size, num_classes = config.model.image_size, len(TASKS[config.task])
    cells = xception.output_size(size, config.model.stem_stride)

    def run(step: Any, images: Iterable[np.ndarray]) -> np.ndarray:
        done: list[jax.Array] = []
        counts: list[int] = []
        for batch, count in _batches(images, size, sizes):
            done.append(step(network, to_devices(batch, mesh)))
            counts.append(count)
            # Resizing runs ahead of the device, but no further than memory allows.
            if len(done) > BATCHES_IN_FLIGHT:
                done[-BATCHES_IN_FLIGHT].block_until_ready()
        rows = [np.asarray(out, np.float64)[:n] for out, n in zip(done, counts, strict=True)]
        return np.concatenate(rows) if rows else np.zeros((0, 0))

    def probabilities(images: Iterable[np.ndarray]) -> np.ndarray:
        return run(score, images).reshape(-1, num_classes)

    def explain(images: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps: list[np.ndarray] = [np.zeros((0, cells, cells), np.float32)]
        rows: list[np.ndarray] = [np.zeros((0, num_classes), np.float32)]
        start = 0
        for batch, count in _batches(images, size, FEW_FACES):
            given = np.asarray(classes[start : start + count], np.int32)
            start += count
            heat, row = map(np.asarray, cam(network, batch, given))
            if config.test_time_flip:
                # Predictions are the mean over both images, and so is their explanation.
                mirrored = np.ascontiguousarray(batch[:, :, ::-1])
                other, other_row = map(np.asarray, cam(network, mirrored, given))
                heat, row = (heat + other[:, :, ::-1]) / 2, (row + other_row) / 2
            maps.append(heat)
            rows.append(row)
        return np.concatenate(maps), np.concatenate(rows)

    return probabilities, functools.partial(run, pool), explain


def _batches(
    images: Iterable[np.ndarray], size: int, sizes: Sequence[int]
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (uint8 [one of sizes, size, size, 3], how many of them are not black padding)."""
    remaining = iter(images)
    while chunk := list(itertools.islice(remaining, sizes[0])):
        while chunk:
            length = next((n for n in sizes if n <= len(chunk)), sizes[-1])
            batch, count = np.zeros((length, size, size, 3), np.uint8), min(length, len(chunk))
            for row, image in zip(batch, chunk[:count], strict=False):
                resized(image, size, out=row)
            yield batch, count
            chunk = chunk[count:]


def _checked(config: Config, path: Path) -> Config:
    """Checks the config before the network is built from it."""
    try:
        return check_config(config)
    except InputError as error:
        raise InputError(f"'{path}' was not written by this version of fer_jax: {error}") from error


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
    wrong = f"'{folder / CONFIG}' was not written by fer-jax export"
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
    expected: dict[str, Any] = traverse_util.flatten_dict(
        {k: v for k, v in shapes.items() if v}, sep="/"
    )
    for name in sorted(expected.keys() | arrays.keys()):
        found = arrays[name].shape if name in arrays else "absent"
        needed = expected[name].shape if name in expected else "absent"
        if found != needed:
            raise InputError(
                f"'{folder / ARRAYS}' is of another network: {name} is {found}, not {needed}"
            )
    network: Any = traverse_util.unflatten_dict(arrays, sep="/")
    return step, config, jax.device_put(network | {"ema": {}}, replicated(mesh)), margin


def dequantized_weights(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The float32 kernels of what `quantized_weights` returned; other arrays as they are."""
    return {
        name: array * arrays[name + SCALE] if name + SCALE in arrays else array
        for name, array in arrays.items()
        if not name.endswith(SCALE)
    }
