"""Where a run starts: fresh, from Keras' weights, or from the last checkpoint of its workdir."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from fer_jax import checkpoints
from fer_jax.config import Config, fields, read_config
from fer_jax.data.audit import EXCLUSIONS_FILE
from fer_jax.errors import InputError
from fer_jax.training.step import TrainState, joined, network_of, training_of
from fer_jax.training.swad import fresh_average
from fer_jax.weights.xception import load_xception

# What may differ when a run is continued; everything else makes it another run.
CHANGEABLE = (
    "test_sets",
    "allow_leaks",
    "num_epochs",
    "log_every_steps",
    "early_stopping_patience",
    "keep_checkpoints",
    "profile",
    "input",
)


def check_continues(config: Config, workdir: Path) -> None:
    """Refuses to continue a run with a config that would make it another run.

    Raises:
      InputError: names every field that differs, and both values; or the exclusions changed.
    """
    # Without a checkpoint there is nothing to continue: a start that failed is only replaced.
    if not any((workdir / "checkpoints").glob("[0-9]*")):
        return
    before, now = dict(fields(read_config(workdir))), dict(fields(config))
    differing = [
        f"{name} (was {before.get(name)}, now {now.get(name)})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in CHANGEABLE
    ]
    if differing:
        raise InputError(
            f"'{workdir}' holds a run with another config: {'; '.join(differing)}; "
            "choose another workdir or the same config"
        )
    kept, given = workdir / EXCLUSIONS_FILE, Path(config.exclusions)
    if given.is_file() and kept.is_file() and kept.read_bytes() != given.read_bytes():
        raise InputError(
            f"'{workdir}' holds a run with other exclusions than '{given}' has now; choose another "
            "workdir or the same exclusions"
        )


def fresh(
    init: Callable[[jax.Array], TrainState], key: jax.Array, sharding: TrainState, init_from: str
) -> TrainState:
    """The state before the first step, made where it will live.

    Args:
      init: a key to a state; traced.
      key: a random key.
      sharding: a tree of `NamedSharding` of the state's structure.
      init_from: Keras Xception weights, what `convert` made of them, or "" for random ones.

    Raises:
      InputError: it is absent or does not fit the network.
    """
    state = jax.jit(init, out_shardings=sharding)(key)
    if not init_from:
        return state
    path = Path(init_from)
    params, batch_stats, left = load_xception(path, state.params, state.batch_stats)
    print(f"started from {path}" + (f"; fresh: {', '.join(left)}" if left else ""))
    ema = jax.tree.map(jnp.copy, params) if state.ema else {}
    swad = fresh_average(params, batch_stats) if state.swad else {}
    started = dataclasses.replace(state, params=params, batch_stats=batch_stats, ema=ema, swad=swad)
    return jax.device_put(started, sharding)


def restored(
    manager: ocp.CheckpointManager, step: int, shapes: TrainState, sharding: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """The state and the loop as they were saved at a step.

    Args:
      manager: from `checkpoints.open_checkpoints`.
      step: one of its steps.
      shapes: the state as `jax.ShapeDtypeStruct`.
      sharding: where its arrays go.

    Returns:
      (state, {"iterator": its state, "history": the validations so far}).

    Raises:
      InputError: the checkpoint is of another architecture.
    """
    target = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, sharding
    )
    network, training, loop = checkpoints.restore(
        manager, step, network=network_of(target), training=training_of(target)
    )
    return joined(network, training), loop
