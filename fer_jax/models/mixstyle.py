"""MixStyle (Zhou, Yang, Qiao and Xiang 2021, arXiv:2104.02008): images borrow each other's style.

The mean and the deviation of a feature map's channels say how an image looks (light, contrast,
camera) more than what it shows. In training, the early blocks mix them between images of
different sources, so that the network cannot rely on the look of any one source.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fer_jax.models.normalization import accumulator

ALPHA = 0.1  # of the Beta distribution; the paper's
EPSILON = 1e-6  # added to a variance


class Mixing(NamedTuple):
    """What the early blocks need to mix styles.

    Attributes:
      probability: of a batch being mixed after a block; static.
      key: a random key.
      domain: int32 [batch], which source an image came from.
    """

    probability: float
    key: jax.Array
    domain: jax.Array


def partners(key: jax.Array, domain: jax.Array) -> jax.Array:
    """Whose style each image borrows: int32 [batch].

    Drawn anew for every image from those of other domains, all equally likely; in a batch of one
    domain from all images. (The paper shuffles a batch of two domains of equal size; this is the
    same for any number and size of them.)

    Args:
      key: a random key.
      domain: int32 [batch].
    """
    chances = jax.random.uniform(key, (len(domain), len(domain)))
    return jnp.argmax(chances + (domain[:, None] != domain[None, :]), axis=1)


def mix_styles(x: jax.Array, mixing: Mixing, block: int) -> jax.Array:
    """Gives each image's channels a mean and a deviation between its own and its partner's.

    sigma_mix * (x - mu) / sigma + mu_mix with mu_mix = lambda mu + (1 - lambda) mu', sigma_mix
    likewise, and lambda from Beta(0.1, 0.1) for each image (equations 4 to 6). No gradient flows
    through the statistics.

    Args:
      x: [batch, height, width, channels].
      mixing: from whoever trains.
      block: after which block; another draw for each.

    Returns:
      The input's shape and dtype; with probability 1 - `mixing.probability` the input itself.
    """
    coin_key, partner_key, share_key = jax.random.split(jax.random.fold_in(mixing.key, block), 3)
    dtype = accumulator(x.dtype)
    exact = jax.lax.stop_gradient(x).astype(dtype)
    mean = exact.mean(axis=(1, 2), keepdims=True)
    deviation = jnp.sqrt(exact.var(axis=(1, 2), keepdims=True) + EPSILON)
    partner = partners(partner_key, mixing.domain)
    share = jax.random.beta(share_key, ALPHA, ALPHA, (len(x), 1, 1, 1), dtype)
    mixed_mean = share * mean + (1 - share) * mean[partner]
    mixed_deviation = share * deviation + (1 - share) * deviation[partner]
    mixed = mixed_deviation * ((x - mean) / deviation) + mixed_mean
    mixes = jax.random.bernoulli(coin_key, mixing.probability)
    return jnp.where(mixes, mixed.astype(x.dtype), x)
