"""FLOPs of the network, counted from its shapes, and the peak FLOP/s of devices."""

from typing import Any

import jax
import numpy as np

from fer_jax.models import xception

TRAINING_PASSES = 3  # forward, and a gradient for each factor of every product

# FLOP/s of dense matrix products by the vendor's data sheets: (16 bits, float32, for which XLA uses
# TF32 if there is one). A device is found by the words of its name.
PEAKS = {
    "H200": (989e12, 495e12),
    "H100 80GB HBM3": (989e12, 495e12),
    "H100 PCIe": (756e12, 378e12),
    "A100": (312e12, 156e12),
    "L4": (121e12, 60e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
}


def count(**model: Any) -> tuple[int, int]:
    """Counts the work of `Xception(**model)` for one image, forward.

    Returns (operations: two per multiply-add of every convolution and dense layer; elements: the
    inputs and outputs of these layers).
    """
    params, _ = jax.eval_shape(lambda: xception.init(jax.random.key(0), **model))
    image_size = model.get("image_size", 224)
    stem1, size = xception.stem_sizes(image_size, model.get("stem_stride", 2))
    sizes = {"stem1": (image_size, stem1), "stem2": (stem1, size)}
    for block in ("entry1", "entry2", "entry3", "exit1"):
        if block == "exit1":
            sizes |= {name: (size, size) for name in params if name.startswith("middle")}
        sizes[block] = (size, size)
        size = -(-size // 2)
        sizes[f"{block}/shortcut"] = (size, size)
    sizes |= {"exit2": (size, size), "exit3": (size, size)}
    sizes |= dict.fromkeys(("hidden1", "hidden2", "logits"), (1, 1))

    operations = elements = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = [key.key for key in path]
        if names[-1] not in ("kernel", "depthwise"):
            continue
        before, after = sizes.get("/".join(names[:2])) or sizes[names[0]]
        inputs = leaf.shape[-1] if names[-1] == "depthwise" else leaf.shape[-2]
        operations += 2 * int(np.prod(leaf.shape)) * after**2
        elements += inputs * before**2 + leaf.shape[-1] * after**2
    return operations, elements


def peak(device_kind: str, dtype: str) -> float | None:
    """Returns the peak FLOP/s of a device, named as by JAX ("NVIDIA H200"); None if unknown."""
    words = f" {device_kind} ".replace("-", " ")
    for name, (half, single) in PEAKS.items():
        if f" {name} " in words:
            return single if dtype == "float32" else half
    return None
