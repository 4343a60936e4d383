"""Keras' Xception weights, `.h5` (legacy) and `.weights.h5` (Keras 3), under our names.

Depthwise kernels are [3, 3, c, 1] there and [3, 3, c] here; pointwise kernels [1, 1, c, f] there
and [c, f] here. The four shortcuts have automatic names, numbered by what else the session had
built, so they are taken in numerical order.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fer_jax import storage
from fer_jax.errors import InputError

# The folder that `convert` writes of a file.
FORMAT = "fer_jax.xception_start"
CONFIG, ARRAYS = "config.json", "arrays.safetensors"
HEADS = ("params/logits/", "params/hidden1/", "params/hidden2/")
MAX_NUMBERS = 2**26  # of all arrays, and of a chunk; Xception has 23 million
MAX_NAME_BYTES = 2**20
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
# What h5py raises for files with flipped bits, besides OSError.
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RuntimeError, IndexError, MemoryError)

# Keras' names in the order of its layers: (Keras' layer, our path).
_SEPARABLES = (
    [(f"block{b}_sepconv{i}", f"entry{b - 1}/separable{i}") for b in (2, 3, 4) for i in (1, 2)]
    + [
        (f"block{b}_sepconv{i}", f"middle{b - 4}/separable{i}")
        for b in range(5, 13)
        for i in (1, 2, 3)
    ]
    + [(f"block13_sepconv{i}", f"exit1/separable{i}") for i in (1, 2)]
    + [("block14_sepconv1", "exit2"), ("block14_sepconv2", "exit3")]
)
_SHORTCUTS = ["entry1/shortcut", "entry2/shortcut", "entry3/shortcut", "exit1/shortcut"]


def is_keras(path: Path) -> bool:
    """Whether a path is a file, or a folder that `convert` wrote of Keras' weights."""
    if path.is_file():
        return path.name != ARRAYS or is_keras(path.parent)
    file = path / CONFIG
    return file.is_file() and storage.read_json(file).get("format") == FORMAT


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads a Keras file, or a folder that `convert` wrote, as `read_xception`; or InputError."""
    return read_folder(path) if path.is_dir() else read_xception(path)


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Reads a folder that `convert` wrote as `read_xception` its file; InputError if it is none."""
    known = storage.read_json(folder / CONFIG).get("format") == FORMAT
    if not known or not (folder / ARRAYS).is_file():
        raise InputError(f"'{folder}' is not a folder that fer-jax convert wrote of Keras' weights")
    try:
        return load_file(folder / ARRAYS)
    except SafetensorError as error:
        raise InputError(f"'{folder / ARRAYS}' is damaged: {error}") from error


def read_xception(path: Path) -> dict[str, np.ndarray]:
    """Reads a Keras file, with or without top.

    Returns float32 arrays by "params/<name>" and "batch_stats/<name>", as in `xception.init`;
    without "params/logits/..." if the file has no top. Raises InputError if the file is absent, not
    HDF5, or not Xception.
    """
    layers = _read_layers(path)
    found: dict[str, np.ndarray] = {}

    def take(layer: str, *shapes: tuple[int | None, ...]) -> list[np.ndarray]:
        arrays = layers.pop(layer, None)
        if arrays is None or len(arrays) != len(shapes):
            wrong = "is missing" if arrays is None else f"has {len(arrays)} arrays"
            raise InputError(f"{path} is not Keras' Xception: layer {layer} {wrong}")
        for array, shape in zip(arrays, shapes, strict=True):
            if array.ndim != len(shape) or any(
                expected not in (None, size)
                for expected, size in zip(shape, array.shape, strict=True)
            ):
                raise InputError(f"{path} is not Keras' Xception: {layer} is {array.shape}")
        return [np.asarray(array, np.float32) for array in arrays]

    def norm(layer: str, name: str) -> None:
        scale, bias, mean, variance = take(layer, *[(None,)] * 4)
        found[f"params/{name}/norm/scale"], found[f"params/{name}/norm/bias"] = scale, bias
        found[f"batch_stats/{name}/norm/mean"] = mean
        found[f"batch_stats/{name}/norm/var"] = variance

    for index in (1, 2):
        (kernel,) = take(f"block1_conv{index}", (3, 3, None, None))
        found[f"params/stem{index}/kernel"] = kernel
        norm(f"block1_conv{index}_bn", f"stem{index}")
    for layer, name in _SEPARABLES:
        depthwise, pointwise = take(layer, (3, 3, None, 1), (1, 1, None, None))
        found[f"params/{name}/depthwise"] = depthwise[..., 0]
        found[f"params/{name}/pointwise/kernel"] = pointwise[0, 0]
        norm(f"{layer}_bn", f"{name}/pointwise")
    for index, name in enumerate(_SHORTCUTS):
        (kernel,) = take(f"shortcut{index}", (1, 1, None, None))
        found[f"params/{name}/kernel"] = kernel[0, 0]
        norm(f"shortcut{index}_bn", name)
    if "predictions" in layers:
        kernel, bias = take("predictions", (None, None), (None,))
        found["params/logits/kernel"], found["params/logits/bias"] = kernel, bias
    if layers:
        raise InputError(f"{path} is not Keras' Xception: it also has {', '.join(sorted(layers))}")
    return found


