"""The losses of StyleGAN2: what each network is taught, and the two regularizations.

Non-saturating logistic loss (Goodfellow et al. 2014), R1 (Mescheder et al. 2018) and path length
regularization (Karras et al. 2020a, section 3.2).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

PATH_DECAY = 0.01  # of the running mean of path lengths


def generator_loss(made: jax.Array) -> jax.Array:
    """What the generator lowers: the mean of -log sigmoid(D(made)), from logits [n, 1]."""
    return jnp.mean(jax.nn.softplus(-made))


def discriminator_loss(real: jax.Array, made: jax.Array) -> jax.Array:
    """What the discriminator lowers, from its logits [n, 1] of real and of made images."""
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(made))


def classification_loss(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """How badly the classes are told apart: the mean cross-entropy.

    Both networks can lower it beside their own loss (the idea of Odena et al. 2017, AC-GAN); here
    with the discriminator's logit of every class (Miyato and Koyama 2018), so without a head of
    its own. Where classes differ in little, as expressions do, the projection alone learns them
    late.

    Args:
      logits: [n, classes].
      classes: [n, classes], one-hot.
    """
    return -jnp.mean(jnp.sum(classes * jax.nn.log_softmax(logits), axis=-1))


def r1_penalties(critic: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """The squared gradient of the discriminator at real images.

    Args:
      critic: images to logits [n, 1].
      images: [n, h, w, c], real ones.

    Returns:
      [n]. The loss gets gamma / 2 times their mean.
    """
    gradients = jax.grad(lambda x: jnp.sum(critic(x)))(images)
    return jnp.sum(jnp.square(gradients), axis=(1, 2, 3))


def path_lengths(
    synthesize: Callable[[jax.Array], jax.Array], ws: jax.Array, noise: jax.Array
) -> jax.Array:
    """How far a random direction of the image moves w: the norm of J_w^T y, by sample.

    Args:
      synthesize: w of every layer to images [n, h, w, c].
      ws: [n, num_ws, w_dim].
      noise: y, standard normal, of the images' shape.

    Returns:
      [n]: the root of the squared gradients' sum over w_dim and mean over the layers. y is
      scaled so that the length does not depend on the resolution.
    """
    height, width = noise.shape[1:3]
    scaled = noise / math.sqrt(height * width)
    gradients = jax.grad(lambda ws: jnp.sum(synthesize(ws) * scaled))(ws)
    return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(gradients), axis=2), axis=1))


def path_penalty(lengths: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How uneven path lengths are.

    Args:
      lengths: [n], of this batch.
      mean: the running mean of lengths so far.

    Returns:
      (the mean squared distance from the new running mean, that mean, through which nothing is
      learned).
    """
    moved = jax.lax.stop_gradient(mean + PATH_DECAY * (jnp.mean(lengths) - mean))
    return jnp.mean(jnp.square(lengths - moved)), moved
