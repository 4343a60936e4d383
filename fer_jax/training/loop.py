"""The training loop that the classifier and the generator share.

The loop owns what every run needs: the first state or the restored one, batches, the log,
validations, checkpoints, the profile, the watchdog and preemption. A `Plan` holds the values and
functions in which the two trainings differ.
"""

import dataclasses
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from fer_jax import checkpoints, distributed
from fer_jax.config import fields, from_json, to_json
from fer_jax.errors import InputError, Preempted
from fer_jax.training import pipeline
from fer_jax.training.log import MetricsLog, ProgressLine, Stopwatch
from fer_jax.training.start import Run
from fer_jax.training.step import to_rows
from fer_jax.training.validation import History, is_due, is_over


class Validated(NamedTuple):
    """What a validation found."""

    state: Any  # to continue with
    metrics: dict[str, float]  # for the log and the history
    line: str  # for the terminal
    average: dict[str, float] | None = None  # metrics of the average, at the end of a run
    images: Mapping[str, np.ndarray] = {}  # uint8 [n, height, width, 3] each, for TensorBoard


@dataclasses.dataclass(frozen=True)
class Plan:
    """The values and functions in which trainings differ."""

    num_steps: int
    validate_every: int  # steps
    metric: str  # of a validation, by which the best checkpoint is kept
    profiled: range  # steps that are traced
    free_bytes: int  # bytes that the step leaves free on each device, for images kept there
    # The state as `jax.ShapeDtypeStruct` with shardings; its class has `split` and `merge`.
    target: Any
    # Makes the state before the first step.
    init: Callable[[], Any]
    # (state, batch, number of the step) to (state, scalars on the devices).
    step: Callable[[Any, dict[str, jax.Array], int], tuple[Any, Any]]
    # (rows of consecutive steps, number of the last, history) to what is logged.
    summarize: Callable[[list[dict[str, float]], int, History], dict[str, float]]
    # (state, history, number of the last step) to what the validation found.
    validate: Callable[[Any, History, int], Validated]
    summary: str  # lines that are printed before the first step
    advice: str  # what to change in the config when a figure is not finite
    # Why the run ends before its last step, or "".
    reason_to_stop: Callable[[History], str] = lambda history: ""
    must_be_finite: Sequence[str] = ()  # figures of a step; () for all of them
    averaged: bool = False  # the network is an average over the trajectory
    flop_per_image: float | None = None  # of a step; None if not counted
    peak_flop_per_second: float | None = None  # of all devices together; None if not known


@dataclasses.dataclass
class _Position:
    state: Any
    number: int  # of the last step
    history: History
    average: dict[str, float] | None  # metrics of the average over the trajectory
    pending: list[Any]  # figures of the steps since the last row of metrics.jsonl
    iterator: grain.DatasetIterator
    place: pipeline.Place
    manager: checkpoints.ChecksummedManager
    log: MetricsLog
    progress: ProgressLine
    stopwatch: Stopwatch


def train(run: Run, plan: Plan) -> tuple[History, dict[str, float] | None]:
    """Trains, or resumes, until the last step or until a validation ends the run.

    Returns (the validations, the metrics of the average over the trajectory if there is one).
    Raises InputError if a figure is not finite (names the step and its records) or the disk is
    full, and Preempted if a shut-down signal arrived; the step is saved.
    """
    at = _start(run, plan)
    run.notice.training_started = True
    try:
        while not is_over(at.history, at.number, plan.num_steps, plan.reason_to_stop(at.history)):
            if is_due(at.history, at.number, plan.num_steps, plan.validate_every):
                _validate(run, plan, at)
            else:
                _step(run, plan, at)
    except Preempted as preempted:
        # Checked first, so that a state that is not finite is never saved.
        _check_finite(run, plan, at, to_rows(at.pending), at.number)
        if at.number not in at.manager.all_steps():
            _save(run, plan, at, None)
        at.manager.wait_until_finished()
        raise Preempted(
            f"{preempted.message}: step {at.number} is saved; rerun the same command to resume"
        ) from None
    finally:
        at.log.close()
    if reason := plan.reason_to_stop(at.history):
        at.progress.note(reason)
    run.watchdog.between_steps(f"saving step {at.number}")
    at.manager.close()
    distributed.wait_for_all("trained")
    return at.history, at.average


def _start(run: Run, plan: Plan) -> _Position:
    """Opens what the loop reads and writes, with the first state or the restored one."""
    config, last = run.config, run.last
    options = {"num_steps": plan.num_steps, "free": plan.free_bytes}
    iterator, place = pipeline.open_pipeline(config, run.mixture, run.mesh, run.workdir, **options)
    manager = checkpoints.open_checkpoints(
        run.workdir, keep=config.keep_checkpoints, metric=plan.metric
    )
    if last:
        network, rest = plan.target.split()
        network, rest = checkpoints.restore(manager, last, network=network, training=rest)
        state = type(plan.target).merge(network, rest)
        iterator.set_state(run.saved["iterator"])
        print(f"continuing from step {last}")
    else:
        state = plan.init()
    print(plan.summary)
    pending = list(run.saved.get("pending", []))
    writes = distributed.is_first()
    log = MetricsLog(run.workdir, after_step=last - len(pending), writes=writes)
    if not last:
        log.write_hparams(dict(fields(from_json(to_json(config)))))
    return _Position(
        state=state,
        number=last,
        history=run.history,
        average=run.saved.get("average"),
        pending=pending,
        iterator=iterator,
        place=place,
        manager=manager,
        log=log,
        progress=ProgressLine(plan.num_steps, stream=sys.stderr if writes else sys.stdout),
        stopwatch=Stopwatch(
            last,
            batch_size=config.batch_size,
            flop_per_image=plan.flop_per_image,
            peak=plan.peak_flop_per_second,
        ),
    )


