"""The parts of a generator's train step: discriminator, R1, generator, path length; all pure.

As published (Karras et al. 2020a, 2020b): Adam without momentum; R1 and path length
regularization are lazy, done at intervals with a weight and a learning rate that compensate;
style mixing; the generator in use is an average over the steps. The losses are the non-saturating
logistic loss (Goodfellow et al. 2014), R1 (Mescheder et al. 2018) and path length regularization
(Karras et al. 2020a, section 3.2).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fer_jax.models import stylegan2
from fer_jax.models.stylegan2 import DiscriminatorConfig, GeneratorConfig
from fer_jax.sharding import batch_sharding
from fer_jax.training import ada

ADAM_B1, ADAM_B2, ADAM_EPS = 0.0, 0.99, 1e-8
W_AVERAGE_DECAY = 0.995
# Share of a batch for path lengths, which cost a second derivative.
PATH_BATCH_SHARE = 0.5
PATH_DECAY = 0.01  # of the running mean of path lengths


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What stays the same in all steps of a run."""

    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    batch_size: int  # real images in a step
    learning_rate: float = 2e-3  # of both networks
    r1_gamma: float = 1.0  # weight of R1; 0 for none
    r1_interval: int = 16  # steps
    path_weight: float = 2.0  # of the path length penalty; 0 for none
    path_interval: int = 4  # steps
    style_mixing: float = 0.9  # probability that the later layers get another w
    class_weight: float = 0.0  # of the classification loss in both losses; 0 for none
    average_images: float = 10_000.0  # half-life of the generator's average
    average_rampup: float = 0.05  # the half-life is at most this share of the images so far
    augment_groups: tuple[str, ...] = tuple(ada.GROUPS)
    augment_target: float = ada.TARGET  # see `ada.adjust`; 0 keeps the probability constant
    augment_interval: int = 4  # steps from one adjustment to the next
    augment_images: float = ada.FULL_SPEED  # in which the probability can go from 0 to 1
    frozen_layers: int = 0  # of the discriminator, from the image on (FreezeD, Mo et al. 2020)
    dtype: str = "float32"  # of the activations of both networks
    mesh: Mesh | None = None  # the devices that share a batch; None for no constraint


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that training changes, as plain arrays."""

    step: jax.Array  # int32 [], steps done
    generator: Any  # float32 tree as `stylegan2` takes it: "mapping", "synthesis"
    discriminator: Any  # float32 tree
    average: Any  # of the generator's parameters over the steps; the generator in use
    w_average: jax.Array  # float32 [classes or 1, w_dim], the mean w of each class
    noise: Any  # the fixed noise of the generator; constant
    generator_moments: Any  # optax's
    discriminator_moments: Any  # optax's
    path_mean: jax.Array  # float32 [], the running mean of path lengths
    augment_p: jax.Array  # float32 [], the probability of each augmentation
    signs: jax.Array  # float32 [], sum of the discriminator's mean signs since the last adjustment

    def split(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (what generates images, what only training needs) as a checkpoint stores them."""
        rest = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: rest.pop(name) for name in ("average", "w_average", "noise")}, rest

    @classmethod
    def merge(cls, network: dict[str, Any], rest: dict[str, Any]) -> "State":
        """Returns the state that `split` divided."""
        return cls(**network, **rest)


