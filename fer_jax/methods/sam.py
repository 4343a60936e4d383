"""SAM (Foret, Kleiner, Mobahi and Neyshabur 2021, arXiv:2010.01412): minima that are flat.

A step descends along the gradient taken not where the parameters are but at the worst place
within a small radius of them, so it costs two gradients.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

EPSILON = 1e-12  # a gradient of 0 leads nowhere


def ascended(params: Any, gradient: Any, radius: float) -> Any:
    """The parameters at the worst place nearby, to first order: w + radius * g / |g|.

    Equation 2 of the paper with p = 2; the norm is over all parameters together.

    Args:
      params: a tree.
      gradient: of the loss, a tree of the same structure.
      radius: the paper's rho.
    """
    scale = radius / (optax.tree.norm(gradient) + EPSILON)
    return jax.tree.map(lambda w, g: (w + scale * g).astype(jnp.asarray(w).dtype), params, gradient)
