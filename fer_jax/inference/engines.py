"""What runs a trained network on faces: JAX, or an engine for those who have none.

An engine is one function from faces to probabilities and what is known of the network. Whatever
finds, cuts out and shows faces is the same for all of them.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fer_jax.config import to_json
from fer_jax.errors import InputError, did_you_mean
from fer_jax.inference.explain import explainer
from fer_jax.inference.load import ARRAYS, blocks, load
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
      about: what `export` writes into config.json: task, classes, image_size, step, config.
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
    return ENGINES[engine or "jax"](path)


def _jax(path: Path) -> Engine:
    """The network as it was trained, on the first device."""
    folder, checkpoint = path, "best"
    if path.is_file() and path.name == ARRAYS:
        folder = path.parent
    elif path.parent.name == "checkpoints":
        folder, checkpoint = path.parent.parent, path.name
    elif path.name == "checkpoints":
        folder = path.parent
    elif path.is_file():
        raise InputError(f"'{path}' is no network that JAX reads; name a workdir or {ARRAYS}")
    # One device: what takes the time beside it, decoding and detecting, is the host's.
    model = load(folder, checkpoint, batch_size=1, devices=jax.local_devices()[:1])

    def probabilities(faces: np.ndarray) -> np.ndarray:
        rows = np.empty((len(faces), len(model.classes)), np.float32)
        for block in blocks(len(faces)):
            rows[block] = model.score(model.network, to_devices(faces[block], model.mesh))
        return rows

    about = {
        "task": model.config.task,
        "classes": list(model.classes),
        "image_size": model.image_size,
        "step": model.step,
        "config": json.loads(to_json(model.config)),
    }
    return Engine(
        name="jax",
        task=model.config.task,
        classes=model.classes,
        image_size=model.image_size,
        probabilities=probabilities,
        explain=explainer(model),
        about=about,
        folder=folder,
    )


# name: opens a path in it
ENGINES: dict[str, Callable[[Path], Engine]] = {"jax": _jax}
