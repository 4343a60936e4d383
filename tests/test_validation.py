"""What follows from the validations so far: stopping, the plateau, the line that is shown."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.config import default_config
from fer_jax.training import validation
from fer_jax.training.step import TrainState


def history(*values: float) -> list[dict[str, float]]:
    return [
        {"step": step, "validation_balanced_accuracy": value}
        for step, value in enumerate(values, 1)
    ]


@pytest.mark.parametrize(
    ("patience", "values", "stops"),
    [
        (0, (0.5, 0.4, 0.3), False),
        (2, (), False),
        (2, (0.5, 0.4), False),
        (2, (0.5, 0.4, 0.3), True),
        (2, (0.5, 0.4, 0.6), False),
    ],
)
def test_a_run_stops_when_its_patience_is_at_its_end(
    patience: int, values: tuple[float, ...], stops: bool
):
    config = default_config()
    config.early_stopping_patience = patience
    assert bool(validation.reason_to_stop(config, history(*values))) is stops


def test_the_plateau_scales_the_learning_rate_and_nothing_else():
    names = [field.name for field in dataclasses.fields(TrainState)]
    state = TrainState(**{name: jnp.ones(()) for name in names})
    config = default_config()
    config.schedule.plateau_patience = 2
    flat = history(0.5, 0.4, 0.5, 0.3, 0.2)
    assert validation.with_plateau(state, flat, config) is state
    config.schedule.name = "plateau"
    scaled = validation.with_plateau(state, flat, config)
    assert float(scaled.learning_rate_scale) == 0.25
    back: Any = dataclasses.replace(scaled, learning_rate_scale=jnp.ones(()))
    jax.tree.map(np.testing.assert_array_equal, back, state)


def test_the_line_says_whether_it_is_the_best():
    metric = "validation_balanced_accuracy"
    line = validation.line(20, history(0.4, 0.5), metric)
    assert line == "validation at step 20: balanced_accuracy 0.5000  (best so far)"
    assert "(best at step 1)" in validation.line(20, history(0.5, 0.4), metric)
