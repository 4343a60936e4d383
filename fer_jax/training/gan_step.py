"""One step of training a generator: the discriminator's part, the generator's, and the lazy ones.

As published (Karras et al. 2020a, 2020b): Adam without momentum; R1 and path length
regularization lazily, every so many steps with a weight and a learning rate that make up for it;
style mixing; the generator in use is an average over the steps. Everything is pure.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fer_jax.models import stylegan2
from fer_jax.models.stylegan2 import DiscriminatorConfig, GeneratorConfig
from fer_jax.sharding import batch_sharding
from fer_jax.training import ada, adversarial

ADAM_B1, ADAM_B2, ADAM_EPS = 0.0, 0.99, 1e-8
W_AVERAGE_DECAY = 0.995
# Path lengths are regularized on so much of a batch: they cost a second derivative.
PATH_BATCH_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What stays the same in a training.

    Attributes:
      generator: the generator.
      discriminator: its opponent.
      batch_size: real images in a step.
      learning_rate: of both.
      r1_gamma: weight of R1.
      r1_interval: steps from one R1 to the next.
      path_weight: of the path length penalty; 0 leaves it out.
      path_interval: steps from one to the next.
      style_mixing: probability that the later layers get another w.
      class_weight: of `adversarial.classification_loss` in both losses; 0 leaves it out.
      average_images: half-life of the generator's average, in images.
      average_rampup: the half-life is at most this share of the images so far.
      augment_groups: of `ada.GROUPS`, what is augmented.
      augment_target: see `ada.adjusted`; 0 leaves the probability where it is.
      augment_interval: steps from one adjustment to the next.
      augment_images: in which the probability can go from 0 to 1.
      frozen_layers: of the discriminator, from the image on (FreezeD, Mo et al. 2020).
      dtype: of the activations of both networks.
      mesh: the devices that share a batch; None: nothing is said of where it is.
    """

    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    batch_size: int
    learning_rate: float = 2e-3
    r1_gamma: float = 1.0
    r1_interval: int = 16
    path_weight: float = 2.0
    path_interval: int = 4
    style_mixing: float = 0.9
    class_weight: float = 0.0
    average_images: float = 10_000.0
    average_rampup: float = 0.05
    augment_groups: tuple[str, ...] = tuple(ada.GROUPS)
    augment_target: float = ada.TARGET
    augment_interval: int = 4
    augment_images: float = ada.FULL_SPEED
    frozen_layers: int = 0
    dtype: str = "float32"
    mesh: Mesh | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that training changes, as plain arrays.

    Attributes:
      step: int32 [], steps done.
      generator: float32 tree, as `stylegan2` takes it: "mapping", "synthesis".
      discriminator: float32 tree.
      average: of the generator's parameters over the steps, with which images are made.
      w_average: float32 [classes or 1, w_dim], the mean w of each class.
      noise: the fixed noise of the generator, which nothing changes.
      generator_moments: optax's.
      discriminator_moments: optax's.
      path_mean: float32 [], the running mean of path lengths.
      augment_p: float32 [], the probability of each augmentation.
      signs: float32 [], the sum of the discriminator's mean signs since it was adjusted.
    """

    step: jax.Array
    generator: Any
    discriminator: Any
    average: Any
    w_average: jax.Array
    noise: Any
    generator_moments: Any
    discriminator_moments: Any
    path_mean: jax.Array
    augment_p: jax.Array
    signs: jax.Array


def optimizers(recipe: Recipe) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """(the generator's, the discriminator's): Adam, slowed by what the lazy steps add."""

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
    """Fresh parameters and noise, as published: standard normal where rates are equalized.

    Args:
      config: of the network.
      key: a random key.

    Returns:
      (params, buffers) as `fer_jax.weights.nvidia.to_trees` returns them.
    """
    params: dict[str, Any] = {}
    noise: dict[str, Any] = {}
    for index, (name, shape) in enumerate(stylegan2.shapes(config).items()):
        *blocks, last = name.split(".")
        drawn = jax.random.normal(jax.random.fold_in(key, index), shape)
        if last == "noise_const":
            noise["_".join(blocks[1:])] = drawn
            continue
        if last == "w_avg":
            continue
        if last in ("bias", "noise_strength"):
            # A style starts as a factor of one.
            # With a dtype: a weak one is lost in the first steps, and each step compiles again.
            drawn = jnp.full(shape, 1.0 if blocks[-1] == "affine" else 0.0, drawn.dtype)
        elif blocks[0] == "mapping" and blocks[-1].startswith("fc"):
            assert config.mapping is not None  # it has the layer
            drawn = drawn / config.mapping.lr_multiplier
        place = params
        for block in blocks:
            place = place.setdefault(block, {})
        place[last] = drawn
    return params, {"noise": noise}


def init_state(key: jax.Array, recipe: Recipe) -> State:
    """The state before the first step."""
    keys = jax.random.split(key)
    generator, buffers = init_params(recipe.generator, keys[0])
    discriminator, _ = init_params(recipe.discriminator, keys[1])
    own, other = optimizers(recipe)
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
    """The discriminator learns to tell real images from made ones.

    Args:
      state: of the training.
      images: float32 [n, resolution, resolution, 3] in [-1, 1], real ones.
      classes: float32 [n, c_dim], one-hot, of the images; None for an unconditional network.
      key: a random key.
      recipe: of the training.

    Returns:
      (the state, {"discriminator_loss", "real_sign", "augment_p"}: scalars); with a class weight
      "real_class_accuracy", how often the real images' class has the largest logit.
    """
    keys = jax.random.split(key, 4)
    # The classes of the made ones are as frequent as those of the real ones.
    asked = None if classes is None else classes[::-1]
    made, w = _made(state.generator, asked, keys[0], len(images), recipe)
    made = jax.lax.stop_gradient(made)
    seen_real = _augmented(images, keys[1], state.augment_p, recipe)
    seen_made = _augmented(made, keys[2], state.augment_p, recipe)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        real, told, shares = _judged_and_told(params, seen_real, classes, recipe)
        value = adversarial.discriminator_loss(real, _judged(params, seen_made, asked, recipe))
        return value + recipe.class_weight * told, (value, real, shares)

    gradients, (value, real, shares) = jax.grad(loss, has_aux=True)(state.discriminator)
    sign = jnp.mean(jnp.sign(real))
    state = _discriminator_updated(state, gradients, recipe)
    signs = state.signs + sign
    due = (state.step + 1) % recipe.augment_interval == 0
    if recipe.augment_target:
        adjusted = ada.adjusted(
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
        w_average=_moved(state.w_average, w, asked),
        augment_p=augment_p,
        signs=jnp.where(due, 0.0, signs),
    )
    scalars = {"discriminator_loss": value, "real_sign": sign, "augment_p": augment_p}
    return state, scalars | {f"real_{name}": share for name, share in shares.items()}


def r1_step(
    state: State, images: jax.Array, classes: jax.Array | None, key: jax.Array, *, recipe: Recipe
) -> tuple[State, dict[str, jax.Array]]:
    """The discriminator learns to be flat at real images; arguments as in `discriminator_step`."""
    seen = _augmented(images, key, state.augment_p, recipe)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        penalties = adversarial.r1_penalties(lambda x: _judged(params, x, classes, recipe), seen)
        penalty = jnp.mean(penalties)
        return recipe.r1_gamma / 2 * recipe.r1_interval * penalty, penalty

    gradients, penalty = jax.grad(loss, has_aux=True)(state.discriminator)
    return _discriminator_updated(state, gradients, recipe), {"r1": penalty}


def generator_step(
    state: State, classes: jax.Array | None, key: jax.Array, *, recipe: Recipe
) -> tuple[State, dict[str, jax.Array]]:
    """The generator learns to be taken for real, and its average follows: the step is done.

    Args:
      state: of the training.
      classes: float32 [n, c_dim], one-hot, of the images to make; None for an unconditional one.
      key: a random key.
      recipe: of the training.

    Returns:
      (the state, {"generator_loss": a scalar}); "made_class_accuracy" with a class weight.
    """
    keys = jax.random.split(key)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        made, _ = _made(params, classes, keys[0], recipe.batch_size, recipe)
        seen = _augmented(made, keys[1], state.augment_p, recipe)
        logits, told, shares = _judged_and_told(state.discriminator, seen, classes, recipe)
        value = adversarial.generator_loss(logits)
        return value + recipe.class_weight * told, (value, shares)

    gradients, (value, shares) = jax.grad(loss, has_aux=True)(state.generator)
    state = _generator_updated(state, gradients, recipe)
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
    """The generator learns to move its image evenly with w; arguments as in `generator_step`."""
    n = max(1, round(recipe.batch_size * PATH_BATCH_SHARE))
    asked = None if classes is None else classes[:n]
    latent_key, noise_key, direction_key = jax.random.split(key, 3)
    side = recipe.generator.resolution
    direction = jax.random.normal(direction_key, (n, side, side, recipe.generator.img_channels))
    noise = stylegan2.random_noise(recipe.generator, jax.random.split(noise_key, n))

    def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        ws, _ = _styles(params["mapping"], asked, latent_key, n, recipe)
        lengths = adversarial.path_lengths(
            lambda ws: stylegan2.synthesize(
                recipe.generator, params["synthesis"], ws, noise, recipe.dtype
            ),
            ws,
            direction,
        )
        penalty, mean = adversarial.path_penalty(lengths, state.path_mean)
        return recipe.path_weight * recipe.path_interval * penalty, (penalty, mean)

    gradients, (penalty, mean) = jax.grad(loss, has_aux=True)(state.generator)
    state = _generator_updated(state, gradients, recipe)
    return dataclasses.replace(state, path_mean=mean), {"path_penalty": penalty}


def _styles(
    mapping: Any, classes: jax.Array | None, key: jax.Array, n: int, recipe: Recipe
) -> tuple[jax.Array, jax.Array]:
    """(w of every layer [n, num_ws, w_dim], of some images from two latents; the first w)."""
    config, num_ws = recipe.generator.mapping, recipe.generator.num_ws
    keys = jax.random.split(key, 4)

    def mapped(key: jax.Array) -> jax.Array:
        z = jax.random.normal(key, (n, config.z_dim))
        if recipe.mesh is not None:
            # Made images come from nowhere: without this every device would make all of them.
            z = jax.lax.with_sharding_constraint(z, batch_sharding(recipe.mesh))
        return stylegan2.map_latents(config, mapping, z, classes)

    first, second = mapped(keys[0]), mapped(keys[1])
    # From where on the second one is used; num_ws: nowhere.
    crossing = jax.random.randint(keys[2], (n,), 1, num_ws)
    mixes = jax.random.uniform(keys[3], (n,)) < recipe.style_mixing
    crossing = jnp.where(mixes, crossing, num_ws)
    is_first = jnp.arange(num_ws)[None, :, None] < crossing[:, None, None]
    return jnp.where(is_first, first[:, None], second[:, None]), first


def _made(
    params: Mapping[str, Any],
    classes: jax.Array | None,
    key: jax.Array,
    n: int,
    recipe: Recipe,
) -> tuple[jax.Array, jax.Array]:
    """(images [n, h, w, c], the w they began with [n, w_dim])."""
    style_key, noise_key = jax.random.split(key)
    ws, w = _styles(params["mapping"], classes, style_key, n, recipe)
    noise = stylegan2.random_noise(recipe.generator, jax.random.split(noise_key, n))
    images = stylegan2.synthesize(recipe.generator, params["synthesis"], ws, noise, recipe.dtype)
    return images, w


def _augmented(images: jax.Array, key: jax.Array, p: jax.Array, recipe: Recipe) -> jax.Array:
    return ada.augment(images, ada.draw(key, len(images), p, recipe.augment_groups))


def _judged(params: Any, images: jax.Array, classes: jax.Array | None, recipe: Recipe) -> jax.Array:
    return stylegan2.discriminate(recipe.discriminator, params, images, classes, recipe.dtype)


def _judged_and_told(
    params: Any, images: jax.Array, classes: jax.Array | None, recipe: Recipe
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """(logits [n, 1], the loss of telling the classes apart, {"class_accuracy": of images}).

    Where that does not count the loss is 0 and nothing is reported.
    """
    if classes is None or not recipe.class_weight:
        return _judged(params, images, classes, recipe), jnp.zeros(()), {}
    logits = stylegan2.discriminate_classes(recipe.discriminator, params, images, recipe.dtype)
    right = jnp.argmax(logits, axis=1) == jnp.argmax(classes, axis=1)
    asked = jnp.sum(logits * classes, axis=1, keepdims=True)
    loss = adversarial.classification_loss(logits, classes)
    return asked, loss, {"class_accuracy": jnp.mean(right)}


def _moved(means: jax.Array, w: jax.Array, classes: jax.Array | None) -> jax.Array:
    """The running means [classes or 1, w_dim], of those classes that are in the batch."""
    w = jax.lax.stop_gradient(w)
    members = jnp.ones((len(w), 1)) if classes is None else classes
    counts = jnp.sum(members, axis=0)[:, None]
    new = members.T @ w / jnp.maximum(counts, 1)
    return jnp.where(counts > 0, new + W_AVERAGE_DECAY * (means - new), means)


def _generator_updated(state: State, gradients: Any, recipe: Recipe) -> State:
    updates, moments = optimizers(recipe)[0].update(gradients, state.generator_moments)
    return dataclasses.replace(
        state,
        generator=optax.apply_updates(state.generator, updates),
        generator_moments=moments,
    )


def _discriminator_updated(state: State, gradients: Any, recipe: Recipe) -> State:
    updates: Any
    updates, moments = optimizers(recipe)[1].update(gradients, state.discriminator_moments)
    for name in frozen_blocks(recipe):
        updates[name] = jax.tree.map(jnp.zeros_like, updates[name])
    return dataclasses.replace(
        state,
        discriminator=optax.apply_updates(state.discriminator, updates),
        discriminator_moments=moments,
    )


def frozen_blocks(recipe: Recipe) -> list[str]:
    """The discriminator's blocks that do not learn: the first ones behind the image."""
    sizes = reversed(recipe.discriminator.resolutions)
    return [f"b{size}" for size in sizes][: recipe.frozen_layers]


def r1_gamma(resolution: int, batch_size: int) -> float:
    """The weight of R1 that the ADA paper's runs follow: 0.0002 resolution^2 / batch size."""
    return 0.0002 * resolution**2 / batch_size
