"""Keras' Xception weights, `.h5` (legacy) and `.weights.h5` (Keras 3), under our names.

Depthwise kernels are [3, 3, c, 1] there and [3, 3, c] here; pointwise kernels [1, 1, c, f] there
and [c, f] here. The four shortcuts have automatic names, numbered by whatever else the session
had built, so they are taken in numerical order.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fer_jax.errors import InputError

# Keras' names in the order of its layers, with our block: (Keras' layer, path of ours).
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


def read_xception(path: Path) -> dict[str, np.ndarray]:
    """Reads a Keras file under our names.

    Args:
      path: `.h5` or `.weights.h5`, with or without top.

    Returns:
      float32 arrays by "params/<name>" and "batch_stats/<name>", as in `xception.init`; without
      "params/logits/..." where the file has no top.

    Raises:
      InputError: the file is absent, not HDF5, or not Xception.
    """
    layers = _read(path)
    found: dict[str, np.ndarray] = {}

    def take(layer: str, *shapes: tuple[int | None, ...]) -> list[np.ndarray]:
        arrays = layers.pop(layer, None)
        if arrays is None or len(arrays) != len(shapes):
            wrong = "is missing" if arrays is None else f"has {len(arrays)} arrays"
            raise InputError(f"{path} is not Keras' Xception: layer {layer} {wrong}")
        for array, shape in zip(arrays, shapes, strict=True):
            if array.ndim != len(shape) or any(
                wanted not in (None, there)
                for wanted, there in zip(shape, array.shape, strict=True)
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


def _read(path: Path) -> dict[str, list[np.ndarray]]:
    """Arrays by layer, in Keras' order within a layer; shortcuts are named by their order."""
    if not path.is_file():
        raise InputError(f"no weights file '{path}'")
    try:
        with h5py.File(path, "r") as file:
            if "layers" in file:
                layers = dict(_read_keras3(file["layers"]))
            elif "layer_names" in _weights_group(file).attrs:
                layers = dict(_read_legacy(_weights_group(file)))
            else:
                raise InputError(f"'{path}' is HDF5, but holds no Keras weights")
    except OSError as error:
        raise InputError(f"'{path}' is not an HDF5 file") from error
    named = {name: arrays for name, arrays in layers.items() if not _automatic(name)}
    for kind, suffix in (("conv2d", ""), ("batch_normalization", "_bn")):
        numbered = [name for name in layers if _automatic(name) == kind]
        for index, name in enumerate(sorted(numbered, key=_number)):
            named[f"shortcut{index}{suffix}"] = layers[name]
    return named


def _weights_group(file: Any) -> Any:
    # A whole saved model keeps its weights one level down.
    return file["model_weights"] if "model_weights" in file else file


def _read_legacy(group: Any) -> Iterator[tuple[str, list[np.ndarray]]]:
    for raw in group.attrs["layer_names"]:
        name = _text(raw)
        weights = [_text(weight) for weight in group[name].attrs["weight_names"]]
        if weights:
            yield name, [np.asarray(group[name][weight]) for weight in weights]


def _read_keras3(group: Any) -> Iterator[tuple[str, list[np.ndarray]]]:
    # Groups are named by class and count, in the order of the model's layers; the layer's own
    # name stands in an attribute, which the first versions of the format did not write.
    unnamed = _names_by_class()
    for key in sorted(group, key=_number):
        variables = group[key].get("vars")
        if variables is None or not len(variables):
            continue
        kind = re.sub(r"_\d+$", "", key)
        fallback = next(unnamed.get(kind, iter(())), key)
        name = _text(variables.attrs.get("name", fallback))
        yield name, [np.asarray(variables[str(index)]) for index in range(len(variables))]


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