def _step(run: Run, plan: Plan, at: _Position) -> None:
    at.number += 1
    run.watchdog.step(at.number)
    asked = time.monotonic()
    batch = at.place(next(at.iterator))
    at.stopwatch.waited(time.monotonic() - asked)
    run.watchdog.begin(f"step {at.number}", slow=at.number in plan.profiled)
    start_trace(at.number, plan.profiled, resumed_from=run.last, workdir=run.workdir)
    at.state, figures = plan.step(at.state, batch, at.number)
    jax.tree.map(lambda x: x.copy_to_host_async(), figures)
    at.pending.append(figures)
    end_trace(at.number, plan.profiled, at.state)
    # Waits for the step before this one: the devices always have work, and batches do not pile
    # up. Only a validation waits for the last step, too.
    *before, last = at.pending
    jax.block_until_ready(before)
    if before and (at.number - 1) % run.config.log_every_steps == 0:
        at.log.write_scalars(at.number - 1, _report(run, plan, at, before, at.number - 1))
        at.pending = [last]
    at.manager.raise_if_failed()
    run.notice.check()


def _validate(run: Run, plan: Plan, at: _Position) -> None:
    run.watchdog.between_steps(f"the validation at step {at.number}")
    scalars = _report(run, plan, at, at.pending, at.number) if at.pending else {}
    found = plan.validate(at.state, at.history, at.number)
    # Only now: a signal during the validation leaves everything as it was before.
    at.state, at.average, at.pending = found.state, found.average, []
    at.history = [*at.history, {"step": at.number} | found.metrics]
    at.progress.note(found.line)
    at.log.write_images(at.number, found.images)
    at.log.write_scalars(at.number, scalars | found.metrics)
    at.log.flush()
    _save(run, plan, at, at.history[-1])
    at.stopwatch.restart(at.number)


def _report(run: Run, plan: Plan, at: _Position, done: list[Any], reached: int) -> dict[str, float]:
    """Waits for steps, shows them, and returns their row of metrics.jsonl."""
    rows = to_rows(done)
    _check_finite(run, plan, at, rows, reached)
    scalars = plan.summarize(rows, reached, at.history) | at.stopwatch.figures(reached)
    at.progress.show(reached, scalars)
    return scalars


def _save(run: Run, plan: Plan, at: _Position, metrics: dict[str, float] | None) -> None:
    run.watchdog.between_steps(f"saving step {at.number}")
    loop = {
        "iterator": at.iterator.get_state(),
        "history": at.history,
        "averaged": plan.averaged,
        "average": at.average,
        "pending": to_rows(at.pending),
        "images": len(run.mixture),
    }
    network, rest = at.state.split()
    checkpoints.save(
        at.manager, at.number, network=network, training=rest, loop=loop, metrics=metrics
    )


def _check_finite(
    run: Run, plan: Plan, at: _Position, rows: Sequence[dict[str, float]], reached: int
) -> None:
    """Stops after a step with a value that is not finite; `reached` is the last step."""
    for step, row in enumerate(rows, reached - len(rows) + 1):
        if wrong := [name for name in plan.must_be_finite or row if not math.isfinite(row[name])]:
            at.manager.wait_until_finished()
            saved = max(at.manager.all_steps(), default=None)
            raise InputError(
                f"the {wrong[0].replace('_', ' ')} is not finite at step {step}, of "
                f"{pipeline.describe_batch(run.config, run.mixture, step, run.workdir)}; "
                f"{'no checkpoint was written yet' if saved is None else f'step {saved} is saved'}"
                f". {plan.advice}"
            )


def profiled_steps(option: str, *, num_steps: int) -> range:
    """Parses config.profile, "", "20" or "20-24" with both ends; InputError for other steps."""
    if not option:
        return range(0)
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", option)
    if not found:
        raise InputError(f"config.profile must be steps such as 20-24, got '{option}'")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last <= num_steps:
        raise InputError(f"config.profile '{option}' is outside the run's steps 1-{num_steps}")
    return range(first, last + 1)


def start_trace(number: int, traced: range, *, resumed_from: int, workdir: Path) -> None:
    """Starts the trace before its first step, or before the first after the run resumed."""
    if number in traced and number in (traced.start, resumed_from + 1):
        jax.profiler.start_trace(workdir / "profile")


def end_trace(number: int, traced: range, state: Any) -> None:
    """Ends the trace after its last step."""
    if traced and number == traced[-1]:
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
