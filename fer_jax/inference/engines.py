"""What runs a trained network on faces: JAX, or an engine for those who have none.

An engine is one function from faces to probabilities and what is known of the network. Whatever
finds, cuts out and shows faces is the same for all of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fer_jax.errors import InputError, did_you_mean
from fer_jax.inference import runtime
from fer_jax.inference.explain import explainer
from fer_jax.inference.load import ARRAYS, Model, blocks, load
from fer_jax.inference.network import model_arguments
from fer_jax.inference.onnx_graph import to_onnx
from fer_jax.sharding import to_devices


@dataclasses.dataclass(frozen=True)
class Engine:
    """A network that is ready to run.

    Attributes:
      name: of the engine, such as "jax".
      task: "emotion" or "interest".
      classes: what the probabilities are of, in order.
      image_size: pixels a side of its input.
      probabilities: uint8 RGB [n, s, s, 3] to float32 [n, classes], rows sum to 1; any n, and
        callable from several threads.
      about: what `export` writes into config.json: task, classes, image_size, step,
        margin, config.
      folder: of the files it came from, where results.json may stand.
      explain: where the network looked, as `explain.explainer` returns it; None where an engine
        has no gradient.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    image_size: int
    probabilities: Callable[[np.ndarray], np.ndarray]
    about: Mapping[str, Any]
    folder: Path
    explain: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None


def open_engine(path: Path, engine: str = "") -> Engine:
    """Opens what was trained or exported, in an engine.

    Args:
      path: a run's workdir, one of its checkpoints (WORKDIR/checkpoints/STEP), a folder or a
        file that `export` wrote.
      engine: one of `ENGINES`; "" for the one that the path's kind of file is for.

    Raises:
      InputError: nothing there that was trained, no such engine, its package is missing, or it
        does not read this kind of file.
    """
    if engine and engine not in ENGINES:
        raise InputError(f"no engine '{engine}'{did_you_mean(engine, ENGINES)}")
    if not path.exists():
        raise InputError(f"'{path}' does not exist; name a run's workdir or an exported model")
    return ENGINES[engine or _engine_for(path)](path)


def _engine_for(path: Path) -> str:
    """JAX, but for what only the others read."""
    only_onnx = path.is_dir() and (path / runtime.ONNX).is_file() and not (path / ARRAYS).is_file()
    return "onnxruntime" if path.suffix == ".onnx" or only_onnx else "jax"


def _jax(path: Path) -> Engine:
    """The network as it was trained, on the first device."""
    model = _trained(path)

    def probabilities(faces: np.ndarray) -> np.ndarray:
        rows = np.empty((len(faces), len(model.classes)), np.float32)
        for block in blocks(len(faces)):
            rows[block] = model.score(model.network, to_devices(faces[block], model.mesh))
        return rows

    return Engine(
        name="jax",
        task=model.config.task,
        classes=model.classes,
        image_size=model.image_size,
        probabilities=probabilities,
        explain=explainer(model),
        about=model.about(),
        folder=model.workdir,
    )


def _trained(path: Path) -> Model:
    """What JAX reads, with a batch of one and on one device."""
    folder, checkpoint = path, "best"
    if path.is_file() and path.name == ARRAYS:
        folder = path.parent
    elif path.parent.name == "checkpoints":
        folder, checkpoint = path.parent.parent, path.name
    elif path.name == "checkpoints":
        folder = path.parent
    elif path.is_file():
        raise InputError(f"'{path}' is no network that JAX reads; name a workdir or {ARRAYS}")
    elif (path / runtime.ONNX).is_file() and not (path / ARRAYS).is_file():
        raise InputError(f"'{path}' holds no {ARRAYS}, which JAX reads; export it, too")
    # One device: what takes the time beside it, decoding and detecting, is the host's.
    return load(folder, checkpoint, batch_size=1, devices=jax.local_devices()[:1])


def _onnx(path: Path, *, engine: str) -> Engine:
    """An exported file, or a trained network that becomes one on the way."""
    file = path / runtime.ONNX if path.is_dir() else path
    if file.suffix == ".onnx" and file.is_file():
        session = runtime.open_onnx(file.read_bytes(), engine, str(file))
    else:
        model = _trained(path)
        network = model.network
        graph = to_onnx(
            network["ema"] or network["params"],
            network["batch_stats"],
            model_arguments(model.config),
            model.about(),
        )
        session = runtime.open_onnx(graph.SerializeToString(), engine, str(path))
    about = session.about
    return Engine(
        name=engine,
        task=about["task"],
        classes=tuple(about["classes"]),
        image_size=about["image_size"],
        probabilities=session.run,
        about=about,
        folder=path if path.is_dir() else path.parent,
    )


# name: opens a path in it
ENGINES: dict[str, Callable[[Path], Engine]] = {"jax": _jax} | {
    engine: functools.partial(_onnx, engine=engine) for engine in runtime.ENGINES
}
