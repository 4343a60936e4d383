"""What an Xception starts from: Keras' weights, or the folder that `convert` made of them."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fer_jax.errors import InputError
from fer_jax.weights import keras

FORMAT = "fer_jax.xception_start"
CONFIG, ARRAYS = "config.json", "arrays.safetensors"
HEADS = ("params/logits/", "params/hidden1/", "params/hidden2/")


def load_xception(
    path: Path, params: dict[str, Any], batch_stats: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Replaces a network's arrays by those of a file.

    Args:
      path: `.h5` or `.weights.h5`, with or without top, or a folder that `convert` wrote.
      params: of a full-width Xception with 8 middle blocks, from `xception.init`.
      batch_stats: the same network's.

    Returns:
      (params, batch_stats, fresh): new dicts of the same structure, and the names of the parts
      that keep their values because the file has no top, or one for other classes.

    Raises:
      InputError: there is no such file, it is damaged, is not Xception, or does not fit.
    """
    there = read_folder(path) if path.is_dir() else keras.read_xception(path)
    ours: dict[str, Any] = traverse_util.flatten_dict(
        {"params": params, "batch_stats": batch_stats}, sep="/"
    )
    filled, fresh = {}, []
    for name in ours.keys() | there.keys():
        wanted, array = (one[name].shape if name in one else None for one in (ours, there))
        if wanted == array:
            filled[name] = jnp.asarray(there[name], ours[name].dtype)
        elif name.startswith(HEADS):
            fresh += [name.removeprefix("params/")] if wanted else []
        else:
            raise InputError(
                f"{path}: {name} is {array or 'absent'} and {wanted or 'absent'} in the network; "
                "Keras' weights need model.width=1 and model.num_middle_blocks=8"
            )
    tree: Any = traverse_util.unflatten_dict({n: filled.get(n, ours[n]) for n in ours}, sep="/")
    return tree["params"], tree["batch_stats"], sorted(fresh)


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """What `keras.read_xception` returned when `convert` wrote the folder.

    Raises:
      InputError: another folder, or a damaged one.
    """
    try:
        written = json.loads((folder / CONFIG).read_text())
        known = isinstance(written, dict) and written.get("format") == FORMAT
    except (OSError, ValueError):
        known = False
    if not known or not (folder / ARRAYS).is_file():
        raise InputError(f"'{folder}' is no start that fer-jax convert wrote of Keras' weights")
    try:
        return load_file(folder / ARRAYS)
    except SafetensorError as error:
        raise InputError(f"'{folder / ARRAYS}' is damaged: {error}") from error
