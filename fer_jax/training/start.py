"""Where a run starts: fresh, from Keras' weights, or from the last checkpoint of its workdir."""

import dataclasses
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from fer_jax import checkpoints
from fer_jax.config import Config, fields, from_json, is_generator, read_config, to_json
from fer_jax.data.experiment import EXCLUSIONS_FILE
from fer_jax.data.records import build_summary
from fer_jax.errors import InputError
from fer_jax.methods.swad import fresh_average
from fer_jax.training.step import TrainState, joined, network_of, training_of
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


def check_continues(
    config: Config, workdir: Path, data_dir: Path, *, changeable: Collection[str] = CHANGEABLE
) -> None:
    """Refuses to continue a run with a config or data that would make it another run.

    Args:
      config: of the run.
      workdir: of the run.
      data_dir: where the datasets are.
      changeable: names of fields that may differ.

    Raises:
      InputError: names every field that differs, and both values; or the exclusions or the data
        changed.
    """
    # Without a checkpoint there is nothing to continue: a start that failed is only replaced.
    if not any(path.name.isdecimal() for path in (workdir / checkpoints.FOLDER).glob("*")):
        return
    as_kept = from_json(to_json(config))
    before, now = (
        dict(fields(read_config(workdir, of_generator=is_generator(config)))),
        dict(fields(as_kept)),
    )
    differing = [
        f"{name} (was {before.get(name)}, now {now.get(name)})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name not in changeable
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
    for name, was in _datasets_before(workdir).items():
        if was["fingerprint"] != build_summary(name, data_dir).get("fingerprint"):
            raise InputError(
                f"'{workdir}' was trained on another build of '{name}' than {data_dir} has now; "
                "delete that folder to train it again, or choose another workdir"
            )


def check_images(count: int, loop: dict[str, Any], workdir: Path) -> None:
    """Refuses to continue with another number of images: every batch would be another.

    Raises:
      InputError: a record was damaged, or mended, since the run began.
    """
    before = loop.get("images", count)
    if before != count:
        raise InputError(
            f"'{workdir}' was trained on {before} images, and {count} can be read now; mend the "
            "dataset, or choose another workdir"
        )


def _datasets_before(workdir: Path) -> dict[str, Any]:
    file = workdir / "environment.json"
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text())["datasets"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{file}' is damaged ({error}); delete it to continue without comparing the data"
        ) from error


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
    manager: checkpoints.ChecksummedManager, step: int, shapes: TrainState, sharding: TrainState
) -> TrainState:
    """The state as it was saved at a step.

    Args:
      manager: from `checkpoints.open_checkpoints`.
      step: from `checkpoints.latest_valid_step`.
      shapes: the state as `jax.ShapeDtypeStruct`.
      sharding: where its arrays go.

    Raises:
      InputError: the checkpoint is of another architecture.
    """
    target = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, sharding
    )
    network, training, _ = checkpoints.restore(
        manager, step, network=network_of(target), training=training_of(target)
    )
    return joined(network, training)
