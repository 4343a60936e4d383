"""The optimizer and its learning rate, from the config's blocks."""

from typing import Any

import jax
import optax

from fer_jax.checkpoints import better


def make_schedule(
    *,
    learning_rate: float,
    num_steps: int,
    warmup_steps: int,
    name: str,
) -> optax.Schedule:
    """Learning rate by step: linear warm-up from 0, then cosine to 0, or constant.

    "plateau" is constant here: `plateau_scale` multiplies it, from the validations.
    """
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    if name == "cosine":
        rest = optax.cosine_decay_schedule(learning_rate, max(1, num_steps - warmup_steps))
    else:
        rest = optax.constant_schedule(learning_rate)
    return optax.join_schedules([warmup, rest], [warmup_steps]) if warmup_steps else rest


def make_optimizer(
    schedule: optax.Schedule,
    *,
    name: str,
    weight_decay: float,
    momentum: float,
    max_gradient_norm: float,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019), Adam with L2, or SGD with Nesterov momentum and L2.

    Weight decay touches kernels only, never biases or BatchNorm's scale and offset.
    """

    def kernels(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    decay = optax.add_decayed_weights(weight_decay, mask=kernels)
    direction = {
        "adamw": [optax.scale_by_adam(), decay],
        "adam": [decay, optax.scale_by_adam()],
        "sgd": [decay, optax.trace(momentum, nesterov=True)],
    }[name]
    clip = [optax.clip_by_global_norm(max_gradient_norm)] if max_gradient_norm else []
    return optax.chain(*clip, *direction, optax.scale_by_learning_rate(schedule))


def validations_since_best(history: list[dict[str, float]], metric: str) -> int:
    """How many validations have passed since the best one; 0 when the last is the best."""
    best = since = 0
    for index, validation in enumerate(history):
        since += 1
        if index == 0 or better(metric, validation[metric], history[best][metric]):
            best, since = index, 0
    return since


def plateau_scale(
    history: list[dict[str, float]], metric: str, *, patience: int, factor: float
) -> float:
    """What "plateau" multiplies the learning rate by: `factor` for every flat `patience`.

    A pure function of the validations so far, so a continued run needs no state for it. After
    a reduction the count starts again.
    """
    scale, best, since = 1.0, None, 0
    for validation in history:
        value = validation[metric]
        if best is None or better(metric, value, best):
            best, since = value, 0
            continue
        since += 1
        if since == patience:
            scale, since = scale * factor, 0
    return scale
