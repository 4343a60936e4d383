"""CORAL: aligns the mean and covariance of features across domains.

Deep CORAL (Sun and Saenko 2016, arXiv:1607.01719) in the form of DomainBed (Gulrajani and
Lopez-Paz 2021, arXiv:2007.01434): between every two sources of a batch, the mean squared
difference of the covariances (without the paper's 1/4) plus that of the means.
"""

import itertools

import jax
import jax.numpy as jnp


def coral(features: jax.Array, domain: jax.Array, num_domains: int) -> jax.Array:
    """Computes the penalty of a batch, float32 [], from features [b, d] and domains, int32 [b].

    Mean over pairs of domains of |C - C'|^2 / d^2 + |m - m'|^2 / d, with C the covariance (over n -
    1) and m the mean of a domain's features. A domain with fewer than two images in the batch has
    no covariance and is in no pair; without a pair the penalty is 0.

    The covariances are never formed: <C, C'> is the mean square of the products between the centred
    images of the two domains, b^2 d operations rather than b d^2.
    """
    width = features.shape[1]
    members = jax.nn.one_hot(domain, num_domains, dtype=features.dtype)
    counts = members.sum(axis=0)
    # Exact products: the terms below nearly cancel once the domains agree.
    with jax.default_matmul_precision("highest"):
        means = members.T @ features / jnp.maximum(counts, 1)[:, None]
        centred = features - members @ means
        weights = members / jnp.maximum(counts - 1, 1)
        inner = weights.T @ jnp.square(centred @ centred.T) @ weights
    total, num_pairs = jnp.zeros((), features.dtype), jnp.zeros((), features.dtype)
    for one, other in itertools.combinations(range(num_domains), 2):
        covariances = inner[one, one] + inner[other, other] - 2 * inner[one, other]
        distance = covariances / width**2 + jnp.mean(jnp.square(means[one] - means[other]))
        counted = (counts[one] > 1) & (counts[other] > 1)
        total += jnp.where(counted, distance, 0)
        num_pairs += counted
    return total / jnp.maximum(num_pairs, 1)
