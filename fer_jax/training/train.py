"""The training program: mixture of records in, checkpoints and metrics out.

Read `train` from top to bottom: data, shapes, shardings, state, the step, the loop.
"""

import functools
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import platform
from jax.sharding import Mesh

from fer_jax import checkpoints, compilations, distributed
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
from fer_jax.models import operations, xception
from fer_jax.sharding import (
    batch_sharding,
    check_batch_size,
    make_mesh,
    replicated,
    state_sharding,
)
from fer_jax.training import memory, profile, source, start, summary, swad, validation
from fer_jax.training.environment import write_environment
from fer_jax.training.log import MetricsLog, ProgressLine
from fer_jax.training.optimizer import make_optimizer, make_schedule
from fer_jax.training.step import (
    StepMetrics,
    TrainState,
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
    traced = profile.steps(config.profile, num_steps=num_steps)

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
    score = compile_predict_step(xception.graphdef(**model), network_of(sharding), mesh)

    def estimate(network: dict[str, Any]) -> dict[str, Any]:
        return swad.estimated_statistics(
            network,
            step=compile_moments_step(model, network_of(sharding), mesh),
            batches=source.decoded_batches(
                config, mixture, num_steps=min(swad.ESTIMATED_FROM, steps_per_epoch)
            ),
            augmentation=dict(config.augment),
            key=step_key,
            mesh=mesh,
        )

    workdir.mkdir(parents=True, exist_ok=True)
    writes = distributed.is_first()
    if writes:
        (workdir / "config.json").write_text(to_json(config))
    free = distributed.smallest(memory.free_bytes())
    iterator, place = source.open_source(
        config, mixture, mesh, workdir, num_steps=num_steps, free=free - memory.needed(step)
    )
    if writes:
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
    print(f"  {memory.in_words(step, free)}")
    print(summary.audited(experiment, leaks), end="")
    log = MetricsLog(workdir, after_step=last or 0, writes=writes)
    if last is None:
        log.write_hparams(dict(fields(config)))
    work_unit = platform.work_unit()
    progress = ProgressLine(num_steps, stream=sys.stderr if writes else sys.stdout)
    flop_per_image = operations.TRAINING_PASSES * operations.count(**model)[0]
    peak = operations.peak(jax.devices()[0].device_kind, config.model.dtype)
    # Computed now: a value asked for in the loop would wait behind the steps under way.
    learning_rates = np.asarray(jax.vmap(schedule)(jnp.arange(num_steps)))
    learning_rate_scale = float(state.learning_rate_scale)
    under_way: list[StepMetrics] = []
    waited, since = 0.0, time.monotonic()

    def report(done: list[StepMetrics], reached: int) -> dict[str, float]:
        """Waits for steps, shows them, and starts counting anew."""
        nonlocal waited, since, under_way
        scalars = merged(done, reached)
        elapsed = time.monotonic() - since
        images_per_second = len(done) * config.batch_size / elapsed
        flop_per_second = images_per_second * flop_per_image
        speed = {
            "images_per_second": images_per_second,
            "data_wait_share": waited / elapsed,
            "model_flop_per_second": flop_per_second,
        }
        if peak is not None:
            speed["model_flop_utilisation"] = flop_per_second / (peak * mesh.size)
        progress.show(
            reached, loss=scalars["train_loss"], accuracy=scalars["train_accuracy"], **speed
        )
        work_unit.set_task_status(f"step {reached} of {num_steps}")
        under_way = under_way[len(done) :]
        waited, since = 0.0, time.monotonic()
        rate = float(learning_rates[reached - 1]) * learning_rate_scale
        return scalars | speed | {"epoch": reached / steps_per_epoch, "learning_rate": rate}

    for number in range((last or 0) + 1, num_steps + 1):
        if reason := validation.reason_to_stop(config, history):
            progress.note(reason)
            break
        asked = time.monotonic()
        batch = place(next(iterator))
        waited += time.monotonic() - asked
        profile.turn_on(number, traced, continued_from=last or 0, workdir=workdir)
        state, step_metrics = step(state, batch, step_key)
        jax.tree.map(lambda x: x.copy_to_host_async(), step_metrics)
        under_way.append(step_metrics)
        profile.turn_off(number, traced, state)
        # The host waits for the step before this one: the devices always have work, and batches
        # do not pile up. Only where it validates does it wait for this one too.
        jax.block_until_ready(under_way[:-1])
        if under_way[:-1] and (number - 1) % config.log_every_steps == 0:
            log.write_scalars(number - 1, report(under_way[:-1], number - 1))
        if number % validate_every and number != num_steps:
            continue

        scalars = report(under_way, number)
        validated = validation.validate(score, trajectory_of(state), validated_on, config, mesh)
        history.append({"step": number} | validated)
        progress.note(validation.line(number, history, config.selection_metric))
        state = validation.with_plateau(state, history, config)
        last_step = number == num_steps
        state = validation.with_average(state, history, config, estimate, last=last_step)
        learning_rate_scale = float(state.learning_rate_scale)
        log.write_scalars(number, scalars | validated)
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
        waited, since = 0.0, time.monotonic()

    manager.wait_until_finished()
    manager.close()
    log.close()
    if averages["swad"]:
        # Chosen by the losses on the way, and validated once, here.
        average = validation.validate(score, network_of(state), validated_on, config, mesh)
        return {"step": history[-1]["step"]} | average
    best = checkpoints.best_step(history, config.selection_metric)
    return next(row for row in history if row["step"] == best)


def jitted_step(
    config: Config,
    optimizer: optax.GradientTransformation,
    class_shares: np.ndarray,
    sharding: TrainState,
    mesh: Mesh,
) -> Any:
    """`train_step` as a config has it, jitted: (state, batch, key) to (state, metrics).

    Args:
      config: of the run.
      optimizer: from `make_optimizer`.
      class_shares: float64 [k], how often each class is drawn.
      sharding: of the state, which is donated.
      mesh: over which the batch is divided.
    """
    return jax.jit(
        functools.partial(
            train_step,
            graphdef=xception.graphdef(**model_arguments(config)),
            optimizer=optimizer,
            class_weights=class_weights(class_shares, config.loss.class_weights),
            label_smoothing=config.loss.label_smoothing,
            augmentation=dict(config.augment),
            accumulation_steps=config.accumulation_steps,
            ema_decay=config.ema_decay,
            frozen_statistics=config.frozen_statistics,
            dynamic_loss_scale=config.model.dtype == "float16",
            num_domains=len(config.sources),
            **config.method,
        ),
        in_shardings=(sharding, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(sharding, replicated(mesh)),
        donate_argnums=0,
    )


def main(argv: list[str]) -> None:
    """The verb `train`."""
    parser = OneLineParser(prog="fer-jax train", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of this run")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    arguments, config = parse_with_config(parser, argv)
    compilations.keep()
    best = train(config, arguments.workdir, arguments.data_dir)
    metric = config.selection_metric
    print(f"{metric.replace('_', ' ')} {best[metric]:.4f} at step {best['step']}; score it with:")
    print(f"  fer-jax evaluate --workdir={arguments.workdir}")
