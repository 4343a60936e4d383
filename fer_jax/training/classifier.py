"""The training of a classifier: a mixture of records in, checkpoints and metrics out.

Read `train` from top to bottom: data, shapes, compiled programs, and the plan for the loop.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview

from fer_jax import checkpoints, distributed
from fer_jax.compilations import announce
from fer_jax.config import Config
from fer_jax.data import batches
from fer_jax.data.augment import Augmentation
from fer_jax.data.experiment import Experiment, Leaks
from fer_jax.data.ledger import FEW_IMAGES
from fer_jax.data.records import Records, labelled_rows
from fer_jax.evaluation import baselines
from fer_jax.inference.network import PredictStep, compile_predict_step, model_arguments
from fer_jax.methods import swad
from fer_jax.methods.adaptation import MomentsStep, compile_moments_step
from fer_jax.models import flops, kernels, xception
from fer_jax.schema import TASKS, UNKNOWN
from fer_jax.sharding import (
    batch_sharding,
    check_batch_size,
    describe_devices,
    state_sharding,
    with_shardings,
)
from fer_jax.training import initial, linear, loop, memory, start, validation
from fer_jax.training.loop import Plan, Validated
from fer_jax.training.start import Run
from fer_jax.training.step import (
    ALL_BUT_HEAD,
    TrainState,
    init_state,
    jit_train_step,
    make_optimizer,
    make_schedule,
    step_options,
)
from fer_jax.training.validation import History

# A row of the table of parameters.
BlockRow = dataclasses.make_dataclass(
    "BlockRow", ("block", "layers", "arrays", "parameters", "share")
)


def train(config: Config, workdir: Path, data_dir: Path) -> dict[str, float]:
    """Trains, or resumes what is in `workdir`, until the config's epochs are done.

    The workdir receives config.json, environment.json, training_labels.csv, metrics.jsonl,
    tensorboard/ and checkpoints/. The datasets were built in `data_dir`. Returns the best
    validation: {"step", "validation_loss", ...}; with an average over the trajectory, the
    validation of that. Raises InputError for anything in the config, the data or the workdir that
    the user must change, and for a loss that is not finite, with its step; Preempted if a signal
    came, after the last step is saved.
    """
    if config.features:
        return linear.train(config, workdir, data_dir)
    soft_labels = config.loss.soft_labels
    with start.open_run(config, workdir, data_dir, soft_labels=soft_labels) as run:
        check_batch_size(config.batch_size, config.accumulation_steps, run.mesh)
        parts = [one.select(labelled_rows(one, config.task)) for one in run.experiment.validation]
        steps_per_epoch = batches.steps_per_epoch(run.mixture, config.batch_size)
        num_steps = max(1, round(config.num_epochs * steps_per_epoch))
        profiled = loop.profiled_steps(config.profile, num_steps=num_steps)
        reason = validation.reason_to_stop(config, run.history)
        if validation.is_over(run.history, run.last, num_steps, reason):
            print(f"'{workdir}' is finished: nothing to do after step {run.last}")
            return _best(config, run.history, run.saved.get("average"))
        plan = _plan(run, parts, num_steps, steps_per_epoch, profiled)
        return _best(config, *loop.train(run, plan))


class _Programs(NamedTuple):
    step: jax.stages.Compiled
    score: PredictStep
    moments: MomentsStep | None  # for an average over the trajectory


def _plan(
    run: Run, parts: list[Records], num_steps: int, steps_per_epoch: int, profiled: range
) -> Plan:
    """Compiles the programs of a run, writes its inputs, and plans its loop."""
    config, mesh = run.config, run.mesh
    # Builds them, or says that they are missing, before the lines about compilations.
    if jax.default_backend() == "cpu":
        kernels.prepare()
    schedule = make_schedule(
        learning_rate=config.optimizer.learning_rate,
        num_steps=num_steps,
        warmup_steps=round(config.schedule.warmup_epochs * steps_per_epoch),
        name=config.schedule.name,
    )
    options = {name: value for name, value in config.optimizer.items() if name != "learning_rate"}
    optimizer = make_optimizer(schedule, **options, freeze=config.freeze)
    model = model_arguments(config)
    averaged = config.weight_average == "swad"
    init = functools.partial(
        init_state, optimizer=optimizer, model=model, ema=config.ema_decay > 0, swad=averaged
    )
    init_key, step_key = start.make_keys(run)
    shapes = jax.eval_shape(init, init_key)
    sharding = state_sharding(shapes, mesh, config.sharding)
    target = with_shardings(shapes, sharding)
    found = initial.read(config) if not run.last else {}
    if found:  # refused now, not after minutes of compiling
        own = {"params": shapes.params, "batch_stats": shapes.batch_stats}
        initial.fill(found, own, config.init_from)
    programs = _compile(run, optimizer, target, sharding, step_key)
    if distributed.is_first():
        start.write_inputs(run)
        baselines.write(run.workdir, run.experiment.train, config.task)
    free = distributed.smallest(memory.free_bytes())
    # Computed now: a value that the loop asks of a device waits behind the steps in progress.
    learning_rates = np.asarray(jax.vmap(schedule)(jnp.arange(num_steps)))

    def summarize(rows: list[dict[str, float]], reached: int, history: History) -> dict[str, float]:
        means = {f"train_{name}": sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        rate = float(learning_rates[min(reached, num_steps) - 1])
        rate *= validation.learning_rate_scale(history, config)
        return means | {"epoch": reached / steps_per_epoch, "learning_rate": rate}

    peak = flops.peak(jax.devices()[0].device_kind, config.model.dtype)
    return Plan(
        num_steps=num_steps,
        validate_every=max(1, round(config.validate_every_epochs * steps_per_epoch)),
        metric=config.selection_metric,
        profiled=profiled,
        free_bytes=free - memory.needed(programs.step),
        target=target,
        init=functools.partial(first_state, init, init_key, sharding, found, config.init_from),
        step=lambda state, batch, number: programs.step(state, batch, step_key),
        summarize=summarize,
        validate=functools.partial(
            _validate,
            run=run,
            parts=parts,
            programs=programs,
            num_steps=num_steps,
            num_estimated=min(swad.ESTIMATED_FROM, steps_per_epoch),
            step_key=step_key,
        ),
        reason_to_stop=functools.partial(validation.reason_to_stop, config),
        summary=_describe(run, parts, num_steps, memory.describe(programs.step, free)),
        must_be_finite=("loss",),
        advice=(
            "Lower config.optimizer.learning_rate, or set config.optimizer.max_gradient_norm=1"
        ),
        averaged=averaged,
        # Head alone: what is frozen has no gradient.
        flop_per_image=(1 if config.freeze == ALL_BUT_HEAD else flops.TRAINING_PASSES)
        * flops.count(**model)[0],
        peak_flop_per_second=None if peak is None else peak * mesh.size,
    )


def _compile(
    run: Run, optimizer: Any, target: TrainState, sharding: TrainState, step_key: jax.Array
) -> _Programs:
    """Compiles all programs of a run now, so that the loop can stop after each of its steps."""
    config, mesh = run.config, run.mesh
    options = step_options(config, optimizer, run.mixture.class_shares)
    jitted = jit_train_step(options, sharding, mesh)
    size = config.model.image_size
    step = memory.compile_that_fits(
        lambda batch_size: jitted.lower(
            target, batches.shapes(run.mixture, batch_size, size), step_key
        ),
        config.batch_size,
        mesh.size * config.accumulation_steps,
        what="the train step",
    )
    images = jax.ShapeDtypeStruct(
        (config.batch_size, size, size, 3), np.uint8, sharding=batch_sharding(mesh)
    )
    model = model_arguments(config)
    score = compile_predict_step(
        xception.graphdef(**model), sharding.network, mesh, flip=config.test_time_flip
    )
    moments = None
    with announce("the validation step"):
        score = score.lower(target.network, images).compile()
    if config.weight_average == "swad" and not config.frozen_statistics:
        moments = compile_moments_step(model, sharding.network, mesh)
        with announce("the statistics of the average"):
            moments = moments.lower(target.network, images).compile()
        what = "a batch of the average's statistics"
        moments = run.watchdog.wrap(moments, what, run.notice.check)
    score = run.watchdog.wrap(score, "a batch of the validation", run.notice.check)
    return _Programs(step, score, moments)


def first_state(
    init: Any,
    key: jax.Array,
    sharding: TrainState,
    found: dict[str, np.ndarray],
    init_from: str,
) -> TrainState:
    """Makes the state before the first step from a key, with `init`, and prints its size.

    `found` are the arrays of `init_from`, as of `initial.read`; {} for random ones. InputError if
    they do not fit.
    """
    state = jax.jit(init, out_shardings=sharding)(key)
    if found:
        own = {"params": state.params, "batch_stats": state.batch_stats}
        filled, left = initial.fill(found, own, init_from)
        params, batch_stats = filled["params"], filled["batch_stats"]
        print(f"started from {init_from}" + (f"; fresh: {', '.join(left)}" if left else ""))
        state = dataclasses.replace(
            state,
            params=params,
            batch_stats=batch_stats,
            ema=jax.tree.map(jnp.copy, params) if state.ema else {},
            swad=swad.fresh_average(params, batch_stats) if state.swad else {},
        )
        state = jax.device_put(state, sharding)
    print(describe_parameters(state.params))
    return state


def _validate(
    state: TrainState,
    history: History,
    number: int,
    *,
    run: Run,
    parts: list[Records],
    programs: _Programs,
    num_steps: int,
    num_estimated: int,
    step_key: jax.Array,
) -> Validated:
    """Validates the trained network, and at the end the average over its trajectory."""
    config, mesh = run.config, run.mesh

    def estimate(network: dict[str, Any]) -> dict[str, Any]:
        """Estimates BatchNorm's statistics of an average, from the first training batches."""
        assert programs.moments is not None
        return swad.estimated_statistics(
            network,
            step=programs.moments,
            batches=batches.train_batches(
                run.mixture,
                functools.partial(run.mixture.images, image_size=config.model.image_size),
                batch_size=config.batch_size,
                num_steps=num_estimated,
                seed=config.seed,
            ),
            augmentation=Augmentation(**config.augment),
            key=step_key,
            mesh=mesh,
        )

    metrics = validation.validate(programs.score, state.trajectory, parts, config, mesh)
    following = [*history, {"step": number} | metrics]
    state = validation.with_average(
        validation.with_plateau(state, following, config),
        following,
        config,
        estimate,
        last=number >= num_steps,
    )
    average = None
    reason = validation.reason_to_stop(config, following)
    if state.swad and validation.is_over(following, number, num_steps, reason):
        # Chosen by the losses on the way, and validated once, here.
        average = validation.validate(programs.score, state.network, parts, config, mesh)
    line = validation.line(number, following, config.selection_metric)
    return Validated(state, metrics, line, average)


