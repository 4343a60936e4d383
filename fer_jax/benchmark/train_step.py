"""The train step on one batch that stays on the devices, and the speed that a machine allows."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.benchmark.processes import random_batch
from fer_jax.config import Config, default_config
from fer_jax.data.augment import normalize
from fer_jax.inference.network import model_arguments
from fer_jax.models import layers, xception
from fer_jax.models.layers import affine, as_unnormalized
from fer_jax.schema import TASKS
from fer_jax.sharding import make_mesh, state_sharding, to_devices
from fer_jax.training.step import init_state, jit_train_step, make_optimizer, step_options

WARM_UP_STEPS = 2
# The middle blocks' matrix product at batch 8, and an array that no cache holds.
MATMUL_SHAPE = (1568, 728, 728)
COPIED_ELEMENTS = 2**26


class TrainStep:
    """A config's train step as `train` compiles it, with a constant learning rate."""

    def __init__(self, config: Config, devices: Sequence[Any] | None = None):
        mesh = make_mesh(devices)
        settings = dict(config.optimizer)
        learning_rate = settings.pop("learning_rate")
        optimizer = make_optimizer(lambda _: learning_rate, **settings)
        init = functools.partial(
            init_state, optimizer=optimizer, model=model_arguments(config), ema=config.ema_decay > 0
        )
        shapes = jax.eval_shape(init, jax.random.key(0))
        sharding = state_sharding(shapes, mesh, config.sharding)
        compiled = jax.jit(init, out_shardings=sharding)
        self.new_state = functools.partial(compiled, jax.random.key(0))
        num_classes = len(TASKS[config.task])
        options = step_options(config, optimizer, np.ones(num_classes))
        step = jit_train_step(options, sharding, mesh)
        images, labels = random_batch(config.batch_size, config.model.image_size)
        targets = np.eye(num_classes, dtype=np.float32)[labels % num_classes]
        domain = np.zeros(config.batch_size, np.int32)
        batch = to_devices({"image": images, "target": targets, "domain": domain}, mesh)
        key = jax.random.key(1)
        self.step = lambda state: step(state, batch, key)
        self.batch_size = config.batch_size

    def images_per_second(self, steps: int) -> float:
        """Measures steps of a new state, which is deleted: training beside it needs the memory."""
        state = self.new_state()
        for _ in range(WARM_UP_STEPS):
            state, _ = self.step(state)
        jax.block_until_ready(state)
        started = time.perf_counter()
        before = None
        for _ in range(steps):
            state, metrics = self.step(state)
            # As in training: on a CPU, steps that queue up are slower than steps that do not.
            jax.block_until_ready(before)
            before = metrics
        jax.block_until_ready(state)
        return steps * self.batch_size / (time.perf_counter() - started)


def network_config(**fields: Any) -> Config:
    """Returns the default config with some fields of `config.model`, and batch_size."""
    config = default_config()
    config.batch_size = fields.pop("batch", config.batch_size)
    config.model.update(fields)
    return config


def grouped(x: Any, kernel: jax.Array, *, relu: bool = False) -> jax.Array:
    """Convolves as XLA's grouped convolution, with BatchNorm and ReLU on reading."""
    inputs = affine(x) if isinstance(x, tuple) else x
    return layers.grouped_conv3x3(jax.nn.relu(inputs) if relu else inputs, kernel)


def shifted(x: Any, kernel: jax.Array, *, relu: bool = False) -> jax.Array:
    """Convolves as shifted adds, with BatchNorm and ReLU on reading."""
    inputs = x if isinstance(x, tuple) else as_unnormalized(x)
    return layers.shifted_conv3x3(inputs, kernel, relu)


DEPTHWISE = {"grouped": grouped, "shifted": shifted}


def network_step(depthwise: str, *, mode: str, **fields: Any) -> tuple[Callable[[], Any], int]:
    """Returns a step of the full network without augmentation, and its number of parameters.

    `depthwise` is a form of `DEPTHWISE`, or "" for the one that this machine uses.
    """
    if depthwise:
        layers.depthwise_conv3x3 = DEPTHWISE[depthwise]
    config = network_config(**fields)
    config.augment.update({name: type(value)(0) for name, value in config.augment.items()})
    train = TrainStep(config, jax.devices()[:1])
    state = train.new_state()
    num_parameters = sum(x.size for x in jax.tree.leaves(state.params))
    if mode == "inference":
        graphdef = xception.graphdef(**model_arguments(config))
        predict = jax.jit(lambda p, s, x: xception.apply(graphdef, p, s, normalize(x))[0])
        images = jax.device_put(random_batch(config.batch_size, config.model.image_size)[0])
        params, batch_stats = state.params, state.batch_stats
        del state
        return lambda: predict(params, batch_stats, images).block_until_ready(), num_parameters

    def step() -> None:
        nonlocal state
        state, metrics = train.step(state)
        jax.block_until_ready((state, metrics))

    return step, num_parameters


def measure_rates(dtype: str, repeats: int = 5) -> dict[str, float]:
    """Measures the fastest of some runs in JAX, as "flop_per_second" and "bytes_per_second".

    They are of a middle block's matrix product, and read and written by adding 1 to 256 MiB.
    """
    rows, inner, columns = MATMUL_SHAPE
    # A GPU needs larger products, and many in a row: a single one ends before the next is queued.
    rows, in_a_row = (rows * 32, 20) if jax.default_backend() != "cpu" else (rows, 1)
    a, b = jnp.ones((rows, inner), dtype), jnp.ones((inner, columns), dtype)
    matmul = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    add, long = jax.jit(lambda x: x + 1), jnp.ones(COPIED_ELEMENTS, jnp.float32)

    def fastest(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            jax.block_until_ready([run() for _ in range(in_a_row)][-1])
            times.append((time.perf_counter() - started) / in_a_row)
        return min(times[1:])

    return {
        "flop_per_second": 2 * rows * inner * columns / fastest(lambda: matmul(a, b)),
        "bytes_per_second": 2 * long.nbytes / fastest(lambda: add(long)),
    }