def make_optimizers(
    recipe: Recipe,
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Makes Adam for (generator, discriminator), slowed down by what the lazy parts add."""

    def adam(interval: int) -> optax.GradientTransformation:
        share = interval / (interval + 1) if interval else 1.0
        return optax.adam(
            recipe.learning_rate * share, ADAM_B1**share, ADAM_B2**share, eps=ADAM_EPS
        )

    lazily = recipe.path_interval if recipe.path_weight else 0
    return adam(lazily), adam(recipe.r1_interval if recipe.r1_gamma else 0)


def init_params(
    config: GeneratorConfig | DiscriminatorConfig, key: jax.Array
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Initializes (params, buffers) as published: standard normal, equalized learning rates."""
    params: dict[str, Any] = {}
    noise: dict[str, Any] = {}
    for index, (name, shape) in enumerate(stylegan2.shapes(config).items()):
        *blocks, last = name.split(".")
        values = jax.random.normal(jax.random.fold_in(key, index), shape)
        if last == "noise_const":
            noise["_".join(blocks[1:])] = values
            continue
        if last == "w_avg":
            continue
        if last in ("bias", "noise_strength"):
            # A style starts as a factor of one. Its dtype is explicit: the first steps would
            # change a weak one, and be compiled again.
            values = jnp.full(shape, 1.0 if blocks[-1] == "affine" else 0.0, values.dtype)
        elif blocks[0] == "mapping" and blocks[-1].startswith("fc"):
            assert config.mapping is not None  # it has the layer
            values = values / config.mapping.lr_multiplier
        place = params
        for block in blocks:
            place = place.setdefault(block, {})
        place[last] = values
    return params, {"noise": noise}


def init_state(key: jax.Array, recipe: Recipe) -> State:
    """Initializes the state."""
    keys = jax.random.split(key)
    generator, buffers = init_params(recipe.generator, keys[0])
    discriminator, _ = init_params(recipe.discriminator, keys[1])
    own, other = make_optimizers(recipe)
    zero = jnp.zeros((), jnp.float32)
    return State(
        step=jnp.zeros((), jnp.int32),
        generator=generator,
        discriminator=discriminator,
        average=generator,
        w_average=jnp.zeros(
            (max(1, recipe.generator.mapping.c_dim), recipe.generator.mapping.w_dim)
        ),
        noise=buffers["noise"],
        generator_moments=own.init(generator),
        discriminator_moments=other.init(discriminator),
        path_mean=zero,
        augment_p=zero,
        signs=zero,
    )


def discriminator_step(
    state: State, images: jax.Array, classes: jax.Array | None, key: jax.Array, *, recipe: Recipe
) -> tuple[State, dict[str, jax.Array]]:
    """Updates the discriminator, which learns to distinguish real from generated images.

    `images` are real ones, float32 [n, resolution, resolution, 3] in [-1, 1], and `classes` theirs,
    one-hot float32 [n, c_dim]; None for an unconditional network.

    Returns (the state, {"discriminator_loss", "real_sign", "augment_p"}: scalars); with a class
    weight "real_class_accuracy", how often a real image's class has the largest logit.
    """
    keys = jax.random.split(key, 4)
    # Generated images have their classes as often as the real ones.
    requested = None if classes is None else classes[::-1]
    generated, w = _generate(state.generator, requested, keys[0], len(images), recipe)
    generated = _augment(jax.lax.stop_gradient(generated), keys[2], state.augment_p, recipe)
    images = _augment(images, keys[1], state.augment_p, recipe)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        real, class_loss, shares = _logits_and_class_loss(params, images, classes, recipe)
        fake = _logits(params, generated, requested, recipe)
        value = discriminator_loss(real, fake)
        return value + recipe.class_weight * class_loss, (value, real, shares)

    gradients, (value, real, shares) = jax.grad(loss, has_aux=True)(state.discriminator)
    sign = jnp.mean(jnp.sign(real))
    state = _update_discriminator(state, gradients, recipe)
    signs = state.signs + sign
    due = (state.step + 1) % recipe.augment_interval == 0
    if recipe.augment_target:
        adjusted = ada.adjust(
            state.augment_p,
            signs / recipe.augment_interval,
            recipe.augment_interval * recipe.batch_size,
            target=recipe.augment_target,
            full_speed=recipe.augment_images,
        )
        augment_p = jnp.where(due, adjusted, state.augment_p)
    else:
        augment_p = state.augment_p
    state = dataclasses.replace(
        state,
        w_average=_update_w_average(state.w_average, w, requested),
        augment_p=augment_p,
        signs=jnp.where(due, 0.0, signs),
    )
    scalars = {"discriminator_loss": value, "real_sign": sign, "augment_p": augment_p}
    return state, scalars | {f"real_{name}": share for name, share in shares.items()}


def r1_step(
    state: State, images: jax.Array, classes: jax.Array | None, key: jax.Array, *, recipe: Recipe
) -> tuple[State, dict[str, jax.Array]]:
    """Regularizes the discriminator's gradient at real images; as `discriminator_step`."""
    images = _augment(images, key, state.augment_p, recipe)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        penalties = r1_penalties(lambda x: _logits(params, x, classes, recipe), images)
        penalty = jnp.mean(penalties)
        return recipe.r1_gamma / 2 * recipe.r1_interval * penalty, penalty

    gradients, penalty = jax.grad(loss, has_aux=True)(state.discriminator)
    return _update_discriminator(state, gradients, recipe), {"r1": penalty}


def generator_step(
    state: State, classes: jax.Array | None, key: jax.Array, *, recipe: Recipe
) -> tuple[State, dict[str, jax.Array]]:
    """Updates the generator and its average, and counts the step.

    `classes` are those to generate, as in `discriminator_step`. Returns (the state,
    {"generator_loss": a scalar}); with a class weight also "made_class_accuracy".
    """
    keys = jax.random.split(key)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        images, _ = _generate(params, classes, keys[0], recipe.batch_size, recipe)
        images = _augment(images, keys[1], state.augment_p, recipe)
        logits, class_loss, shares = _logits_and_class_loss(
            state.discriminator, images, classes, recipe
        )
        value = generator_loss(logits)
        return value + recipe.class_weight * class_loss, (value, shares)

    gradients, (value, shares) = jax.grad(loss, has_aux=True)(state.generator)
    state = _update_generator(state, gradients, recipe)
    done = (state.step + 1) * float(recipe.batch_size)
    half_life = jnp.minimum(recipe.average_images, done * recipe.average_rampup)
    kept = 0.5 ** (recipe.batch_size / jnp.maximum(half_life, 1e-8))
    average = jax.tree.map(lambda a, x: x + kept * (a - x), state.average, state.generator)
    state = dataclasses.replace(state, average=average, step=state.step + 1)
    scalars = {f"made_{name}": share for name, share in shares.items()}
    return state, {"generator_loss": value} | scalars


def path_step(
    state: State, classes: jax.Array | None, key: jax.Array, *, recipe: Recipe
) -> tuple[State, dict[str, jax.Array]]:
    """Regularizes the path lengths of the generator; arguments as in `generator_step`."""
    n = max(1, round(recipe.batch_size * PATH_BATCH_SHARE))
    requested = None if classes is None else classes[:n]
    latent_key, noise_key, direction_key = jax.random.split(key, 3)
    side = recipe.generator.resolution
    direction = jax.random.normal(direction_key, (n, side, side, recipe.generator.img_channels))
    noise = stylegan2.random_noise(recipe.generator, jax.random.split(noise_key, n))

    def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        ws, _ = _styles(params["mapping"], requested, latent_key, n, recipe)
        lengths = path_lengths(
            lambda ws: stylegan2.synthesize(
                recipe.generator, params["synthesis"], ws, noise, recipe.dtype
            ),
            ws,
            direction,
        )
        penalty, mean = path_penalty(lengths, state.path_mean)
        return recipe.path_weight * recipe.path_interval * penalty, (penalty, mean)

    gradients, (penalty, mean) = jax.grad(loss, has_aux=True)(state.generator)
    state = _update_generator(state, gradients, recipe)
    return dataclasses.replace(state, path_mean=mean), {"path_penalty": penalty}


def _styles(
    mapping: Any, classes: jax.Array | None, key: jax.Array, n: int, recipe: Recipe
) -> tuple[jax.Array, jax.Array]:
    """Maps two latents per image; returns (w of every layer [n, num_ws, w_dim], the first w)."""
    config, num_ws = recipe.generator.mapping, recipe.generator.num_ws
    keys = jax.random.split(key, 4)

    def map_random(key: jax.Array) -> jax.Array:
        z = jax.random.normal(key, (n, config.z_dim))
        if recipe.mesh is not None:
            # z has no input to inherit a sharding from: without this constraint every device
            # would generate the whole batch.
            z = jax.lax.with_sharding_constraint(z, batch_sharding(recipe.mesh))
        return stylegan2.map_latents(config, mapping, z, classes)

    first, second = map_random(keys[0]), map_random(keys[1])
    # The first layer of the second one; num_ws for none.
    crossing = jax.random.randint(keys[2], (n,), 1, num_ws)
    mixes = jax.random.uniform(keys[3], (n,)) < recipe.style_mixing
    crossing = jnp.where(mixes, crossing, num_ws)
    is_first = jnp.arange(num_ws)[None, :, None] < crossing[:, None, None]
    return jnp.where(is_first, first[:, None], second[:, None]), first


def _generate(
    params: Mapping[str, Any], classes: jax.Array | None, key: jax.Array, n: int, recipe: Recipe
) -> tuple[jax.Array, jax.Array]:
    """Returns (images [n, h, w, c], the w of their first layers [n, w_dim])."""
    style_key, noise_key = jax.random.split(key)
    ws, w = _styles(params["mapping"], classes, style_key, n, recipe)
    noise = stylegan2.random_noise(recipe.generator, jax.random.split(noise_key, n))
    images = stylegan2.synthesize(recipe.generator, params["synthesis"], ws, noise, recipe.dtype)
    return images, w


def _augment(images: jax.Array, key: jax.Array, p: jax.Array, recipe: Recipe) -> jax.Array:
    return ada.augment(images, ada.sample(key, len(images), p, recipe.augment_groups))


def _logits(params: Any, images: jax.Array, classes: jax.Array | None, recipe: Recipe) -> jax.Array:
    return stylegan2.discriminate(recipe.discriminator, params, images, classes, recipe.dtype)


def _logits_and_class_loss(
    params: Any, images: jax.Array, classes: jax.Array | None, recipe: Recipe
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Returns (logits [n, 1], the loss of the classes, {"class_accuracy": a share of the images}).

    Without a class weight the loss is 0 and there is no accuracy.
    """
    if classes is None or not recipe.class_weight:
        return _logits(params, images, classes, recipe), jnp.zeros(()), {}
    logits = stylegan2.discriminate_classes(recipe.discriminator, params, images, recipe.dtype)
    right = jnp.argmax(logits, axis=1) == jnp.argmax(classes, axis=1)
    of_class = jnp.sum(logits * classes, axis=1, keepdims=True)
    loss = classification_loss(logits, classes)
    return of_class, loss, {"class_accuracy": jnp.mean(right)}


def _update_w_average(means: jax.Array, w: jax.Array, classes: jax.Array | None) -> jax.Array:
    """Updates the running means [classes or 1, w_dim] of the classes that are in the batch."""
    w = jax.lax.stop_gradient(w)
    members = jnp.ones((len(w), 1)) if classes is None else classes
    counts = jnp.sum(members, axis=0)[:, None]
    new = members.T @ w / jnp.maximum(counts, 1)
    return jnp.where(counts > 0, new + W_AVERAGE_DECAY * (means - new), means)


def _update_generator(state: State, gradients: Any, recipe: Recipe) -> State:
    updates, moments = make_optimizers(recipe)[0].update(gradients, state.generator_moments)
    return dataclasses.replace(
        state, generator=optax.apply_updates(state.generator, updates), generator_moments=moments
    )


def _update_discriminator(state: State, gradients: Any, recipe: Recipe) -> State:
    updates: Any
    updates, moments = make_optimizers(recipe)[1].update(gradients, state.discriminator_moments)
    for name in frozen_blocks(recipe):
        updates[name] = jax.tree.map(jnp.zeros_like, updates[name])
    return dataclasses.replace(
        state,
        discriminator=optax.apply_updates(state.discriminator, updates),
        discriminator_moments=moments,
    )


def frozen_blocks(recipe: Recipe) -> list[str]:
    """Names the blocks of the discriminator that are not updated: the first after the image."""
    sizes = reversed(recipe.discriminator.resolutions)
    return [f"b{size}" for size in sizes][: recipe.frozen_layers]


def r1_gamma(resolution: int, batch_size: int) -> float:
    """Returns the weight of R1 in the ADA paper: 0.0002 resolution^2 / batch size."""
    return 0.0002 * resolution**2 / batch_size


def generator_loss(generated: jax.Array) -> jax.Array:
    """Computes the mean of -log sigmoid(D), from the logits [n, 1] of generated images."""
    return jnp.mean(jax.nn.softplus(-generated))


def discriminator_loss(real: jax.Array, generated: jax.Array) -> jax.Array:
    """Computes the discriminator's loss from its logits [n, 1] of real and generated images."""
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(generated))


def classification_loss(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Computes the mean cross-entropy of logits and one-hot classes, both [n, classes].

    Both networks can minimize it beside their own loss (the idea of Odena et al. 2017, AC-GAN),
    here with the discriminator's logit of every class (Miyato and Koyama 2018) instead of a head
    of its own. Classes that differ little, as expressions do, are learned late from the projection
    alone.
    """
    return -jnp.mean(jnp.sum(classes * jax.nn.log_softmax(logits), axis=-1))


def r1_penalties(critic: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """Computes the discriminator's squared gradient at real images [n, h, w, c]: [n].

    `critic` maps images to logits [n, 1]. The loss gets gamma / 2 times the mean.
    """
    gradients = jax.grad(lambda x: jnp.sum(critic(x)))(images)
    return jnp.sum(jnp.square(gradients), axis=(1, 2, 3))


def path_lengths(
    synthesize: Callable[[jax.Array], jax.Array], ws: jax.Array, noise: jax.Array
) -> jax.Array:
    """Computes the path lengths |J_w^T y| of each sample, [n].

    It is the root of the squared gradients, summed over w_dim and averaged over the layers.
    `synthesize` maps `ws` [n, num_ws, w_dim] to images [n, h, w, c]; `noise` is y, standard normal,
    of the images' shape, and is scaled so that the length does not depend on the resolution.
    """
    height, width = noise.shape[1:3]
    scaled = noise / math.sqrt(height * width)
    gradients = jax.grad(lambda ws: jnp.sum(synthesize(ws) * scaled))(ws)
    return jnp.sqrt(jnp.mean(jnp.sum(jnp.square(gradients), axis=2), axis=1))


def path_penalty(lengths: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the penalty of a batch's path lengths [n], given their running mean so far.

    Returns (the mean squared distance from the new running mean, that mean, without a gradient).
    """
    moved = jax.lax.stop_gradient(mean + PATH_DECAY * (jnp.mean(lengths) - mean))
    return jnp.mean(jnp.square(lengths - moved)), moved
