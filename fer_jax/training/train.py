"""The training program: mixture of records in, checkpoints and metrics out.

Read `train` from top to bottom: data, shapes, shardings, state, the step, the loop.
"""

import functools
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from clu import platform

from fer_jax import checkpoints
from fer_jax.config import (
    Config,
    OneLineParser,
    default_data_dir,
    fields,
    parse_with_config,
    to_json,
)
from fer_jax.data import batches
from fer_jax.data.audit import EXCLUSIONS_FILE, allowed_leaks, open_experiment
from fer_jax.data.generated import check_teachers
from fer_jax.data.records import as_source
from fer_jax.evaluation import baselines
from fer_jax.evaluation.adaptation import compile_moments_step
from fer_jax.evaluation.predict import compile_predict_step, model_arguments
from fer_jax.models import xception
from fer_jax.sharding import (
    batch_sharding,
    check_batch_size,
    make_mesh,
    replicated,
    state_sharding,
    to_devices,
)
from fer_jax.training import start, summary, swad, validation
from fer_jax.training.environment import write_environment
from fer_jax.training.log import MetricsLog, ProgressLine
from fer_jax.training.optimizer import make_optimizer, make_schedule
from fer_jax.training.step import (
    StepMetrics,
    class_weights,
    init_state,
    merged,
    network_of,
    train_step,
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
    """
    start.check_continues(config, workdir)
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
    validated_on = validation.labelled_parts(experiment.validation, config.task)
    steps_per_epoch = batches.steps_per_epoch(mixture, config.batch_size)
    num_steps = max(1, round(config.num_epochs * steps_per_epoch))
    validate_every = max(1, round(config.validate_every_epochs * steps_per_epoch))
    training_batches = functools.partial(
        batches.train_batches,
        mixture,
        batch_size=config.batch_size,
        image_size=config.model.image_size,
        seed=config.seed,
        process=jax.process_index(),
        num_processes=jax.process_count(),
    )
    iterator = training_batches(num_steps=num_steps)

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
    graphdef = xception.graphdef(**model)

    step = jax.jit(
        functools.partial(
            train_step,
            graphdef=graphdef,
            optimizer=optimizer,
            class_weights=class_weights(mixture.class_shares, config.loss.class_weights),
            label_smoothing=config.loss.label_smoothing,
            augmentation=dict(config.augment),
            accumulation_steps=config.accumulation_steps,
            ema_decay=config.ema_decay,
            frozen_statistics=config.frozen_statistics,
            dynamic_loss_scale=config.model.dtype == "float16",
            num_domains=len(mixture.records),
            **config.method,
        ),
        in_shardings=(sharding, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(sharding, replicated(mesh)),
        donate_argnums=0,
    )
    score = compile_predict_step(graphdef, network_of(sharding), mesh)

    def estimate(network: dict[str, Any]) -> dict[str, Any]:
        return swad.estimated_statistics(
            network,
            step=compile_moments_step(model, network_of(sharding), mesh),
            batches=training_batches(num_steps=min(swad.ESTIMATED_FROM, steps_per_epoch)),
            augmentation=dict(config.augment),
            key=step_key,
            mesh=mesh,
        )

    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(to_json(config))
    if config.exclusions:
        shutil.copyfile(config.exclusions, workdir / EXCLUSIONS_FILE)
    write_environment(workdir, data_dir, experiment, leaks)
    baselines.write(workdir, experiment.train, config.task)
    manager = checkpoints.open_checkpoints(
        workdir, keep=config.keep_checkpoints, metric=config.selection_metric
    )
    last = manager.latest_step()
    history: list[dict[str, float]] = []
    if last is None:
        state = start.fresh(init, init_key, sharding, config.init_from)
        print(summary.parameters(state.params))
    else:
        state, loop = start.restored(manager, last, shapes, sharding)
        iterator.set_state(loop["iterator"])
        history = loop["history"]
        print(f"continuing from step {last}")
    print(summary.data(config, mixture, validated_on, mesh.size, num_steps))
    print(summary.audited(experiment, leaks), end="")
    log = MetricsLog(workdir, after_step=last or 0)
    if last is None:
        log.write_hparams(dict(fields(config)))
    work_unit = platform.work_unit()
    progress = ProgressLine(num_steps)
    pending: list[StepMetrics] = []
    waited, since = 0.0, time.monotonic()

    for number in range((last or 0) + 1, num_steps + 1):
        if reason := validation.reason_to_stop(config, history):
            progress.note(reason)
            break
        asked = time.monotonic()
        batch = to_devices(next(iterator), mesh)
        waited += time.monotonic() - asked
        state, step_metrics = step(state, batch, step_key)
        pending.append(step_metrics)
        validates = number % validate_every == 0 or number == num_steps
        if not validates and number % config.log_every_steps:
            continue

        # The only place where the host waits for the device.
        scalars = merged(pending, number)
        elapsed = time.monotonic() - since
        images_per_second = len(pending) * config.batch_size / elapsed
        wait = waited / elapsed
        scalars |= {
            "epoch": number / steps_per_epoch,
            "learning_rate": float(jnp.asarray(schedule(number - 1)) * state.learning_rate_scale),
            "images_per_second": images_per_second,
            "data_wait_share": wait,
        }
        progress.show(
            number,
            loss=scalars["train_loss"],
            accuracy=scalars["train_accuracy"],
            images_per_second=images_per_second,
            data_wait_share=wait,
        )
        work_unit.set_task_status(f"step {number} of {num_steps}")
        if validates:
            validated = validation.validate(score, trajectory_of(state), validated_on, config, mesh)
            history.append({"step": number} | validated)
            scalars |= validated
            progress.note(validation.line(number, history, config.selection_metric))
            state = validation.with_plateau(state, history, config)
            last_step = number == num_steps
            state = validation.with_average(state, history, config, estimate, last=last_step)
        log.write_scalars(number, scalars)
        if validates:
            log.flush()
            checkpoints.save(
                manager,
                number,
                network=network_of(state),
                training=training_of(state),
                loop={
                    "iterator": iterator.get_state(),
                    "history": history,
                    "averaged": averages["swad"],
                },
                metrics=history[-1],
            )
        pending, waited, since = [], 0.0, time.monotonic()

    manager.wait_until_finished()
    manager.close()
    log.close()
    if averages["swad"]:
        # Chosen by the losses on the way, and validated once, here.
        average = validation.validate(score, network_of(state), validated_on, config, mesh)
        return {"step": history[-1]["step"]} | average
    best = checkpoints.best_step(history, config.selection_metric)
    return next(row for row in history if row["step"] == best)


def main(argv: list[str]) -> None:
    """The verb `train`."""
    parser = OneLineParser(prog="fer-jax train", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of this run")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    arguments, config = parse_with_config(parser, argv)
    best = train(config, arguments.workdir, arguments.data_dir)
    metric = config.selection_metric
    print(f"{metric.replace('_', ' ')} {best[metric]:.4f} at step {best['step']}; score it with:")
    print(f"  fer-jax evaluate --workdir={arguments.workdir}")
