"""SAM, sharpness-aware minimization (Foret, Kleiner, Mobahi and Neyshabur 2021, arXiv:2010.01412).

A step follows the gradient at the point of the highest loss within a small radius of the
parameters, so it costs two gradients.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

EPSILON = 1e-12  # for a gradient of 0


def perturbed_params(params: Any, gradient: Any, radius: float) -> Any:
    """Returns w + radius * g / |g|: the highest loss within the radius, to first order.

    Equation 2 of the paper with p = 2; the norm is over all parameters together.
    """
    scale = radius / (optax.tree.norm(gradient) + EPSILON)
    return jax.tree.map(lambda w, g: (w + scale * g).astype(jnp.asarray(w).dtype), params, gradient)