def _read_layers(path: Path) -> dict[str, list[np.ndarray]]:
    """Returns arrays by layer, in Keras' order; shortcuts are numbered in their order."""
    if not path.is_file():
        raise InputError(f"no weights file '{path}'")
    try:
        with h5py.File(path, "r") as file:
            # A whole saved model keeps its weights one level down.
            group: Any = _member(file, "model_weights") if "model_weights" in file else file
            if "layers" in file:
                found = _read_keras3(_member(file, "layers"))
            elif "layer_names" in group.attrs:
                found = _read_legacy(group)
            else:
                raise InputError("it is HDF5, but has no Keras weights")
            layers, left = {}, MAX_NUMBERS
            for layer, stored in found:
                left -= sum(math.prod(one.shape) for one in stored)
                if left < 0:
                    raise InputError("its arrays together are larger than Xception's")
                layers[layer] = [_finite(one) for one in stored]
    except OSError as error:
        raise InputError(f"'{path}' is not an HDF5 file") from error
    except InputError as error:
        raise InputError(f"'{path}': {error}") from error
    except _DAMAGED as error:
        raise InputError(f"'{path}' is damaged or not of Keras ({type(error).__name__})") from error
    named = {name: arrays for name, arrays in layers.items() if not _automatic(name)}
    for kind, suffix in (("conv2d", ""), ("batch_normalization", "_bn")):
        numbered = [name for name in layers if _automatic(name) == kind]
        for index, name in enumerate(sorted(numbered, key=_number)):
            named[f"shortcut{index}{suffix}"] = layers[name]
    return named


def _member(group: Any, name: str) -> Any:
    """Returns a member of a group by its path; a link out of the file is refused.

    Links, external storage and virtual datasets can name any file of this machine.
    """
    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise InputError(f"'{part}' is absent, or a link, which is not followed")
        group = group[part]
    return group


def _array(group: Any, name: str) -> Any:
    """Returns a float array, not read yet, that is in the file itself and of an allowed size."""
    data = _member(group, name)
    if not isinstance(data, h5py.Dataset) or data.dtype.kind != "f" or data.dtype.itemsize > 8:
        raise InputError(f"'{name}' is not an array of floats")
    creation = data.id.get_create_plist()
    if creation.get_external_count() or creation.get_layout() == h5py.h5d.VIRTUAL:
        raise InputError(f"the numbers of '{name}' are in another file, which is not read")
    filters = {creation.get_filter(index)[0] for index in range(creation.get_nfilters())}
    if filters - FILTERS:
        raise InputError(f"'{name}' is compressed by a filter that is not supported")
    if max(math.prod(data.shape), math.prod(data.chunks or ())) > MAX_NUMBERS:
        raise InputError(f"'{name}' claims the shape {data.shape}, which is not one of Xception's")
    return data


def _finite(stored: Any) -> np.ndarray:
    array = np.asarray(stored)
    if not np.isfinite(array).all():
        raise InputError(f"'{stored.name}' has numbers that are not finite")
    return array


def _attribute(node: Any, name: str) -> Any:
    """Reads an attribute of a size that names of layers can have."""
    found = node.attrs.get_id(name)
    if math.prod(found.shape) * found.dtype.itemsize > MAX_NAME_BYTES:
        raise InputError(f"its attribute '{name}' is too large")
    return node.attrs[name]


def _read_legacy(group: Any) -> Iterator[tuple[str, list[Any]]]:
    for raw in _attribute(group, "layer_names"):
        name = _text(raw)
        layer = _member(group, name)
        weights = [_text(weight) for weight in _attribute(layer, "weight_names")]
        if weights:
            yield name, [_array(layer, weight) for weight in weights]


def _read_keras3(group: Any) -> Iterator[tuple[str, list[Any]]]:
    # Groups are named by class and count, in the order of the model's layers; the layer's own
    # name is an attribute, which the first versions of the format did not write.
    unnamed = _names_by_class()
    for key in sorted(group, key=_number):
        layer = _member(group, key)
        if "vars" not in layer or not len(variables := _member(layer, "vars")):
            continue
        kind = re.sub(r"_\d+$", "", key)
        fallback = next(unnamed.get(kind, iter(())), key)
        named = "name" in variables.attrs
        name = _text(_attribute(variables, "name") if named else fallback)
        yield name, [_array(variables, str(index)) for index in range(len(variables))]


def _names_by_class() -> dict[str, Iterator[str]]:
    stem = ["block1_conv1", "block1_conv2"]
    separables = [layer for layer, _ in _SEPARABLES]
    norms = [f"{layer}_bn" for layer in stem + separables]
    # A shortcut's BatchNorm follows its block's second separable convolution.
    for index, block in enumerate((2, 3, 4, 13)):
        place = norms.index(f"block{block}_sepconv2_bn") + 1
        norms.insert(place, f"batch_normalization_{index}")
    return {
        "conv2d": iter(stem + [f"conv2d_{index}" for index in range(4)]),
        "separable_conv2d": iter(separables),
        "batch_normalization": iter(norms),
        "dense": iter(["predictions"]),
    }


def _automatic(name: str) -> str:
    """The class in an automatic name ("conv2d_3"), or "" for a given one."""
    match = re.fullmatch(r"(conv2d|batch_normalization)(_\d+)?", name)
    return match[1] if match else ""


def _number(name: str) -> int:
    match = re.search(r"_(\d+)$", name)
    return int(match[1]) if match else 0


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
