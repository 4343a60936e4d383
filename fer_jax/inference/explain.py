"""Where a network looked: the class activation of its last separable block, on the face.

Grad-CAM of Selvaraju et al. (2017): the activations before pooling, each channel weighted by
the gradient of the class's logit with respect to it, summed over channels, and what speaks
against the class cut off. The gradient is added over the map's pixels rather than averaged, so
that with the "gap" head this is the class activation map of Zhou et al. (2016), whose mean is
the logit (but for the bias, and before the cut).
"""

import functools
from collections.abc import Callable
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fer_jax.data.augment import normalize
from fer_jax.inference.load import Model, blocks
from fer_jax.inference.network import model_arguments
from fer_jax.models import xception

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
        _, logits = merged.from_features(activations)
        # Images do not touch each other here, so one gradient of the sum is all of theirs.
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), logits

    gradient, logits = jax.grad(asked, has_aux=True)(activations)
    weights = gradient.sum(axis=(1, 2), keepdims=True)
    maps = jax.nn.relu((weights * activations).sum(axis=-1))
    return maps, jax.nn.softmax(logits)


def explainer(model: Model) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """`grad_cam` of a model for any number of faces; compiled once for each size of block.

    Args:
      model: from `load`.

    Returns:
      A function of (faces, uint8 RGB [n, s, s, 3] of the network's size; classes, int [n], that
      each is asked about) that returns (float32 [n, g, g], float32 [n, k]).
    """
    graphdef = xception.graphdef(**model_arguments(model.config))
    step = jax.jit(functools.partial(grad_cam, graphdef=graphdef))
    cells = xception.output_size(model.image_size, model.config.model.stem_stride)

    def explain(faces: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = np.zeros((len(faces), cells, cells), np.float32)
        probabilities = np.zeros((len(faces), len(model.classes)), np.float32)
        for block in blocks(len(faces)):
            asked = np.asarray(classes[block], np.int32)
            maps[block], probabilities[block] = step(model.network, faces[block], asked)
            if model.config.test_time_flip:
                # What is scored is the mean over both, and so is what is explained.
                mirrored = np.ascontiguousarray(faces[block][:, :, ::-1])
                other, chances = map(np.asarray, step(model.network, mirrored, asked))
                maps[block] = (maps[block] + other[:, :, ::-1]) / 2
                probabilities[block] = (probabilities[block] + chances) / 2
        return maps, probabilities

    return explain


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
