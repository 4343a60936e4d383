"""The training program: mixture of records in, checkpoints and metrics out.

Read `train` from top to bottom: data, shapes, shardings, state, the step, the loop.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from clu import parameter_overview, platform

from fer_jax import checkpoints
from fer_jax.config import (
    Config,
    OneLineParser,
    default_data_dir,
    fields,
    from_json,
    parse_with_config,
    to_json,
)
from fer_jax.data import batches
from fer_jax.data.records import Records, as_source, labelled_rows, open_records
from fer_jax.errors import InputError
from fer_jax.evaluation import metrics
from fer_jax.evaluation.predict import PredictStep, compile_predict_step, model_arguments, predict
from fer_jax.models import xception
from fer_jax.sharding import (
    batch_sharding,
    check_batch_size,
    make_mesh,
    replicated,
    state_sharding,
    to_devices,
)
from fer_jax.training.environment import write_environment
from fer_jax.training.log import MetricsLog, ProgressLine
from fer_jax.training.optimizer import (
    make_optimizer,
    make_schedule,
    plateau_scale,
    validations_since_best,
)
from fer_jax.training.step import StepMetrics, TrainState, init_state, train_step
from fer_jax.weights.keras import load_xception

# What may differ when a run is continued; everything else makes it another run.
CHANGEABLE = (
    "test_sets",
    "num_epochs",
    "log_every_steps",
    "early_stopping_patience",
    "keep_checkpoints",
)
VALIDATION_METRICS = ("loss", "accuracy", "balanced_accuracy", "macro_f1")


def train(config: Config, workdir: Path, data_dir: Path) -> dict[str, float]:
    """Trains, or continues what is in `workdir`, until the config's epochs are done.

    Args:
      config: from `fer_jax.config`.
      workdir: receives config.json, environment.json, metrics.jsonl, tensorboard/,
        checkpoints/.
      data_dir: where the datasets were built.

    Returns:
      The best validation: {"step", "validation_loss", ...}.

    Raises:
      InputError: anything in the config, the data or the workdir that a person must change,
        and a loss that is not finite, with its step.
    """
    sources = [as_source(entry) for entry in config.sources]
    if not sources:
        raise InputError("config.sources is empty; name at least one dataset to train on")
    _check_continues(config, workdir)
    mesh = make_mesh()
    check_batch_size(config.batch_size, config.accumulation_steps, mesh)
    mixture = batches.mix(
        [open_records(source.name, source.train, data_dir) for source in sources],
        config.task,
        weights=[source.weight for source in sources],
        soft_labels=config.loss.soft_labels,
        **config.mixture,
    )
    validation = [open_records(source.name, source.validation, data_dir) for source in sources]
    steps_per_epoch = batches.steps_per_epoch(mixture, config.batch_size)
    num_steps = max(1, round(config.num_epochs * steps_per_epoch))
    validate_every = max(1, round(config.validate_every_epochs * steps_per_epoch))
    iterator = batches.train_batches(
        mixture,
        batch_size=config.batch_size,
        image_size=config.model.image_size,
        num_steps=num_steps,
        seed=config.seed,
        process=jax.process_index(),
        num_processes=jax.process_count(),
    )

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
    init = functools.partial(init_state, optimizer=optimizer, model=model, ema=config.ema_decay > 0)
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    shapes = jax.eval_shape(init, init_key)
    sharding = state_sharding(shapes, mesh, config.sharding)
    graphdef = xception.graphdef(**model)

    step = jax.jit(
        functools.partial(
            train_step,
            graphdef=graphdef,
            optimizer=optimizer,
            class_weights=_class_weights(mixture, config.loss.class_weights),
            label_smoothing=config.loss.label_smoothing,
            augmentation=dict(config.augment),
            accumulation_steps=config.accumulation_steps,
            ema_decay=config.ema_decay,
            frozen_statistics=config.frozen_statistics,
            dynamic_loss_scale=config.model.dtype == "float16",
        ),
        in_shardings=(sharding, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(sharding, replicated(mesh)),
        donate_argnums=0,
    )
    score = compile_predict_step(graphdef, network_of(sharding), mesh)

    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(to_json(config))
    write_environment(workdir, data_dir, sorted({source.name for source in sources}))
    manager = checkpoints.open_checkpoints(
        workdir, keep=config.keep_checkpoints, metric=config.selection_metric
    )
    last = manager.latest_step()
    history: list[dict[str, float]] = []
    if last is None:
        state = jax.jit(init, out_shardings=sharding)(init_key)
        if config.init_from:
            state = _start_from_keras(state, Path(config.init_from), sharding)
        print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    else:
        state, loop = _restore(manager, last, shapes, sharding)
        iterator.set_state(loop["iterator"])
        history = loop["history"]
        print(f"continuing from step {last}")
    print(_summary(config, mixture, validation, mesh.size, num_steps))
    log = MetricsLog(workdir, after_step=last or 0)
    if last is None:
        log.write_hparams(dict(fields(config)))
    work_unit = platform.work_unit()
    progress = ProgressLine(num_steps)
    pending: list[StepMetrics] = []
    waited, since = 0.0, time.monotonic()

    for number in range((last or 0) + 1, num_steps + 1):
        if _stops_early(config, history):
            progress.note(f"stopped early: no better validation in {len(history)} of them")
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
        scalars = _merged(pending, number)
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
            validated = _validate(score, network_of(state), validation, config, mesh)
            history.append({"step": number} | validated)
            scalars |= validated
            progress.note(_validation_line(number, history, config.selection_metric))
            state = _with_plateau(state, history, config)
        log.write_scalars(number, scalars)
        if validates:
            log.flush()
            checkpoints.save(
                manager,
                number,
                network=network_of(state),
                training=_training_of(state),
                loop={"iterator": iterator.get_state(), "history": history},
                metrics=history[-1],
            )
        pending, waited, since = [], 0.0, time.monotonic()

    manager.wait_until_finished()
    manager.close()
    log.close()
    best = checkpoints.best_step(history, config.selection_metric)
    return next(row for row in history if row["step"] == best)


def network_of(state: TrainState) -> dict[str, Any]:
    """What a prediction needs of the state."""
    return {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}


def _training_of(state: TrainState) -> dict[str, Any]:
    """The rest of the state; with `network_of` it is all of it."""
    rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in rest.items() if name not in network_of(state)}


def _restore(
    manager: ocp.CheckpointManager, step: int, shapes: TrainState, sharding: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    target = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, sharding
    )
    network, training, loop = checkpoints.restore(
        manager, step, network=network_of(target), training=_training_of(target)
    )
    return TrainState(**network, **training), loop


def _start_from_keras(state: TrainState, path: Path, sharding: TrainState) -> TrainState:
    params, batch_stats, fresh = load_xception(path, state.params, state.batch_stats)
    print(f"started from {path}" + (f"; fresh: {', '.join(fresh)}" if fresh else ""))
    ema = jax.tree.map(jnp.copy, params) if state.ema else {}
    return jax.device_put(
        dataclasses.replace(state, params=params, batch_stats=batch_stats, ema=ema), sharding
    )


def _check_continues(config: Config, workdir: Path) -> None:
    """Refuses to continue a run with a config that would make it another run."""
    file = workdir / "config.json"
    if not file.is_file():
        return
    before, now = dict(fields(from_json(file.read_text()))), dict(fields(config))
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


def _class_weights(mixture: batches.Mixture, kind: str) -> np.ndarray:
    """float32 [classes]: ones, or inverse to how often a class is drawn, with mean weight 1."""
    shares = mixture.class_shares
    if kind == "none":
        return np.ones(len(shares), np.float32)
    present = shares > 0
    weights = np.where(present, 1 / np.where(present, shares, 1), 0) / present.sum()
    return weights.astype(np.float32)


def _merged(pending: list[StepMetrics], last_step: int) -> dict[str, float]:
    """Means over the steps since the last line.

    Raises:
      InputError: a loss that is not finite; names its step.
    """
    stacked = jax.tree.map(lambda *values: np.stack(values), *jax.device_get(pending))
    losses = stacked.loss.total / stacked.loss.count
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        step = last_step - len(pending) + 1 + int(bad[0])
        raise InputError(
            f"the loss is not finite at step {step}; the last checkpoint is whole. Lower "
            "config.optimizer.learning_rate, or set config.optimizer.max_gradient_norm=1"
        )
    merged = StepMetrics.reduce(stacked).compute()
    return {f"train_{name}": float(value) for name, value in merged.items()}


def _validate(
    score: PredictStep,
    network: dict[str, Any],
    validation: list[Records],
    config: Config,
    mesh: Any,
) -> dict[str, float]:
    """Metrics on the validation parts of all sources together."""
    labels, probabilities = [], []
    for records in validation:
        rows = labelled_rows(records, config.task)
        labels.append(records.labels(config.task)[rows])
        probabilities.append(
            predict(
                score,
                network,
                records,
                rows,
                batch_size=config.batch_size,
                image_size=config.model.image_size,
                mesh=mesh,
            )
        )
    scored = metrics.score(np.concatenate(labels), np.concatenate(probabilities))
    return {f"validation_{name}": scored[name] for name in VALIDATION_METRICS}


def _validation_line(step: int, history: list[dict[str, float]], metric: str) -> str:
    since = validations_since_best(history, metric)
    marks = "best so far" if since == 0 else f"best was {since} validations ago"
    figures = "  ".join(
        f"{name.removeprefix('validation_')} {value:.4f}"
        for name, value in history[-1].items()
        if name != "step"
    )
    return f"validation at step {step}: {figures}  ({marks})"


def _stops_early(config: Config, history: list[dict[str, float]]) -> bool:
    patience = config.early_stopping_patience
    return patience > 0 and validations_since_best(history, config.selection_metric) >= patience


def _with_plateau(state: TrainState, history: list[dict[str, float]], config: Config) -> TrainState:
    if config.schedule.name != "plateau":
        return state
    scale = plateau_scale(
        history,
        config.selection_metric,
        patience=config.schedule.plateau_patience,
        factor=config.schedule.plateau_factor,
    )
    where = state.learning_rate_scale.sharding
    return dataclasses.replace(state, learning_rate_scale=jax.device_put(jnp.float32(scale), where))


def _summary(
    config: Config,
    mixture: batches.Mixture,
    validation: list[Records],
    num_devices: int,
    num_steps: int,
) -> str:
    lines = [
        f"  {records.name} {records.split}: {np.sum(mixture.source == index)} images"
        for index, records in enumerate(mixture.records)
    ]
    lines += [
        f"  {records.name} {records.split}: {len(records)} to validate" for records in validation
    ]
    unlabelled = f", {mixture.num_unlabelled} without a label left out"
    return "\n".join(
        [
            f"{config.task}: {len(mixture)} images{unlabelled if mixture.num_unlabelled else ''}; "
            f"{num_steps} steps of {config.batch_size} on {num_devices} "
            f"{jax.devices()[0].device_kind} device(s)",
            *lines,
        ]
    )


def main(argv: list[str]) -> None:
    """The verb `train`."""
    parser = OneLineParser(prog="fer-jax train", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True, help="of this run")
    parser.add_argument("--data_dir", type=Path, default=default_data_dir())
    arguments, config = parse_with_config(parser, argv)
    best = train(config, arguments.workdir, arguments.data_dir)
    print(f"best validation at step {best['step']}; score it with:")
    print(f"  fer-jax evaluate --workdir={arguments.workdir}")
