"""The program that trains a classifier: mixture of records in, checkpoints and metrics out.

Read `train` from top to bottom: data, shapes, shardings, state, the step, the loop.
"""

import functools
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import platform

from fer_jax import checkpoints, distributed, storage
from fer_jax.config import (
    Config,
    fields,
    from_json,
    to_json,
)
from fer_jax.data import batches
from fer_jax.data.experiment import EXCLUSIONS_FILE, allowed_leaks, as_source, open_experiment
from fer_jax.data.synthetic import check_teachers
from fer_jax.errors import InputError, Preempted
from fer_jax.evaluation import baselines
from fer_jax.inference.network import compile_predict_step, model_arguments
from fer_jax.methods import swad
from fer_jax.methods.adaptation import compile_moments_step
from fer_jax.models import flops, xception
from fer_jax.sharding import (
    check_batch_size,
    make_mesh,
    replicated,
    state_sharding,
)
from fer_jax.training import (
    lock,
    memory,
    pipeline,
    preemption,
    profile,
    start,
    summary,
    validation,
    watchdog,
)
from fer_jax.training.environment import write_environment
from fer_jax.training.log import MetricsLog, ProgressLine, write_atomically
from fer_jax.training.optimizer import make_optimizer, make_schedule
from fer_jax.training.speed import Stopwatch
from fer_jax.training.step import (
    StepMetrics,
    as_numbers,
    from_numbers,
    init_state,
    jitted_step,
    merged,
    network_of,
    not_finite,
    training_of,
    trajectory_of,
)


def train(config: Config, workdir: Path, data_dir: Path) -> dict[str, float]:
    """Trains, or continues what is in `workdir`, until the config's epochs are done.

    Args:
      config: from `fer_jax.config`.
      workdir: receives config.json, environment.json, training_labels.csv, metrics.jsonl,
        tensorboard/, checkpoints/.
      data_dir: where the datasets were built.

    Returns:
      The best validation: {"step", "validation_loss", ...}; with an average over the trajectory,
      the validation of it.

    Raises:
      InputError: anything in the config, the data or the workdir that a person must change,
        and a loss that is not finite, with its step.
      Preempted: a signal came; what was done is saved.
    """
    storage.check_links(workdir)
    with lock.held(workdir), preemption.heeded() as notice, watchdog.watching() as dog:
        return _train(config, workdir, data_dir, notice, dog)


