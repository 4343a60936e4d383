"""Heatmaps: which parts of a face speak for a class, by Grad-CAM.

Grad-CAM (Selvaraju et al. 2017) weights each channel of the activations before pooling by the
gradient of the class's logit, sums over channels and sets negative values to zero. The gradient
is summed over the map's pixels rather than averaged: with the "gap" head the result is the class
activation map of Zhou et al. (2016), whose mean is the logit without the bias.
"""

from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fer_jax.checkpoints import inference_arrays
from fer_jax.data.augment import normalize

OPACITY = 0.75  # of the colour at the heatmap's maximum


def grad_cam(
    network: dict[str, Any], images: jax.Array, classes: jax.Array, *, graphdef: Any
) -> tuple[jax.Array, jax.Array]:
    """Computes a heatmap of each image for one class, and the class probabilities.

    Args:
      network: {"params", "batch_stats", "ema"}; the average is used where there is one.
      images: uint8 [b, s, s, 3].
      classes: int [b], the class that each heatmap is for.
      graphdef: the network without its arrays.

    Returns:
      (float32 [b, s / 32, s / 32], not negative, in units of the logit; class probabilities,
      float32 [b, k]).
    """
    arrays = inference_arrays(network)
    merged = nnx.merge(graphdef, arrays["params"], arrays["batch_stats"])
    activations = merged.features(normalize(images)).astype(jnp.float32)

    def class_logits(activations: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, logits = merged.from_features(activations)
        # Images are independent, so the gradient of the sum holds each image's own.
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), logits

    gradient, logits = jax.grad(class_logits, has_aux=True)(activations)
    weights = gradient.sum(axis=(1, 2), keepdims=True)
    maps = jax.nn.relu((weights * activations).sum(axis=-1))
    return maps, jax.nn.softmax(logits)


def overlay(face: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draws a heatmap over a face in grey, uint8 RGB [h, w, 3].

    Args:
      face: uint8 RGB [h, w, 3].
      heat: float [g, g], not negative, in any unit: colours are relative to its largest value.
    """
    height, width = face.shape[:2]
    largest = heat.max()
    relative = (heat / largest if largest > 0 else np.zeros_like(heat)).astype(np.float32)
    relative = cv2.resize(relative, (width, height), interpolation=cv2.INTER_LINEAR)
    levels = np.round(255 * relative).astype(np.uint8)
    glow = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)[..., None]
    # Squared, because a map of few cells is nowhere near 0 and would tint the whole face.
    covered = OPACITY * relative[..., None] ** 2
    return np.round(grey * (1 - covered) + glow * covered).astype(np.uint8)
