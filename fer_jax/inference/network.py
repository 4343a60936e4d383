"""The network of a run: its shapes; trained, ready to run in JAX, ONNX Runtime or OpenVINO."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.sharding import Mesh
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fer_jax import checkpoints, forms, results, storage
from fer_jax.checkpoints import inference_arrays
from fer_jax.config import (
    Config,
    check_config,
    completed,
    from_dict,
    read_config,
    read_environment,
    to_json,
)
from fer_jax.data.augment import normalize
from fer_jax.errors import InputError, did_you_mean
from fer_jax.inference import runtime
from fer_jax.inference.runtime import FORMAT, to_onnx
from fer_jax.media.images import resized
from fer_jax.models import xception
from fer_jax.schema import TASKS
from fer_jax.sharding import batch_sharding, make_mesh, replicated, to_devices, with_shardings

SCALE = ".scale"  # follows the name of an int8 kernel: the array of its scales
CONFIG, ARRAYS = "config.json", "model.safetensors"  # of an exported folder
ENGINES = ("jax", *runtime.ENGINES)
MAX_ONNX_BYTES = 2**31
MAX_MARGIN = 10.0  # a share of a face's side
BATCHES_IN_FLIGHT = 4
# Many images are padded to batches of one size. Faces that come a few at a time are divided into
# several sizes instead: each is compiled once, and nothing is computed for padding.
BATCH_SIZES = (64,)
FEW_FACES = (32, 8, 1)

PredictStep = Callable[[dict[str, Any], jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, repr=False)
class Network:
    """A trained network in one engine; its functions may be called from several threads.

    Images are uint8 RGB [n, h, w, 3], or n images [h, w, 3] of any sizes: aligned square crops,
    as in the records. They are resized to `image_size` as records are.
    """

    engine: str  # one of `ENGINES`
    folder: Path  # of the run or of the exported files
    # The metadata of exported forms: format, task, classes, image_size, step, margin, config,
    # certainty (`certainty.fit` by the kind of groups; {} without), and in an exported file its
    # fingerprint.
    about: dict[str, Any]
    config: Config  # of the run
    # Images to float64 [n, classes]; rows sum to 1.
    probabilities: Callable[[Iterable[np.ndarray]], np.ndarray]
    # Images to the last activations averaged over the face, float64 [n, 2048 * width]; JAX only.
    features: Callable[[Iterable[np.ndarray]], np.ndarray]
    # Images of the network's size and classes int [n] to (`grad_cam` of each image for its class,
    # float32 [n, g, g]; probabilities float32 [n, classes]); JAX only.
    explain: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    # {"params", "batch_stats"} on the devices; empty unless in JAX.
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        model = self.config.model
        return (
            f"Xception (width {model.width:g}, {model.num_middle_blocks} middle blocks), task "
            f"{self.task}\n  classes: {', '.join(self.classes)}\n"
            f"  input: faces of {self.image_size} x {self.image_size} pixels\n"
            f"  checkpoint: step {self.step} of '{self.folder}'\n  engine: {self.engine}"
        )

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

    `path` is a run's workdir, its checkpoints folder or one checkpoint (WORKDIR/checkpoints/STEP),
    or a folder or a file that `export` wrote. `checkpoint` is of a workdir: "best" by its selection
    metric, "last", or a step. `engine` is one of `ENGINES`; "" chooses by the kind of file. JAX
    takes batches of `batch_sizes`, the largest first, rounded up to multiples of the number of
    `devices` (None: all) that share a batch; what remains is padded to the smallest. Raises
    InputError if `path` has no network, or one of another version, a damaged one or one that the
    engine cannot read; or the engine is unknown or not installed.
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
        if file.stat().st_size > MAX_ONNX_BYTES:
            raise InputError(f"'{file}' is over {MAX_ONNX_BYTES >> 30} GiB, which ONNX cannot be")
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

    config = from_dict(about["config"])
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
        raise InputError(
            f"'{path}' has no {ARRAYS}, which JAX reads; run fer-jax export --format=safetensors"
        )
    mesh = make_mesh(devices)
    if (path / ARRAYS).is_file():
        step, config, network, margin = _read_exported(path, mesh)
        form = {"saw?": forms.PROVENANCE, "certainty?": {str: forms.CERTAINTY}}
        written = storage.read_json(path / CONFIG, form=form)
        saw, certainty = written.get("saw", {}), written.get("certainty", {})
    else:
        config, margin = read_config(path), _margin(path)
        if config.features:
            raise InputError(
                f"'{path}' is a linear head on the features of '{config.features}', not a network; "
                "only evaluate, report and compare use it"
            )
        saw = _saw(config, path)
        _check_version(config, path)
        step, network = checkpoints.restore_network(
            path, checkpoint, network_shapes(config, mesh), config.selection_metric
        )
        certainty = _certainty(path, step)
    flat: dict[str, Any] = traverse_util.flatten_dict(network, sep="/")
    for name, array in flat.items():
        if not np.isfinite(np.asarray(array)).all():
            raise InputError(f"'{path}' is damaged: {name} has numbers that are not finite")
    if not 0 <= margin <= MAX_MARGIN:
        raise InputError(f"'{path}' is damaged: its margin is {margin:g}")
    about = {
        "format": FORMAT,
        "task": config.task,
        "classes": list(TASKS[config.task]),
        "image_size": config.model.image_size,
        "step": step,
        "margin": margin,
        "saw": saw,
        "certainty": certainty,
        "config": json.loads(to_json(config)),
    }
    arrays = inference_arrays(network)
    sizes = tuple(-(-size // mesh.size) * mesh.size for size in batch_sizes)
    return Network(
        "jax", path, about, config, *compile_network(config, arrays, mesh, sizes), arrays=arrays
    )


def compile_network(
    config: Config, arrays: dict[str, Any], mesh: Mesh, sizes: Sequence[int]
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Returns `probabilities`, `features` and `explain` of a `Network` in JAX."""
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
            # Images are resized while the device computes, but only a few batches ahead.
            if len(done) > BATCHES_IN_FLIGHT:
                done[-BATCHES_IN_FLIGHT].block_until_ready()
        rows = [np.asarray(out, np.float64)[:n] for out, n in zip(done, counts, strict=True)]
        return np.concatenate(rows) if rows else np.zeros((0, 0))

    def probabilities(images: Iterable[np.ndarray]) -> np.ndarray:
        return run(score, images).reshape(-1, num_classes)

    def explain(images: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps: list[np.ndarray] = [np.zeros((0, cells, cells), np.float32)]
        rows: list[np.ndarray] = [np.zeros((0, num_classes), np.float32)]
        remaining = np.asarray(classes, np.int32)
        for batch, count in _batches(images, size, FEW_FACES):
            given, remaining = np.split(remaining, [count])
            heat, row = map(np.asarray, cam(network, batch, given))
            if config.test_time_flip:
                # As predictions, the heatmap is the mean over the image and its mirror image.
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
    """Yields (uint8 [one of sizes, size, size, 3], number of images without black padding)."""
    remaining = iter(images)
    while chunk := list(itertools.islice(remaining, sizes[0])):
        while chunk:
            length = next((n for n in sizes if n <= len(chunk)), sizes[-1])
            batch, count = np.zeros((length, size, size, 3), np.uint8), min(length, len(chunk))
            for row, image in zip(batch, chunk[:count], strict=False):
                resized(image, size, out=row)
            yield batch, count
            chunk = chunk[count:]


def _check_version(config: Config, path: Path) -> None:
    try:
        check_config(config)
    except InputError as error:
        raise InputError(f"'{path}' was not written by this version of fer_jax: {error}") from error


def _margin(workdir: Path) -> float:
    """Returns the margin of a run's training datasets; 0 if they differ or it is unknown."""
    datasets = read_environment(workdir).get("datasets", {})
    try:
        margins = {float(one["margin"]) for one in datasets.values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return 0.0
    return margins.pop() if len(margins) == 1 else 0.0


def _certainty(workdir: Path, step: int) -> dict[str, Any]:
    """Returns what `evaluate` found of a checkpoint's certainty; {} if it did not evaluate it."""
    scored = results.read(workdir)
    if not scored or scored["checkpoint"]["step"] != step:
        return {}
    return scored.get("certainty", {})


def _saw(config: Config, workdir: Path) -> dict[str, list[Any]]:
    """Returns what a run was trained on, as in provenance.py, without opening it."""
    environment = read_environment(workdir)
    start = environment.get("start", {})
    saw = list(start.get("saw", []))
    for entry in config.sources:
        source = {"name": entry} if isinstance(entry, str) else dict(entry)
        known = environment.get("datasets", {}).get(source["name"], {})
        for part in ("train", "validation"):
            about = {"dataset": source["name"], "split": source.get(part, part), "unnamed": 1}
            saw.append(about | {"fingerprint": known.get("fingerprint")})
    return {"saw": saw} | {kind: start.get(kind, []) for kind in ("subjects", "unknown")}


def _read_exported(folder: Path, mesh: Mesh) -> tuple[int, Config, dict[str, Any], float]:
    wrong = f"'{folder / CONFIG}' was not written by fer-jax export"
    try:
        written = storage.read_json(folder / CONFIG)
        if written.get("format") != FORMAT:
            raise InputError(wrong)
        step = int(written["step"])
        config = completed(from_dict(written["config"]))
        margin = float(written.get("margin", 0.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(wrong) from error
    _check_version(config, folder)
    file = folder / ARRAYS
    try:
        arrays = dequantize_weights(load_file(file))
    except SafetensorError as error:
        raise InputError(f"'{file}' is damaged: {error}") from error
    except ValueError as error:
        raise InputError(f"'{file}' is damaged: scales of another shape") from error
    shapes = {k: v for k, v in network_shapes(config, mesh).items() if v and k != "ema"}
    expected: dict[str, Any] = traverse_util.flatten_dict(shapes, sep="/")
    for name in sorted(expected.keys() | arrays.keys()):
        needed, found = (
            f"{a[name].dtype} {a[name].shape}" if name in a else "absent"
            for a in (expected, arrays)
        )
        if found != needed:
            raise InputError(
                f"'{file}' is of another network: {name} must be {needed}, got {found}"
            )
    network: Any = traverse_util.unflatten_dict(arrays, sep="/")
    return step, config, jax.device_put(network | {"ema": {}}, replicated(mesh)), margin


def dequantize_weights(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undoes `export.quantize.quantize_weights`: returns float32 arrays by name."""
    return {
        name: array * arrays[name + SCALE] if name + SCALE in arrays else array
        for name, array in arrays.items()
        if not name.endswith(SCALE)
    }


def model_arguments(config: Config) -> dict[str, Any]:
    """Returns the config's model and task as keyword arguments of `xception.Xception`."""
    return dict(config.model) | {"num_classes": len(TASKS[config.task])}


def network_shapes(config: Config, mesh: Mesh) -> dict[str, Any]:
    """Returns the shapes of a run's network, replicated over the mesh.

    They are {"params", "batch_stats", "ema"} (the average is empty where the run keeps none), each
    a nested dict of `jax.ShapeDtypeStruct` with shardings.
    """
    model = model_arguments(config)
    params, batch_stats = jax.eval_shape(lambda key: xception.init(key, **model), jax.random.key(0))
    shapes = {"params": params, "batch_stats": batch_stats}
    shapes["ema"] = params if config.ema_decay else {}
    return with_shardings(shapes, jax.tree.map(lambda _: replicated(mesh), shapes))


def predict_step(
    network: dict[str, Any], images: jax.Array, *, graphdef: Any, flip: bool = False
) -> jax.Array:
    """Computes the class probabilities of a batch, uint8 [b, s, s, 3]: float32 [b, classes].

    `network` has "params", "batch_stats" and "ema", the average, which is used where there is one.
    With `flip` they are the mean over each image and its mirror image.
    """
    arrays = inference_arrays(network)

    def probabilities(images: jax.Array) -> jax.Array:
        logits, _ = xception.apply(
            graphdef, arrays["params"], arrays["batch_stats"], normalize(images)
        )
        return jax.nn.softmax(logits)

    if not flip:
        return probabilities(images)
    return (probabilities(images) + probabilities(images[:, :, ::-1])) / 2


def pooled_features(network: dict[str, Any], images: jax.Array, *, graphdef: Any) -> jax.Array:
    """Averages the last activations over each image, uint8 [b, s, s, 3]: float32 [b, c]."""
    arrays = inference_arrays(network)
    merged = nnx.merge(graphdef, arrays["params"], arrays["batch_stats"])
    return merged.features(normalize(images)).astype("float32").mean(axis=(1, 2))


def grad_cam(
    network: dict[str, Any], images: jax.Array, classes: jax.Array, *, graphdef: Any
) -> tuple[jax.Array, jax.Array]:
    """Computes a heatmap of each image, uint8 [b, s, s, 3], for one class, int [b].

    Grad-CAM (Selvaraju et al. 2017) weights each channel of the activations before pooling by the
    gradient of the class's logit, sums over channels and sets negative values to zero. The gradient
    is summed over the map's pixels rather than averaged: with the "gap" head the result is the
    class activation map of Zhou et al. (2016), whose mean is the logit without the bias.

    Returns (float32 [b, s / 32, s / 32], not negative, in units of the logit; class probabilities,
    float32 [b, k]).
    """
    arrays = inference_arrays(network)
    merged = nnx.merge(graphdef, arrays["params"], arrays["batch_stats"])
    activations = merged.features(normalize(images)).astype(np.float32)

    def class_logits(activations: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, logits = merged.from_features(activations)
        # Images are independent, so the gradient of the sum holds each image's own.
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), logits

    gradient, logits = jax.grad(class_logits, has_aux=True)(activations)
    weights = gradient.sum(axis=(1, 2), keepdims=True)
    maps = jax.nn.relu((weights * activations).sum(axis=-1))
    return maps, jax.nn.softmax(logits)


def compile_predict_step(
    graphdef: Any, network_sharding: Any, mesh: Mesh, *, flip: bool
) -> PredictStep:
    """Jits `predict_step`: images sharded over the mesh, probabilities on every device."""
    return jax.jit(
        functools.partial(predict_step, graphdef=graphdef, flip=flip),
        in_shardings=(network_sharding, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )
