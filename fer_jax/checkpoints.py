"""Checkpoints: the network, the optimizer and the loop's state, saved and restored together.

A checkpoint is one step with three items: `network` (params, batch_stats, ema), `training` (what
only training needs), and `loop` (JSON: the state of the data iterator, the validations so far, and
more). The network is an item of its own so that it can be read without the optimizer.

Orbax restores a flipped bit without an error, so every finished step has a SHA256SUMS of its
files (`sha256sum -c SHA256SUMS` reads it). A step without one was not finished, one that differs
from it is corrupted, and neither is restored.
"""

import functools
import hashlib
import itertools
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from fer_jax.errors import InputError, disk_error_message
from fer_jax.storage import CHECKSUMS_FILE, find_corruption, sha256, write_checksums

FOLDER = "checkpoints"
QUARANTINE = "checkpoints_corrupted"
MAX_CLOCK_DIFFERENCE_S = 60.0
LOWER_IS_BETTER = ("loss", "kid")  # ends of metrics' names


def better(metric: str, candidate: float, best: float) -> bool:
    """Returns whether a validation is better than the best so far; losses and distances fall."""
    if math.isnan(candidate) or math.isnan(best):
        return not math.isnan(candidate)
    return candidate < best if metric.endswith(LOWER_IS_BETTER) else candidate > best


def chosen_step(history: list[dict[str, float]], metric: str, *, averaged: bool, last: int) -> int:
    """Returns the step that "best" means: the last one if the network is an average of steps."""
    best = None if averaged else best_step(history, metric)
    return last if best is None else best


def best_step(history: list[dict[str, float]], metric: str) -> int | None:
    """Returns the step of the best validation, the latest of equals; None before the first one."""
    best: dict[str, float] | None = None
    for validation in history:
        # The latest of equals is also what `open_checkpoints` keeps.
        if best is None or not better(metric, best[metric], validation[metric]):
            best = validation
    return None if best is None else int(best["step"])


class ChecksummedManager(ocp.CheckpointManager):
    """Orbax's CheckpointManager that adds checksums to each step and names the step of an error.

    Orbax writes in the background and reports an error when the next step is saved; this manager
    also reports it from `raise_if_failed` and `wait_until_finished`.
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **options)
        _silence_followup_errors()
        self._pool = ThreadPoolExecutor(1, "checksums")
        self._finishing: Future[None] | None = None

    def save(self, step: int, *args: Any, **kwargs: Any) -> bool:
        """Starts writing a step, once the one before has its checksums."""
        saved = self._explained(
            step, lambda: super(ChecksummedManager, self).save(step, *args, **kwargs)
        )
        self._finishing = self._pool.submit(self._explained, step, lambda: self._finish(step))
        return saved

    def raise_if_failed(self) -> None:
        """Raises an error of the background writing, if there was one; never waits."""
        if self._finishing is not None and self._finishing.done():
            self._finishing.result()

    def wait_until_finished(self) -> None:
        """Returns when the last step is written with its checksums."""
        if self._finishing is not None:
            # Dropped first, so that closing after an error does not raise it again.
            finishing, self._finishing = self._finishing, None
            finishing.result()
        super().wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads."""
        super().close()
        self._pool.shutdown()

    def _finish(self, step: int) -> None:
        super().wait_until_finished()
        if jax.process_index() == 0:
            write_checksums(Path(self.directory) / str(step))

    def _explained(self, step: int, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except InputError:
            raise
        except Exception as error:
            reason = disk_error_message(error)
            if not reason:
                error.add_note(f"while the checkpoint of step {step} was written")
                raise
            # Coroutines that Orbax had started would warn when the process ends.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            raise InputError(
                f"the checkpoint of step {step} could not be written: {reason} "
                f"({self.directory}); earlier checkpoints are intact; rerun the same command to "
                "resume"
            ) from error


@functools.cache
def _silence_followup_errors() -> None:
    """Silences the follow-up tracebacks of a disk error, so that only its one line is printed.

    Orbax writes arrays in parallel. When one write fails, asyncio logs the errors of the others,
    and TensorStore calls back into a loop that Orbax has already closed.
    """
    default_hook = sys.unraisablehook

    def is_other_error(record: logging.LogRecord) -> bool:
        return record.exc_info is None or not disk_error_message(record.exc_info[1])

    def hook(what: Any) -> None:
        if not (what.exc_type is RuntimeError and str(what.exc_value) == "Event loop is closed"):
            default_hook(what)

    logging.getLogger("asyncio").addFilter(is_other_error)
    sys.unraisablehook = hook