def _train(
    config: Config,
    workdir: Path,
    data_dir: Path,
    notice: preemption.Notice,
    dog: watchdog.Watchdog,
) -> dict[str, float]:
    start.check_continues(config, workdir, data_dir)
    last, loop = checkpoints.latest_valid_step(workdir)
    history: list[dict[str, float]] = loop.get("history", [])
    mesh = make_mesh()
    check_batch_size(config.batch_size, config.accumulation_steps, mesh)
    experiment = open_experiment(config, data_dir)
    leaks = allowed_leaks(experiment.sides, allow=config.allow_leaks)
    check_teachers(experiment.train, experiment.test, data_dir, allow=config.allow_leaks)
    mixture = batches.mix(
        experiment.train,
        config.task,
        weights=[as_source(entry).weight for entry in config.sources],
        soft_labels=config.loss.soft_labels,
        **config.mixture,
    )
    start.check_images(len(mixture), loop, workdir)
    validated_on = validation.labelled_parts(experiment.validation, config.task)
    steps_per_epoch = batches.steps_per_epoch(mixture, config.batch_size)
    num_steps = max(1, round(config.num_epochs * steps_per_epoch))
    validate_every = max(1, round(config.validate_every_epochs * steps_per_epoch))
    traced = profile.steps(config.profile, num_steps=num_steps)
    if validation.is_over(config, history, last, num_steps):
        print(f"'{workdir}' is finished: nothing to do after step {last}")
        return _outcome(config, history, loop.get("average"))

    schedule = make_schedule(
        learning_rate=config.optimizer.learning_rate,
        num_steps=num_steps,
        warmup_steps=round(config.schedule.warmup_epochs * steps_per_epoch),
        name=config.schedule.name,
    )
    optimizer = make_optimizer(
        schedule, **{k: v for k, v in config.optimizer.items() if k != "learning_rate"}
    )
    model = model_arguments(config)
    averages = {"ema": config.ema_decay > 0, "swad": config.weight_average == "swad"}
    init = functools.partial(init_state, optimizer=optimizer, model=model, **averages)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    shapes = jax.eval_shape(init, init_key)
    sharding = state_sharding(shapes, mesh, config.sharding)
    jitted = jitted_step(config, optimizer, mixture.class_shares, sharding, mesh)
    # Not `device_put`, which takes no keys where other processes have devices too.
    step_key = jax.jit(lambda key: key, out_shardings=replicated(mesh))(step_key)
    step = memory.compile_that_fits(
        lambda size: jitted.lower(
            shapes, batches.shapes(mixture, size, config.model.image_size), step_key
        ),
        config.batch_size,
        mesh.size * config.accumulation_steps,
    )
    graphdef = xception.graphdef(**model)
    score = compile_predict_step(graphdef, network_of(sharding), mesh, flip=config.test_time_flip)
    score = dog.tending(notice.checking(score), "a batch of the validation")

    writes = distributed.is_first()
    if writes:
        write_atomically(workdir / "config.json", to_json(config))
    free = distributed.smallest(memory.free_bytes())
    iterator, place = pipeline.open_source(
        config, mixture, mesh, workdir, num_steps=num_steps, free=free - memory.needed(step)
    )
    if writes:
        if config.exclusions:
            write_atomically(workdir / EXCLUSIONS_FILE, Path(config.exclusions).read_bytes())
        write_environment(workdir, data_dir, experiment, leaks)
        baselines.write(workdir, experiment.train, config.task)
    manager = checkpoints.open_checkpoints(
        workdir, keep=config.keep_checkpoints, metric=config.selection_metric
    )
    if last:
        state = start.restored(manager, last, shapes, sharding)
        iterator.set_state(loop["iterator"])
        print(f"continuing from step {last}")
    else:
        state = start.fresh(init, init_key, sharding, config.init_from)
        print(summary.parameters(state.params))
    print(summary.data(config, mixture, validated_on, mesh.size, num_steps))
    print(f"  {memory.in_words(step, free)}")
    print(summary.audited(experiment, leaks), end="")
    # What the steps since the last row of metrics.jsonl reported.
    under_way = from_numbers(loop.get("pending", []))
    log = MetricsLog(workdir, after_step=last - len(under_way), writes=writes)
    if not last:
        log.write_hparams(dict(fields(from_json(to_json(config)))))
    work_unit = platform.work_unit()
    progress = ProgressLine(num_steps, stream=sys.stderr if writes else sys.stdout)
    peak = flops.peak(jax.devices()[0].device_kind, config.model.dtype)
    stopwatch = Stopwatch(
        last,
        batch_size=config.batch_size,
        flop_per_image=flops.TRAINING_PASSES * flops.count(**model)[0],
        peak=None if peak is None else peak * mesh.size,
    )
    # Computed now: a value asked for in the loop would wait behind the steps under way.
    learning_rates = np.asarray(jax.vmap(schedule)(jnp.arange(num_steps)))
    learning_rate_scale = float(state.learning_rate_scale)
    number, average = last, loop.get("average")

    def check_finite(done: list[StepMetrics], reached: int) -> None:
        if (step := not_finite(done, reached)) is None:
            return
        manager.wait_until_finished()
        saved = max(manager.all_steps(), default=None)
        raise InputError(
            f"the loss is not finite at step {step}, of "
            f"{pipeline.told_batch(config, mixture, step, workdir)}; "
            f"{'no checkpoint was written yet' if saved is None else f'step {saved} is saved'}. "
            "Lower config.optimizer.learning_rate, or set config.optimizer.max_gradient_norm=1"
        )

    def report(done: list[StepMetrics], reached: int) -> dict[str, float]:
        """Waits for steps and shows them; what metrics.jsonl has of them."""
        check_finite(done, reached)
        scalars, speed = merged(done), stopwatch.figures(reached)
        progress.show(
            reached, loss=scalars["train_loss"], accuracy=scalars["train_accuracy"], **speed
        )
        work_unit.set_task_status(f"step {reached} of {num_steps}")
        rate = float(learning_rates[min(reached, num_steps) - 1]) * learning_rate_scale
        return scalars | speed | {"epoch": reached / steps_per_epoch, "learning_rate": rate}

    def estimate(network: dict[str, Any]) -> dict[str, Any]:
        """BatchNorm's statistics of an average."""
        moments = compile_moments_step(model, network_of(sharding), mesh)
        return swad.estimated_statistics(
            network,
            step=dog.tending(notice.checking(moments), "a batch of the average's statistics"),
            batches=pipeline.decoded_batches(
                config, mixture, num_steps=min(swad.ESTIMATED_FROM, steps_per_epoch)
            ),
            augmentation=dict(config.augment),
            key=step_key,
            mesh=mesh,
        )

    def save(metrics: dict[str, float] | None) -> None:
        """Starts writing where the run is."""
        dog.between_steps(f"saving step {number}")
        loop = {
            "iterator": iterator.get_state(),
            "history": history,
            "averaged": averages["swad"],
            "average": average,
            "pending": as_numbers(under_way),
            "images": len(mixture),
        }
        network, training = network_of(state), training_of(state)
        checkpoints.save(
            manager, number, network=network, training=training, loop=loop, metrics=metrics
        )

    notice.trained = True
    try:
        while not validation.is_over(config, history, number, num_steps):
            if validation.is_due(history, number, num_steps, validate_every):
                dog.between_steps(f"the validation at step {number}")
                scalars = report(under_way, number)
                validated = validation.validate(
                    score, trajectory_of(state), validated_on, config, mesh
                )
                following = [*history, {"step": number} | validated]
                progress.note(validation.line(number, following, config.selection_metric))
                following_state = validation.with_average(
                    validation.with_plateau(state, following, config),
                    following,
                    config,
                    estimate,
                    last=number >= num_steps,
                )
                if averages["swad"] and validation.is_over(config, following, number, num_steps):
                    # Chosen by the losses on the way, and validated once, here.
                    average = validation.validate(
                        score, network_of(following_state), validated_on, config, mesh
                    )
                # Only now: a signal on the way leaves what was before the validation.
                state, history, under_way = following_state, following, []
                learning_rate_scale = float(state.learning_rate_scale)
                log.write_scalars(number, scalars | validated)
                log.flush()
                save(history[-1])
                stopwatch.restart(number)
                continue

            number += 1
            dog.step(number)
            asked = time.monotonic()
            batch = place(next(iterator))
            stopwatch.waited(time.monotonic() - asked)
            dog.doing(f"step {number}", slow=number in traced)
            profile.turn_on(number, traced, continued_from=last, workdir=workdir)
            state, step_metrics = step(state, batch, step_key)
            jax.tree.map(lambda x: x.copy_to_host_async(), step_metrics)
            under_way.append(step_metrics)
            profile.turn_off(number, traced, state)
            # The host waits for the step before this one: the devices always have work, and
            # batches do not pile up. Only where it validates does it wait for this one too.
            jax.block_until_ready(under_way[:-1])
            if under_way[:-1] and (number - 1) % config.log_every_steps == 0:
                log.write_scalars(number - 1, report(under_way[:-1], number - 1))
                under_way = under_way[-1:]
            manager.raise_if_failed()
            notice.check()
    except Preempted as asked:
        # First of all: a state that is broken shall not be the one to continue from.
        check_finite(under_way, number)
        if number not in manager.all_steps():
            save(None)
        manager.wait_until_finished()
        raise Preempted(
            f"{asked.message}: step {number} is saved; the same command continues"
        ) from None
    finally:
        log.close()

    if reason := validation.reason_to_stop(config, history):
        progress.note(reason)
    dog.between_steps(f"saving step {number}")
    manager.close()
    distributed.wait_for_all("trained")
    return _outcome(config, history, average)


def _outcome(
    config: Config, history: list[dict[str, float]], average: dict[str, float] | None
) -> dict[str, float]:
    """The validation of what "best" means, with its step."""
    if average is not None:
        return {"step": history[-1]["step"]} | average
    best = checkpoints.best_step(history, config.selection_metric)
    return next(row for row in history if row["step"] == best)
