"""(network, optimizer, loop) saved together and restored together.

A checkpoint is one step with three items: `network` (params, batch_stats, ema), `training`
(what only training needs), and `loop` (JSON: the data iterator's state, the history of
validations, and whether the network is an average over the trajectory). The network is an item
of its own so that it can be read without the optimizer.

Orbax restores a flipped bit without a word. So a step that is written is sealed: SHA256SUMS names
every file of it (`sha256sum -c SHA256SUMS` reads it, too). A step without a seal was not finished,
one that differs from its seal is damaged, and neither is restored by anything here.
"""

import functools
import hashlib
import itertools
import logging
import math
import os
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

FOLDER = "checkpoints"
DAMAGED = "checkpoints_damaged"
SEAL = "SHA256SUMS"
HASHING_THREADS = 4
CLOCK_MAY_DIFFER_S = 60.0
FALLING = ("loss", "kid")  # ends of the names of what is better when it is less


def better(metric: str, candidate: float, best: float) -> bool:
    """Whether a validation is better than the best so far; losses and distances fall."""
    if math.isnan(candidate) or math.isnan(best):
        return not math.isnan(candidate)
    return candidate < best if metric.endswith(FALLING) else candidate > best


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


class SealedCheckpoints(ocp.CheckpointManager):
    """Orbax's manager, with a seal on each step that is written, and errors that name theirs.

    Orbax writes in the background and tells an error when the next step is saved; here it is told
    as soon as somebody asks (`raise_if_failed`, `save`, `wait_until_finished`).
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        """Takes what Orbax's takes."""
        super().__init__(directory, **options)
        _leave_out_what_is_no_news()
        self._pool = ThreadPoolExecutor(1, "seal")
        self._sealing: Future[None] | None = None

    def save(self, step: int, *args: Any, **kwargs: Any) -> bool:
        """Starts writing a step, once the one before is sealed."""
        saved = self._told(step, lambda: super(SealedCheckpoints, self).save(step, *args, **kwargs))
        self._sealing = self._pool.submit(self._told, step, lambda: self._seal(step))
        return saved

    def raise_if_failed(self) -> None:
        """Raises what went wrong in the background, if something did; never waits."""
        if self._sealing is not None and self._sealing.done():
            self._sealing.result()

    def wait_until_finished(self) -> None:
        """Returns when the last step is sealed."""
        if self._sealing is not None:
            # Forgotten first, so that closing after an error does not tell it again.
            sealing, self._sealing = self._sealing, None
            sealing.result()
        super().wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads."""
        super().close()
        self._pool.shutdown()

    def _seal(self, step: int) -> None:
        super().wait_until_finished()
        if jax.process_index() == 0:
            seal(Path(self.directory) / str(step))

    def _told(self, step: int, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except InputError:
            raise
        except Exception as error:
            reason = disk_error_message(error)
            if not reason:
                error.add_note(f"while the checkpoint of step {step} was written")
                raise
            # What Orbax had begun beside it would complain when the process ends.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            raise InputError(
                f"the checkpoint of step {step} could not be written: {reason} "
                f"({self.directory}); those before it are whole, and the same command continues"
            ) from error


@functools.cache
def _leave_out_what_is_no_news() -> None:
    """Keeps stacks away from the one line that says what the disk refused.

    Orbax writes arrays side by side. When one is refused, asyncio logs the errors of the others,
    which reach nobody, and TensorStore tells a loop that Orbax has closed that it is done.
    """
    told_before = sys.unraisablehook

    def is_news(record: logging.LogRecord) -> bool:
        return record.exc_info is None or not disk_error_message(record.exc_info[1])

    def tell(what: Any) -> None:
        if not (what.exc_type is RuntimeError and str(what.exc_value) == "Event loop is closed"):
            told_before(what)

    logging.getLogger("asyncio").addFilter(is_news)
    sys.unraisablehook = tell


def seal(folder: Path) -> None:
    """Writes the SHA256SUMS of a step whose files are all there, in one piece or not at all."""
    lines = [f"{digest}  {name}\n" for name, digest in sorted(_digests(folder).items())]
    partial = folder / f"{SEAL}.partial"
    with partial.open("w") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / SEAL)
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def damage(folder: Path) -> str:
    """What is wrong with a step, read again byte for byte; "" where it is as it was sealed."""
    try:
        lines = [line.partition("  ") for line in (folder / SEAL).read_text().splitlines()]
        sealed = {name: digest for digest, _, name in lines}
        found = _digests(folder)
    except FileNotFoundError:
        return f"it has no {SEAL}, so it was not finished or has lost it"
    except (OSError, UnicodeDecodeError) as error:
        return f"it cannot be read ({error})"
    for name in sorted(sealed.keys() | found.keys()):
        if name not in found:
            return f"{name} is absent"
        if name not in sealed:
            return f"{SEAL} does not name {name}"
        if sealed[name] != found[name]:
            return f"{name} is not as it was written"
    return ""


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder but its seal, by its path within."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != SEAL]

    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        names = [path.relative_to(folder).as_posix() for path in paths]
        return dict(zip(names, pool.map(digest, paths), strict=True))


def finished_steps(workdir: Path) -> list[int]:
    """The steps that have a seal, oldest first; whether they are whole is for `damage` to say."""
    seals = (workdir / FOLDER).glob(f"*/{SEAL}")
    return sorted(int(path.parent.name) for path in seals if path.parent.name.isdecimal())


def newest_whole(workdir: Path) -> tuple[int, dict[str, Any]]:
    """The newest step that is as it was written, and what the loop kept there; (0, {}) if none is.

    What is newer and is not goes to checkpoints_damaged/, with a line that says what is wrong.
    Called by all processes of a run, which get the same answer.
    """
    step = 0
    if jax.process_index() == 0:
        folders = [path for path in (workdir / FOLDER).glob("*") if path.name.isdecimal()]
        for folder in sorted(folders, key=lambda path: int(path.name), reverse=True):
            wrong = damage(folder)
            if not wrong:
                step = int(folder.name)
                _tell_clock(folder)
                break
            print(
                f"checkpoint {folder.name} is damaged: {wrong}; moved to {_set_aside(folder)}",
                flush=True,
            )
    if jax.process_count() > 1:
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
    return step, _read_loop(workdir, step) if step else {}


def _tell_clock(folder: Path) -> None:
    """Says that the clock stands before the checkpoint; steps are in order whatever it says."""
    behind = (folder / SEAL).stat().st_mtime - time.time()
    if behind > CLOCK_MAY_DIFFER_S:
        print(
            f"this machine's clock is {behind / 60:.0f} minutes behind checkpoint {folder.name}: "
            "dates in TensorBoard will be out of order, nothing else"
        )


def _set_aside(folder: Path) -> Path:
    aside = folder.parent.parent / DAMAGED
    aside.mkdir(exist_ok=True)
    names = itertools.chain([folder.name], (f"{folder.name}.{i}" for i in itertools.count(2)))
    target = next(aside / name for name in names if not (aside / name).exists())
    return folder.rename(target)


def open_checkpoints(workdir: Path, *, keep: int, metric: str) -> SealedCheckpoints:
    """The checkpoints of a run: the newest `keep` of them and the best by `metric` stay.

    Orbax deletes the older ones before a new one is sealed: keep two, so that one is always whole.
    """
    sign = -1.0 if metric.endswith(FALLING) else 1.0

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


def _manager(workdir: Path, options: ocp.CheckpointManagerOptions) -> SealedCheckpoints:
    # Named handlers, so that an item's shapes can be read before it is restored.
    handlers = {
        "network": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "loop": ocp.JsonCheckpointHandler(),
        "metrics": ocp.JsonCheckpointHandler(),
    }
    directory = (workdir / FOLDER).resolve()
    return SealedCheckpoints(directory, options=options, item_handlers=handlers)


def save(
    manager: SealedCheckpoints,
    step: int,
    *,
    network: dict[str, Any],
    training: Any,
    loop: dict[str, Any],
    metrics: dict[str, float] | None,
) -> None:
    """Starts writing a step; `manager.wait_until_finished()` before claiming it is there.

    Args:
      manager: from `open_checkpoints`.
      step: its number; what was saved there before is replaced.
      network: params, batch_stats, ema.
      training: the rest of the state.
      loop: what is not arrays; goes through JSON.
      metrics: the validation, by which the best is kept; None where there was none.
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
    manager: SealedCheckpoints, step: int, *, network: Any, training: Any
) -> tuple[Any, Any, dict[str, Any]]:
    """Reads a step back onto the devices.

    Args:
      manager: from `open_checkpoints`.
      step: from `newest_whole`.
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
      InputError: no such step, no checkpoint at all, a damaged one, or one of another
        architecture. It stays where it is, and no other is taken for it: `train` sets it aside.
    """
    if not (workdir / FOLDER).is_dir():
        raise InputError(f"'{workdir}' holds no checkpoints; train first")
    there = finished_steps(workdir)
    if not there:
        raise InputError(f"'{workdir}' holds no finished checkpoint; train first")
    if which == "best":
        _check_whole(workdir, there[-1])
        loop = _read_loop(workdir, there[-1])
        averaged = loop.get("averaged", False)
        step = chosen_step(loop["history"], metric, averaged=averaged, last=there[-1])
    else:
        step = there[-1] if which == "last" else int(which) if which.isdecimal() else -1
    if step not in there:
        names = ", ".join(map(str, there))
        raise InputError(f"'{workdir}' has no checkpoint '{which}'; choose best, last, {names}")
    _check_whole(workdir, step)
    with _manager(workdir, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        _check_architecture(manager, step, network)
        items = ocp.args.Composite(network=ocp.args.StandardRestore(network))
        return step, manager.restore(step, args=items)["network"]


def read(workdir: Path, step: int, *, network: Any, training: Any) -> tuple[Any, Any]:
    """(network, training) of a step of a run that may be somebody else's: nothing is changed.

    Args:
      workdir: of the run.
      step: one of `finished_steps`.
      network: as for `restore`.
      training: as for `restore`.

    Raises:
      InputError: it is damaged, or of another architecture.
    """
    _check_whole(workdir, step)
    with _manager(workdir, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        return restore(manager, step, network=network, training=training)[:2]


def _read_loop(workdir: Path, step: int) -> dict[str, Any]:
    with _manager(workdir, ocp.CheckpointManagerOptions(read_only=True)) as manager:
        items = ocp.args.Composite(loop=ocp.args.JsonRestore())
        return manager.restore(step, args=items)["loop"]


def _check_whole(workdir: Path, step: int) -> None:
    wrong = damage(workdir / FOLDER / str(step))
    if wrong:
        others = [str(other) for other in finished_steps(workdir) if other != step]
        instead = f"choose another by its step: {', '.join(others)}" if others else "train again"
        raise InputError(
            f"checkpoint {step} in '{workdir / FOLDER}' is damaged: {wrong}; {instead}"
        )


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