def finished_steps(workdir: Path) -> list[int]:
    """Returns the steps that have checksums, oldest first; they may be corrupted since."""
    files = (workdir / FOLDER).glob(f"*/{CHECKSUMS_FILE}")
    return sorted(int(path.parent.name) for path in files if path.parent.name.isdecimal())


def checksum(workdir: Path, step: int) -> str:
    """Returns the SHA-256 of a step's checksums, which is one of all its files; "" if none is."""
    file = workdir / FOLDER / str(step) / CHECKSUMS_FILE
    return sha256(file) if file.is_file() else ""


def latest_valid_step(workdir: Path) -> tuple[int, dict[str, Any]]:
    """Returns the newest step that is as it was written, and its `loop` item; (0, {}) if none is.

    Newer steps that are corrupted or unfinished move to checkpoints_corrupted/, and a line says
    why. All processes of a run call it and get the same answer.
    """
    step = 0
    if jax.process_index() == 0:
        folders = [path for path in (workdir / FOLDER).glob("*") if path.name.isdecimal()]
        for folder in sorted(folders, key=lambda path: int(path.name), reverse=True):
            corruption = find_corruption(folder)
            if not corruption:
                step = int(folder.name)
                _check_clock(folder)
                break
            print(
                f"checkpoint {folder.name} is corrupted: {corruption}; moved to "
                f"{_quarantine(folder)}",
                flush=True,
            )
    if jax.process_count() > 1:
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    return step, _read_loop(workdir, step) if step else {}


def _check_clock(folder: Path) -> None:
    behind = (folder / CHECKSUMS_FILE).stat().st_mtime - time.time()
    if behind > MAX_CLOCK_DIFFERENCE_S:
        print(
            f"this machine's clock is {behind / 60:.0f} minutes behind checkpoint {folder.name}: "
            "dates in TensorBoard will be out of order; nothing else is affected"
        )


def _quarantine(folder: Path) -> Path:
    parent = folder.parent.parent / QUARANTINE
    parent.mkdir(exist_ok=True)
    names = itertools.chain([folder.name], (f"{folder.name}.{i}" for i in itertools.count(2)))
    return folder.rename(next(parent / name for name in names if not (parent / name).exists()))


def open_checkpoints(workdir: Path, *, keep: int, metric: str) -> ChecksummedManager:
    """Opens the checkpoints of a run: the newest `keep` and the best by `metric` are kept.

    Orbax deletes older steps before a new one has its checksums: keep two, so that one is always
    valid.
    """
    sign = -1.0 if metric.endswith(LOWER_IS_BETTER) else 1.0

    def score(metrics: dict[str, float]) -> float:
        value = metrics[metric]
        return -math.inf if math.isnan(value) else sign * value

    best = checkpoint_managers.BestN(
        get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
    )
    policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(keep), best])
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        # The policy decides; without this the scores would not be on the disk after a restart.
        best_fn=score,
        # What a killed process was writing.
        cleanup_tmp_directories=True,
    )
    return _manager(workdir, options)


def _manager(workdir: Path, options: ocp.CheckpointManagerOptions) -> ChecksummedManager:
    # Named handlers, so that an item's shapes can be read before it is restored.
    handlers = {
        **{name: ocp.StandardCheckpointHandler() for name in ("network", "training")},
        **{name: ocp.JsonCheckpointHandler() for name in ("loop", "metrics")},
    }
    directory = (workdir / FOLDER).resolve()
    return ChecksummedManager(directory, options=options, item_handlers=handlers)


def _reader(workdir: Path) -> ChecksummedManager:
    _silence_read_only_warnings()
    return _manager(workdir, ocp.CheckpointManagerOptions(read_only=True))


