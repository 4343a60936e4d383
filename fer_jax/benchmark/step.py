"""The train step alone, as `train` jits it, on one batch that stays on the devices."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fer_jax.config import Config
from fer_jax.inference.network import model_arguments
from fer_jax.schema import TASKS
from fer_jax.sharding import make_mesh, state_sharding, to_devices
from fer_jax.training.optimizer import make_optimizer
from fer_jax.training.step import init_state, jitted_step

WARM_UP_STEPS = 2


def alone(config: Config, devices: Sequence[Any]) -> Callable[[int], float]:
    """Makes a step.

    Args:
      config: of a run; its learning rate stays constant.
      devices: that share its batches.

    Returns:
      A number of steps to the images per second that they reach, one after the other. The
      state is made anew for each call and dropped: beside a training it would be in the way.
    """
    mesh = make_mesh(devices)
    optimizer = make_optimizer(
        lambda _: config.optimizer.learning_rate,
        **{k: v for k, v in config.optimizer.items() if k != "learning_rate"},
    )
    init = functools.partial(
        init_state, optimizer=optimizer, model=model_arguments(config), ema=config.ema_decay > 0
    )
    shapes = jax.eval_shape(init, jax.random.key(0))
    sharding = state_sharding(shapes, mesh, config.sharding)
    fresh = jax.jit(init, out_shardings=sharding)
    classes = len(TASKS[config.task])
    step = jitted_step(config, optimizer, np.ones(classes), sharding, mesh)
    rng = np.random.default_rng(0)
    size = config.model.image_size
    images = rng.integers(0, 256, (config.batch_size, size, size, 3), dtype=np.uint8)
    targets = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, config.batch_size)]
    domain = np.zeros(config.batch_size, np.int32)
    batch = to_devices({"image": images, "target": targets, "domain": domain}, mesh)
    key = jax.random.key(1)

    def run(steps: int) -> float:
        state = fresh(jax.random.key(0))
        for _ in range(WARM_UP_STEPS):
            state, _ = step(state, batch, key)
        jax.block_until_ready(state)
        started = time.perf_counter()
        before = None
        for _ in range(steps):
            state, metrics = step(state, batch, key)
            # As the loop does: on a CPU steps that queue up are slower than steps that do not.
            jax.block_until_ready(before)
            before = metrics
        jax.block_until_ready(state)
        return steps * config.batch_size / (time.perf_counter() - started)

    return run
