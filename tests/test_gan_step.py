"""What each part of a generator's training step changes, and what it leaves alone."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.models import stylegan2
from fer_jax.models.stylegan2 import DiscriminatorConfig, GeneratorConfig, MappingConfig
from fer_jax.training import gan_step

CLASSES, BATCH = 3, 4
MAPPING: dict[str, Any] = {"num_layers": 2, "embed_features": 8, "layer_features": 8}
RECIPE = gan_step.Recipe(
    generator=GeneratorConfig(
        resolution=8,
        channel_base=64,
        channel_max=8,
        mapping=MappingConfig(z_dim=8, c_dim=CLASSES, w_dim=8, **MAPPING),
    ),
    discriminator=DiscriminatorConfig(
        resolution=8,
        channel_base=64,
        channel_max=8,
        mapping=MappingConfig(z_dim=0, c_dim=CLASSES, w_dim=8, **MAPPING),
    ),
    batch_size=BATCH,
    augment_interval=2,
)
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def part(step: Any, **changes: Any) -> Any:
    return compiled(functools.partial(step, recipe=dataclasses.replace(RECIPE, **changes)))


@pytest.fixture(scope="module")
def state() -> gan_step.State:
    return compiled(functools.partial(gan_step.init_state, recipe=RECIPE))(jax.random.key(0))


@pytest.fixture(scope="module")
def batch() -> tuple[jax.Array, jax.Array]:
    images = jax.random.uniform(jax.random.key(1), (BATCH, 8, 8, 3), minval=-1)
    return images, jnp.eye(CLASSES)[jnp.array([0, 0, 2, 2])]


def changed(before: gan_step.State, after: gan_step.State) -> set[str]:
    def differ(a: Any, b: Any) -> bool:
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        return any(not np.array_equal(x, y) for x, y in pairs)

    names = [field.name for field in dataclasses.fields(before)]
    return {name for name in names if differ(getattr(before, name), getattr(after, name))}


def test_each_part_changes_what_is_its_own(
    state: gan_step.State, batch: tuple[jax.Array, jax.Array]
):
    images, classes = batch
    key = jax.random.key(2)
    after, metrics = part(gan_step.discriminator_step)(state, images, classes, key)
    own = {"discriminator", "discriminator_moments"}
    assert changed(state, after) == own | {"w_average", "signs"}
    assert set(metrics) == {"discriminator_loss", "real_sign", "augment_p"}
    after, metrics = part(gan_step.r1_step)(state, images, classes, key)
    assert changed(state, after) == own and float(metrics["r1"]) > 0
    after, metrics = part(gan_step.generator_step)(state, classes, key)
    own = {"generator", "generator_moments"}
    assert changed(state, after) == own | {"average", "step"}
    after, metrics = part(gan_step.path_step)(state, classes, key)
    assert changed(state, after) == own | {"path_mean"} and float(metrics["path_penalty"]) > 0


def test_the_mean_w_moves_for_the_classes_that_were_made(
    state: gan_step.State, batch: tuple[jax.Array, jax.Array]
):
    images, classes = batch
    step = part(gan_step.discriminator_step)
    after, _ = step(state, images, classes, jax.random.key(2))
    moved = np.asarray(after.w_average)
    assert (moved[1] == 0).all() and (np.abs(moved[[0, 2]]).max(axis=1) > 0).all()
    again, _ = step(after, images, classes, jax.random.key(2))
    # The mapping has not changed, nor has the key: the same w again.
    np.testing.assert_allclose(again.w_average[0], moved[0] * (1 + 0.995), rtol=1e-4)


def test_the_probability_is_adjusted_every_so_many_steps(
    state: gan_step.State, batch: tuple[jax.Array, jax.Array]
):
    images, classes = batch
    step = part(gan_step.discriminator_step)
    sure = dataclasses.replace(state, signs=jnp.float32(9.0), augment_p=jnp.float32(0.5))
    waiting, _ = step(sure, images, classes, jax.random.key(2))
    assert float(waiting.augment_p) == 0.5 and float(waiting.signs) > 7
    due = dataclasses.replace(sure, step=jnp.int32(1))
    adjusted, _ = step(due, images, classes, jax.random.key(2))
    assert float(adjusted.augment_p) == pytest.approx(0.5 + 2 * BATCH / 500_000, abs=1e-7)
    assert float(adjusted.signs) == 0


def test_frozen_layers_do_not_learn(state: gan_step.State, batch: tuple[jax.Array, jax.Array]):
    images, classes = batch
    step = part(gan_step.discriminator_step, frozen_layers=1, augment_groups=())
    after, _ = step(state, images, classes, jax.random.key(2))
    equal = jax.tree.map(np.array_equal, after.discriminator, state.discriminator)
    assert all(jax.tree.leaves(equal["b8"]))
    assert not any(jax.tree.leaves(equal["b4"]["conv"]))
    assert gan_step.frozen_blocks(RECIPE) == []


def test_both_networks_learn_to_tell_classes_apart(
    state: gan_step.State, batch: tuple[jax.Array, jax.Array]
):
    images, classes = batch
    critic = RECIPE.discriminator
    found, generators = {}, []
    metrics, more = {}, {}
    for weight in (0.0, 3.0):
        changes: dict[str, Any] = {"class_weight": weight, "augment_groups": (), "path_weight": 0.0}
        of_critic = part(gan_step.discriminator_step, **changes)
        of_generator = part(gan_step.generator_step, **changes)
        after = state
        for number in range(60):
            key = jax.random.key(number)
            after, metrics = of_critic(after, images, classes, key)
            after, more = of_generator(after, classes, key)
        generators.append(of_generator(state, classes, jax.random.key(0))[0].generator)
        # What is reported is of real and made alone, however much the classes weigh.
        assert 0 < metrics["discriminator_loss"] < 3 and 0 < more["generator_loss"] < 8
        shares = {name for name in metrics | more if name.endswith("class_accuracy")}
        assert shares == ({"real_class_accuracy", "made_class_accuracy"} if weight else set())
        logits = stylegan2.discriminate_classes(critic, after.discriminator, images)
        found[weight] = float(gan_step.classification_loss(logits, classes))
    assert found[3.0] < 0.5 * found[0.0] and metrics["real_class_accuracy"] == 1
    # From the same state and the same discriminator.
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *generators)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_the_average_follows_at_its_half_life(state: gan_step.State):
    classes = jnp.eye(CLASSES)[jnp.array([0, 1, 2, 0])]
    late = dataclasses.replace(state, step=jnp.int32(10**6))
    step = part(gan_step.generator_step, average_images=float(BATCH), augment_groups=())
    after, _ = step(late, classes, jax.random.key(3))
    expected = jax.tree.map(lambda a, b: (a + b) / 2, state.average, after.generator)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after.average, expected
    )


def test_fresh_networks_keep_the_scale_of_what_they_are_given(state: gan_step.State):
    affine = state.generator["synthesis"]["b8"]["conv0"]["affine"]
    assert (np.asarray(affine["bias"]) == 1).all()
    weights = np.asarray(state.generator["mapping"]["fc0"]["weight"]) * 0.01
    assert 0.8 < weights.std() < 1.2
    assert float(state.generator["synthesis"]["b8"]["conv1"]["noise_strength"]) == 0
    assert state.noise["b8_conv1"].shape == (1, 8, 8, 1)
    assert state.w_average.shape == (CLASSES, 8)


def test_no_part_needs_to_compile_twice(state: gan_step.State, batch: tuple[jax.Array, jax.Array]):
    key = jax.random.key(0)
    of_images = (gan_step.discriminator_step, gan_step.r1_step)
    before = jax.eval_shape(lambda state: state, state)
    for step in (*of_images, gan_step.generator_step, gan_step.path_step):
        given = batch if step in of_images else batch[1:]
        after, _ = jax.eval_shape(functools.partial(step, recipe=RECIPE), state, *given, key)
        # Also whether a type is weak: what changes is compiled for again.
        for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert (one.shape, one.dtype, one.weak_type) == (
                other.shape,
                other.dtype,
                other.weak_type,
            )