@functools.cache
def _silence_read_only_warnings() -> None:
    """Silences what Orbax logs whenever checkpoints are opened for reading only."""

    def is_other(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "read_only=True" not in message and "directory is read only" not in message

    logging.getLogger("absl").addFilter(is_other)


def save(
    manager: ChecksummedManager,
    step: int,
    *,
    network: dict[str, Any],
    training: Any,
    loop: dict[str, Any],
    metrics: dict[str, float] | None,
) -> None:
    """Starts writing a step, or writing it again; `manager.wait_until_finished()` ends it.

    `metrics` is the step's validation, by which the best is kept; None if there was none.
    """
    if step in manager.all_steps():
        manager.wait_until_finished()
        manager.delete(step)
    items = ocp.args.Composite(
        network=ocp.args.StandardSave(network),
        training=ocp.args.StandardSave(training),
        loop=ocp.args.JsonSave(loop),
    )
    manager.save(step, args=items, metrics=metrics, force=True)


def restore(
    manager: ChecksummedManager, step: int, *, network: Any, training: Any
) -> tuple[Any, Any]:
    """Restores (network, training) of a step into shapes with shardings, or raises InputError."""
    _check_architecture(manager, step, network)
    items = ocp.args.Composite(
        network=ocp.args.StandardRestore(network), training=ocp.args.StandardRestore(training)
    )
    restored = manager.restore(step, args=items)
    return restored["network"], restored["training"]


def restore_network(workdir: Path, which: str, network: Any, metric: str) -> tuple[int, Any]:
    """Restores (step, network) of a finished or running training into shapes with shardings.

    `which` is "best" by `metric` (the last if the network is an average over the trajectory),
    "last", or a step's number. Raises InputError if there is no such step, or it is corrupted or of
    another architecture. Nothing is moved, and no other step is restored instead.
    """
    if not (workdir / FOLDER).is_dir():
        raise InputError(f"'{workdir}' holds no checkpoints; train first")
    there = finished_steps(workdir)
    if not there:
        raise InputError(f"'{workdir}' holds no finished checkpoint; train first")
    if which == "best":
        _check_valid(workdir, there[-1])
        loop = _read_loop(workdir, there[-1])
        averaged = loop.get("averaged", False)
        step = chosen_step(loop["history"], metric, averaged=averaged, last=there[-1])
    else:
        step = there[-1] if which == "last" else int(which) if which.isdecimal() else -1
    if step not in there:
        names = ", ".join(map(str, there))
        raise InputError(f"'{workdir}' has no checkpoint '{which}'; choose best, last, {names}")
    _check_valid(workdir, step)
    with _reader(workdir) as manager:
        _check_architecture(manager, step, network)
        items = ocp.args.Composite(network=ocp.args.StandardRestore(network))
        return step, manager.restore(step, args=items)["network"]


def read(workdir: Path, step: int, *, network: Any, training: Any) -> tuple[Any, Any]:
    """Returns (network, training) of a finished step; InputError if it is corrupted."""
    _check_valid(workdir, step)
    with _reader(workdir) as manager:
        return restore(manager, step, network=network, training=training)


def _read_loop(workdir: Path, step: int) -> dict[str, Any]:
    with _reader(workdir) as manager:
        items = ocp.args.Composite(loop=ocp.args.JsonRestore())
        return manager.restore(step, args=items)["loop"]


def _check_valid(workdir: Path, step: int) -> None:
    if corruption := find_corruption(workdir / FOLDER / str(step)):
        others = [str(other) for other in finished_steps(workdir) if other != step]
        instead = f"choose another step: {', '.join(others)}" if others else "train again"
        raise InputError(
            f"checkpoint {step} in '{workdir / FOLDER}' is corrupted: {corruption}; {instead}"
        )


def _check_architecture(manager: ocp.CheckpointManager, step: int, network: Any) -> None:
    """Refuses a checkpoint whose arrays are not the network's, naming the first that differs."""
    saved = manager.item_metadata(step)["network"]
    if saved is None:
        raise InputError(f"checkpoint {step} in {manager.directory} holds no network")

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        paths = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in paths}

    found, expected = shapes(saved.tree), shapes(network)
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise InputError(
                f"checkpoint {step} in {manager.directory} is of another architecture: {name} is "
                f"{found.get(name, 'absent')} there and {expected.get(name, 'absent')} in the "
                "config"
            )


def inference_arrays(network: dict[str, Any]) -> dict[str, Any]:
    """Returns {"params", "batch_stats"} for inference: the averaged parameters if there are any."""
    return {"params": network["ema"] or network["params"], "batch_stats": network["batch_stats"]}


def fingerprint(tree: Any) -> str:
    """Returns the SHA-256 of a tree's names, shapes and numbers (as float32), in hexadecimal."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves):
        array = np.ascontiguousarray(np.asarray(leaf), np.float32)
        digest.update(f"{path}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