def _best(config: Config, history: History, average: dict[str, float] | None) -> dict[str, float]:
    """The validation of the network that "best" means, with its step."""
    if average is not None:
        return {"step": history[-1]["step"]} | average
    best = checkpoints.best_step(history, config.selection_metric)
    return next(row for row in history if row["step"] == best)


def describe_parameters(params: dict[str, Any]) -> str:
    """Returns a table of the parameters of each block, with their total."""
    total = parameter_overview.count_parameters(params)
    layers: dict[str, dict[str, Any]] = {block: {} for block in (*xception.FLOWS, "head")}
    for name, layer in params.items():
        block = re.sub(r"\d+$", "", name)
        layers[block if block in xception.FLOWS else "head"][name] = layer
    rows = []
    for block, inside in layers.items():
        count = int(parameter_overview.count_parameters(inside))
        if arrays := len(jax.tree.leaves(inside)):
            rows.append(BlockRow(block, len(inside), arrays, count, f"{count / total:.1%}"))
    size = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(params))
    table = parameter_overview.make_table(rows)
    return f"{table}\n{total:,} parameters, {size / 2**20:.1f} MiB"


def _describe(run: Run, parts: Sequence[Records], num_steps: int, memory: str) -> str:
    """Returns what a run trains and validates on, in how many steps, and what needs attention."""
    config, mixture, experiment = run.config, run.mixture, run.experiment
    text = [
        f"{config.task}: {len(mixture)} images; {num_steps} steps of {config.batch_size} on "
        f"{describe_devices(run.mesh)}"
    ]
    text += [
        _count_images(records, int(np.sum(mixture.source == index)), "to train on")
        for index, records in enumerate(mixture.records)
    ]
    text += [
        _count_images(records, len(part), "to validate")
        for records, part in zip(experiment.validation, parts, strict=True)
    ]
    return "\n".join([*text, f"  {memory}", *_caveats(experiment, run.leaks)])


