"""Where a network looked: the class activation of its last separable block, on the face.

Grad-CAM of Selvaraju et al. (2017): the activations before pooling, each channel weighted by
the gradient of the class's logit with respect to it, summed over channels, and what speaks
against the class cut off. The gradient is added over the map's pixels rather than averaged, so
that with the "gap" head this is the class activation map of Zhou et al. (2016), whose mean is
the logit (but for the bias, and before the cut).
"""

import functools
from collections.abc import Sequence
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fer_jax.data.augment import normalize
from fer_jax.evaluation.predict import model_arguments
from fer_jax.inference.load import Model
from fer_jax.media.images import resized
from fer_jax.models import xception

BATCH_SIZE = 16
# How much of the picture the colour covers where the network looked most.
OPACITY = 0.75


def grad_cam(
    network: dict[str, Any], images: jax.Array, classes: jax.Array, *, graphdef: Any
) -> tuple[jax.Array, jax.Array]:
    """What speaks for a class, and where.

    Args:
      network: {"params", "batch_stats", "ema"}; the average is used where there is one.
      images: uint8 [b, s, s, 3].
      classes: int [b], the class that each image is asked about.
      graphdef: the network without its arrays.

    Returns:
      (float32 [b, s / 32, s / 32], not negative, in units of the logit; class probabilities,
      float32 [b, k]).
    """
    merged = nnx.merge(graphdef, network["ema"] or network["params"], network["batch_stats"])
    activations = merged.features(normalize(images)).astype(jnp.float32)

    def asked(activations: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = _head(merged, activations)
        # Images do not touch each other here, so one gradient of the sum is all of theirs.
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), logits

    gradient, logits = jax.grad(asked, has_aux=True)(activations)
    weights = gradient.sum(axis=(1, 2), keepdims=True)
    maps = jax.nn.relu((weights * activations).sum(axis=-1))
    return maps, jax.nn.softmax(logits)


def _head(network: xception.Xception, activations: jax.Array) -> jax.Array:
    """What `Xception.__call__` does with its features outside training: float32 [b, k]."""
    if network.head == "gap":
        return network.logits(activations.mean(axis=(1, 2)))
    x = nnx.relu(network.hidden1(activations.reshape(len(activations), -1)))
    return network.logits(nnx.relu(network.hidden2(x)))


def explain(
    model: Model, faces: Sequence[np.ndarray], classes: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`grad_cam` of any number of faces.

    Args:
      model: from `load`.
      faces: n uint8 RGB faces [h, w, 3] of any sizes, as for `Model.probabilities`.
      classes: int [n], the class that each is asked about.

    Returns:
      (float64 [n, s / 32, s / 32], float64 [n, k]).
    """
    graphdef = xception.graphdef(**model_arguments(model.config))
    step = jax.jit(functools.partial(grad_cam, graphdef=graphdef))
    size = model.image_size
    maps, probabilities = [], []
    for start in range(0, len(faces), BATCH_SIZE):
        chosen = faces[start : start + BATCH_SIZE]
        # The last batch is filled up: one shape is one compilation.
        images = np.zeros((BATCH_SIZE, size, size, 3), np.uint8)
        asked = np.zeros(BATCH_SIZE, np.int32)
        asked[: len(chosen)] = classes[start : start + BATCH_SIZE]
        for slot, face in enumerate(chosen):
            resized(face, size, out=images[slot])
        found = step(model.network, images, asked)
        maps.append(np.asarray(found[0], np.float64)[: len(chosen)])
        probabilities.append(np.asarray(found[1], np.float64)[: len(chosen)])
    if not maps:
        cells = xception.output_size(size, model.config.model.stem_stride)
        return np.zeros((0, cells, cells)), np.zeros((0, len(model.classes)))
    return np.concatenate(maps), np.concatenate(probabilities)


def overlay(face: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A face in grey that glows where the network looked.

    Args:
      face: uint8 RGB [h, w, 3].
      heat: float [g, g], not negative; its largest value glows most, all zeros nowhere.

    Returns:
      uint8 RGB [h, w, 3].
    """
    height, width = face.shape[:2]
    largest = heat.max()
    relative = (heat / largest if largest > 0 else np.zeros_like(heat)).astype(np.float32)
    relative = cv2.resize(relative, (width, height), interpolation=cv2.INTER_LINEAR)
    levels = np.round(255 * relative).astype(np.uint8)
    glow = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)[..., None]
    # Squared: a map of few cells is nowhere near 0, and a veil over everything shows nothing.
    covered = OPACITY * relative[..., None] ** 2
    return np.round(grey * (1 - covered) + glow * covered).astype(np.uint8)
