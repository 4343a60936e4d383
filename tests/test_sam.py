"""A step of SAM is a gradient at the worst place nearby, taken from where the parameters are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import TINY, make_step, uneven_batch

from fer_jax.methods.sam import perturbed_params

pytestmark = pytest.mark.usefixtures("short_network")

RATE = 0.1  # of the step's SGD
SMALL = TINY | {"num_middle_blocks": 0, "dropout": 0.3}


def test_a_quadratic_by_hand():
    # f = (3 x^2 + y^2) / 2 at (1, 4): the gradient is (3, 4), 5 long.
    params = {"x": jnp.asarray(1.0), "y": jnp.asarray(4.0)}
    gradient_of = jax.grad(lambda p: (3 * p["x"] ** 2 + p["y"] ** 2) / 2)
    up = perturbed_params(params, gradient_of(params), 0.5)
    assert jax.tree.map(float, up) == pytest.approx({"x": 1.3, "y": 4.4})
    assert jax.tree.map(float, gradient_of(up)) == pytest.approx({"x": 3.9, "y": 4.4})


def test_radius_zero_and_a_gradient_of_zero_change_nothing():
    params = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
    jax.tree.map(np.testing.assert_array_equal, perturbed_params(params, params, 0.0), params)
    nothing = jax.tree.map(jnp.zeros_like, params)
    jax.tree.map(np.testing.assert_array_equal, perturbed_params(params, nothing, 0.5), params)


def test_a_step_is_two_plain_gradients_by_hand_accumulation_included():
    batch, key = uneven_batch(), jax.random.key(1)
    plain, state = make_step(SMALL, accumulation_steps=2)
    plain = jax.jit(plain)
    sharp = jax.jit(make_step(SMALL, accumulation_steps=2, sam=0.5)[0])
    first, metrics = plain(state, batch, key)
    # SGD: the parameters' change is the gradient times the rate.
    gradient = jax.tree.map(lambda new, old: (old - new) / RATE, first.params, state.params)
    length = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))
    up = jax.tree.map(lambda w, g: w + 0.5 * g / length, state.params, gradient)
    second, _ = plain(dataclasses.replace(state, params=up), batch, key)
    expected = jax.tree.map(lambda w, u, s: w - (u - s), state.params, up, second.params)
    found, sharp_metrics = sharp(state, batch, key)
    # float32, and the gradient is read off a difference of parameters.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=0), found.params, expected
    )
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found.params, first.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    # The statistics and the loss are the first pass's.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        found.batch_stats,
        first.batch_stats,
    )
    assert float(sharp_metrics.loss.total) == pytest.approx(float(metrics.loss.total), rel=1e-6)


def test_an_overflow_in_float16_is_skipped():
    step, state = make_step(SMALL | {"dtype": "float16"}, dynamic_loss_scale=True, sam=0.05)
    step = jax.jit(step)
    good, metrics = step(state, uneven_batch(), jax.random.key(1))
    assert np.isfinite(float(metrics.loss.total)) and int(good.good_steps) == 1
    high = dataclasses.replace(state, loss_scale=jnp.float32(jnp.inf))
    skipped, _ = step(high, uneven_batch(), jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, skipped.params, state.params)
