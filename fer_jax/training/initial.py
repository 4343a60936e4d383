"""The network that a training starts from: of a run, an export, or Keras' Xception weights."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from fer_jax.config import Config
from fer_jax.errors import InputError
from fer_jax.inference import network
from fer_jax.schema import TASKS
from fer_jax.weights import keras

# Fields of config.model that must be those of the start; another head or image size is none.
SAME = ("width", "num_middle_blocks", "stem_stride", "grayscale")


def read(config: Config) -> dict[str, np.ndarray]:
    """Returns the arrays of `config.init_from` by "params/..." and "batch_stats/..."; {} for "".

    Without the head if it is of other classes. Raises InputError if nothing is there, or a network
    that the config does not fit.
    """
    if not config.init_from:
        return {}
    path = Path(config.init_from)
    if not path.exists():
        raise InputError(f"config.init_from '{path}' does not exist")
    if keras.is_keras(path):
        return keras.read(path)
    start = network.load(path)
    for name in SAME:
        if start.config.model[name] != config.model[name]:
            value = start.config.model[name]
            raise InputError(
                f"config.init_from '{path}' was trained with model.{name}={value}, and the config "
                f"has {config.model[name]}; set --config.model.{name}={value}"
            )
    arrays = jax.tree.map(np.asarray, start.arrays)
    found: dict[str, Any] = traverse_util.flatten_dict(arrays, sep="/")
    kept = start.classes == TASKS[config.task]
    return {n: array for n, array in found.items() if kept or not n.startswith(keras.HEADS)}


def fill(
    found: dict[str, np.ndarray], network_arrays: dict[str, Any], path: str
) -> tuple[dict[str, Any], list[str]]:
    """Replaces a network's arrays by those that were found, and names the parts that stay.

    `network_arrays` has "params" and "batch_stats", arrays or their shapes. Only a head may stay:
    any other array that is absent or of another shape is an InputError.
    """
    ours: dict[str, Any] = traverse_util.flatten_dict(network_arrays, sep="/")
    filled, fresh = dict(ours), []
    for name in ours.keys() | found.keys():
        expected, shape = (one[name].shape if name in one else None for one in (ours, found))
        if expected == shape:
            filled[name] = found[name].astype(ours[name].dtype)
        elif name.startswith(keras.HEADS):
            fresh += [name.removeprefix("params/")] if expected else []
        else:
            raise InputError(
                f"config.init_from '{path}': {name} is {shape or 'absent'} and "
                f"{expected or 'absent'} in the network of the config; Keras' weights need "
                "model.width=1 and model.num_middle_blocks=8"
            )
    return traverse_util.unflatten_dict(filled, sep="/"), sorted(fresh)
