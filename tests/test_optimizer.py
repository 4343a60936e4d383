"""Schedules and optimizers do what their names say."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fer_jax.training.step import make_optimizer, make_schedule
from fer_jax.training.validation import plateau_scale, validations_since_best


def test_cosine_warms_up_and_ends_at_zero():
    schedule = make_schedule(learning_rate=0.1, num_steps=100, warmup_steps=10, name="cosine")
    values = np.asarray([schedule(step) for step in range(101)])
    np.testing.assert_allclose(values[:11], 0.1 * np.arange(11) / 10, rtol=1e-6)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(91) / 90))
    np.testing.assert_allclose(values[10:], expected, atol=1e-8)


def test_constant_without_warmup_starts_at_full_rate():
    schedule = make_schedule(learning_rate=0.1, num_steps=10, warmup_steps=0, name="plateau")
    assert [float(jnp.asarray(schedule(step))) for step in (0, 9)] == pytest.approx([0.1, 0.1])


def history(*values: float) -> list[dict[str, float]]:
    return [{"step": step, "validation_loss": value} for step, value in enumerate(values)]


def test_plateau_halves_after_every_flat_patience():
    def scale(*values: float) -> float:
        return plateau_scale(history(*values), "validation_loss", patience=2, factor=0.5)

    assert scale() == 1
    assert scale(1.0, 0.9, 0.95) == 1
    assert scale(1.0, 1.1, 1.0) == 0.5  # equal is not better
    assert scale(1.0, 1.1, 1.2, 0.9) == 0.5  # what is reduced stays reduced
    assert scale(1.0, 1.1, 1.2, 1.3, 1.4) == 0.25
    assert scale(1.0, 1.1, 1.2, 1.3, 0.9, 1.0, 1.0) == 0.25


def test_validations_since_best_knows_which_way_is_up():
    assert validations_since_best([], "validation_loss") == 0
    assert validations_since_best(history(3, 1, 2, 2), "validation_loss") == 2
    rising = [{"step": i, "validation_accuracy": v} for i, v in enumerate((0.1, 0.9, 0.2))]
    assert validations_since_best(rising, "validation_accuracy") == 1
    assert validations_since_best(history(float("nan"), 5.0), "validation_loss") == 0


def one_update(name: str, **options: float) -> dict[str, np.ndarray]:
    arguments: Any = {"weight_decay": 0.1, "momentum": 0.9, "max_gradient_norm": 0.0} | options
    optimizer = make_optimizer(optax.constant_schedule(1.0), name=name, **arguments)
    params = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), 2.0)}
    gradient = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full((2,), 3.0)}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    return {key: np.asarray(value).ravel()[0] for key, value in updates.items()}  # pyright: ignore[reportAttributeAccessIssue] (optax types its updates loosely)


def test_weight_decay_is_decoupled_in_adamw_and_spares_biases():
    # The first Adam direction is the gradient's sign; decay adds 0.1 * 2 to kernels.
    assert one_update("adamw") == pytest.approx({"kernel": -1.2, "bias": -1.0}, rel=1e-4)
    # L2 goes through Adam's normalisation and so vanishes from the first step.
    assert one_update("adam") == pytest.approx({"kernel": -1.0, "bias": -1.0}, rel=1e-4)
    # Nesterov's first step is (1 + momentum) times the gradient.
    assert one_update("sgd") == pytest.approx({"kernel": -1.9 * 3.2, "bias": -1.9 * 3.0})


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_earlier_blocks_have_lower_rates_and_frozen_ones_none(name: str):
    layers = ("logits", "exit2", "middle10", "middle9", "stem2", "stem1")  # back from the head
    params = {layer: {"kernel": jnp.full((2, 2), 2.0)} for layer in layers}

    def updates(**options: Any) -> list[float]:
        fixed = {"weight_decay": 0.1, "momentum": 0.9, "max_gradient_norm": 0.0}
        optimizer = make_optimizer(optax.constant_schedule(0.5), name=name, **fixed, **options)
        found: Any = optimizer.update(params, optimizer.init(params), params)[0]
        return [float(found[layer]["kernel"][0, 0]) for layer in layers]

    whole = updates()
    assert len(set(whole)) == 1
    decayed = [whole[0] * factor for factor in (1, 0.5, 0.25, 0.125, 0.0625, 0.0625)]
    assert updates(layer_decay=0.5) == pytest.approx(decayed)
    assert updates(layer_decay=0.5, freeze="stem") == pytest.approx([*decayed[:4], 0, 0])
    assert updates(freeze="all but head") == pytest.approx([whole[0], 0, 0, 0, 0, 0])


def test_clipping_bounds_the_global_norm():
    clipped = one_update("sgd", max_gradient_norm=1.0, weight_decay=0.0, momentum=0.0)
    expected = 3 / np.sqrt(6 * 9)
    assert clipped == pytest.approx({"kernel": -expected, "bias": -expected}, rel=1e-5)
