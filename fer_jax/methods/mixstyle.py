"""MixStyle (Zhou, Yang, Qiao and Xiang 2021, arXiv:2104.02008): mixes the style of images.

Mean and standard deviation of the early feature maps are an image's style (light, contrast, camera)
more than its content. Training mixes them between images of different datasets, so that the network
cannot rely on the style of one dataset.
"""

import jax
import jax.numpy as jnp

from fer_jax.models.layers import accumulator

ALPHA = 0.1  # of the Beta distribution; the paper's
EPSILON = 1e-6  # added to a variance


def partners(key: jax.Array, domain: jax.Array) -> jax.Array:
    """Samples for each image another one to mix its style with: int32 [batch].

    Uniformly among the images of other domains; in a batch of one domain, among all images. (The
    paper shuffles a batch of two domains of equal size; this is the same for any number and size.)
    """
    chances = jax.random.uniform(key, (len(domain), len(domain)))
    return jnp.argmax(chances + (domain[:, None] != domain[None, :]), axis=1)


def mix_styles(
    x: jax.Array, block: int, *, probability: float, key: jax.Array, domain: jax.Array
) -> jax.Array:
    """Mixes the mean and standard deviation of each image's channels with its partner's.

    sigma_mix * (x - mu) / sigma + mu_mix with mu_mix = lambda mu + (1 - lambda) mu', sigma_mix
    likewise, and lambda from Beta(0.1, 0.1) for each image (equations 4 to 6). No gradient flows
    through the statistics.

    `x` is [batch, height, width, channels], `domain` int32 [batch], the dataset of each image, and
    `block` the number of the block, each of which samples anew from `key`. With 1 - `probability`
    the input is returned.
    """
    coin_key, partner_key, share_key = jax.random.split(jax.random.fold_in(key, block), 3)
    dtype = accumulator(x.dtype)
    exact = jax.lax.stop_gradient(x).astype(dtype)
    mean = exact.mean(axis=(1, 2), keepdims=True)
    deviation = jnp.sqrt(exact.var(axis=(1, 2), keepdims=True) + EPSILON)
    partner = partners(partner_key, domain)
    share = jax.random.beta(share_key, ALPHA, ALPHA, (len(x), 1, 1, 1), dtype)
    mixed_mean = share * mean + (1 - share) * mean[partner]
    mixed_deviation = share * deviation + (1 - share) * deviation[partner]
    mixed = mixed_deviation * ((x - mean) / deviation) + mixed_mean
    mixes = jax.random.bernoulli(coin_key, probability)
    return jnp.where(mixes, mixed.astype(x.dtype), x)
