"""(network, optimizer, loop) saved together and restored together.

A checkpoint is one step with three items: `network` (params, batch_stats, ema), `training`
(what only training needs), and `loop` (JSON: the data iterator's state, the history of
validations, and whether the network is an average over the trajectory). The network is an item
of its own so that it can be read without the optimizer.
"""

import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from fer_jax.errors import InputError


def better(metric: str, candidate: float, best: float) -> bool:
    """Whether a validation is better than the best so far; losses fall, all else rises."""
    if math.isnan(candidate) or math.isnan(best):
        return not math.isnan(candidate)
    return candidate < best if metric.endswith("loss") else candidate > best


def chosen_step(history: list[dict[str, float]], metric: str, *, averaged: bool, last: int) -> int:
    """The step that "best" means.

    Args:
      history: the validations.
      metric: the run's.
      averaged: whether the run keeps an average over its trajectory, which its last checkpoint
        holds.
      last: the last checkpoint's step.
    """
    best = None if averaged else best_step(history, metric)
    return last if best is None else best


def best_step(history: list[dict[str, float]], metric: str) -> int | None:
    """The step of the best validation, the latest of equals; None before the first one."""
    best: dict[str, float] | None = None
    for validation in history:
        # The latest of equals is also what `open_checkpoints` keeps.
        if best is None or not better(metric, best[metric], validation[metric]):
            best = validation
    return None if best is None else int(best["step"])


def open_checkpoints(workdir: Path, *, keep: int, metric: str) -> ocp.CheckpointManager:
    """The checkpoints of a run: the newest `keep` of them and the best by `metric` stay."""
    sign = -1.0 if metric.endswith("loss") else 1.0

    def score(metrics: dict[str, float]) -> float:
        value = metrics[metric]
        return -math.inf if math.isnan(value) else sign * value

    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(keep),
            checkpoint_managers.BestN(get_metric_fn=score, n=1),
        ]
    )
    return _manager(workdir, ocp.CheckpointManagerOptions(preservation_policy=policy))


def _manager(workdir: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    # Named handlers, so that an item's shapes can be read before it is restored.
    handlers = {
        "network": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "loop": ocp.JsonCheckpointHandler(),
    }
    directory = (workdir / "checkpoints").resolve()
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    *,
    network: dict[str, Any],
    training: Any,
    loop: dict[str, Any],
    metrics: dict[str, float],
) -> None:
    """Starts writing a step; `manager.wait_until_finished()` before claiming it is there."""
    items = ocp.args.Composite(
        network=ocp.args.StandardSave(network),
        training=ocp.args.StandardSave(training),
        loop=ocp.args.JsonSave(loop),
    )
    manager.save(step, args=items, metrics=metrics, force=True)


def restore(
    manager: ocp.CheckpointManager, step: int, *, network: Any, training: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """Reads a step back onto the devices.

    Args:
      manager: from `open_checkpoints`.
      step: one of `manager.all_steps()`.
      network: the tree of `jax.ShapeDtypeStruct` with shardings to restore into.
      training: the same for the rest of the state.

    Returns:
      (network, training, loop) as they were saved.
    """
    _check_architecture(manager, step, network)
    items = ocp.args.Composite(
        network=ocp.args.StandardRestore(network),
        training=ocp.args.StandardRestore(training),
        loop=ocp.args.JsonRestore(),
    )
    restored = manager.restore(step, args=items)
    return restored["network"], restored["training"], restored["loop"]


def restore_network(workdir: Path, which: str, network: Any, metric: str) -> tuple[int, Any]:
    """Reads the parameters and statistics of a finished or running training.

    Args:
      workdir: of the run.
      which: "best" by validation, "last", or a step's number. Where the network is an average
        over the trajectory, what validation chose is its end: the best is the last.
      network: the tree of `jax.ShapeDtypeStruct` with shardings to restore into.
      metric: what "best" means.

    Returns:
      (step, network).

    Raises:
      InputError: no such step, no checkpoint at all, or one of another architecture.
    """
    if not (workdir / "checkpoints").is_dir():
        raise InputError(f"'{workdir}' holds no checkpoints; train first")
    with _manager(workdir, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise InputError(f"'{workdir}' holds no finished checkpoint; train first")
        if which == "last":
            step = steps[-1]
        elif which == "best":
            items = ocp.args.Composite(loop=ocp.args.JsonRestore())
            loop = manager.restore(steps[-1], args=items)["loop"]
            averaged = loop.get("averaged", False)
            step = chosen_step(loop["history"], metric, averaged=averaged, last=steps[-1])
        else:
            step = int(which) if which.isdecimal() else -1
        if step not in steps:
            there = ", ".join(map(str, steps))
            raise InputError(f"'{workdir}' has no checkpoint '{which}'; choose best, last, {there}")
        _check_architecture(manager, step, network)
        items = ocp.args.Composite(network=ocp.args.StandardRestore(network))
        return step, manager.restore(step, args=items)["network"]


def _check_architecture(manager: ocp.CheckpointManager, step: int, network: Any) -> None:
    """Refuses a checkpoint whose arrays are not the network's, naming the first that differs."""
    saved = manager.item_metadata(step)["network"]
    if saved is None:
        raise InputError(f"checkpoint {step} in {manager.directory} holds no network")

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        paths = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in paths}

    there, wanted = shapes(saved.tree), shapes(network)
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            raise InputError(
                f"checkpoint {step} in {manager.directory} is of another architecture: {name} is "
                f"{there.get(name, 'absent')} there and {wanted.get(name, 'absent')} in the config"
            )


def fingerprint(tree: Any) -> str:
    """SHA-256 over a tree's names, shapes and numbers (as float32), in hexadecimal."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves):
        array = np.ascontiguousarray(np.asarray(leaf), np.float32)
        digest.update(f"{path}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