def _caveats(experiment: Experiment, leaks: Leaks) -> list[str]:
    """Returns a line for what was left out, not audited, or leaks; usually there is none."""
    text = [
        f"  {name}: {count} records left out by config.exclusions"
        for name, count in experiment.left_out.items()
    ]
    for records in (*experiment.train, *experiment.validation):
        if records.skipped:
            text.append(
                f"  {records.name} {records.split}: {len(records.skipped)} damaged records "
                f"skipped (environment.json lists them), such as {records.skipped[0]}"
            )
    text += [f"  {line}" for line in unreliable(experiment)]
    if experiment.absent:
        text.append(f"  not built here, and not audited: {', '.join(experiment.absent)}")
    if leaks.counts:
        text.append(f"  LEAKS, as config.allow_leaks allows: {leaks.in_words()}")
    if leaks.unknown:
        text.append(f"  unknown whose faces are behind: {'; '.join(leaks.unknown)}")
    return text


def unreliable(experiment: Experiment) -> list[str]:
    """Returns a line for few validation images, and for classes that only a test set has."""
    task = experiment.task
    labels = {
        part: [records.labels(task) for records in getattr(experiment, part)]
        for part in ("train", "validation", "test")
    }
    text = []
    num_validation = int(np.sum(np.concatenate(labels["validation"]) != UNKNOWN))
    if num_validation < FEW_IMAGES:
        text.append(
            f"only {num_validation} images to validate on: the best checkpoint is mostly chance"
        )
    trained = {UNKNOWN, *np.concatenate(labels["train"]).tolist()}
    for records, present in zip(experiment.test, labels["test"], strict=True):
        if untrained := sorted({*present.tolist()} - trained):
            names = ", ".join(TASKS[task][index] for index in untrained)
            text.append(f"{records.name} {records.split} has {names}, but no training image has")
    return text


def _count_images(records: Records, labelled: int, purpose: str) -> str:
    left_out = len(records) - labelled
    unlabelled = f" ({left_out} without a label left out)" if left_out else ""
    return f"  {records.name} {records.split}: {labelled} images {purpose}{unlabelled}"
