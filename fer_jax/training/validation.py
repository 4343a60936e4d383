"""Validations: the metrics of a run's validation parts, and what follows from those so far."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fer_jax.checkpoints import best_step, better
from fer_jax.config import Config
from fer_jax.data.records import Records
from fer_jax.evaluation import metrics
from fer_jax.evaluation.predictions import predict
from fer_jax.inference.network import PredictStep
from fer_jax.methods.swad import decide, with_decision
from fer_jax.training.step import TrainState

METRICS = ("loss", "accuracy", "balanced_accuracy", "macro_f1")

History = list[dict[str, float]]  # {"step", "validation_loss", ...}, oldest first


def validate(
    score: PredictStep,
    network: dict[str, Any],
    parts: Sequence[Records],
    config: Config,
    mesh: Mesh,
) -> dict[str, float]:
    """Computes one {"validation_loss", ...} for each of `METRICS` on all labelled parts."""
    sizes = {"batch_size": config.batch_size, "image_size": config.model.image_size}
    probabilities = [
        predict(score, network, part, np.arange(len(part)), mesh=mesh, **sizes) for part in parts
    ]
    labels = np.concatenate([part.labels(config.task) for part in parts])
    scored = metrics.score(labels, np.concatenate(probabilities))
    return {f"validation_{name}": scored[name] for name in METRICS}


def line(step: int, history: History, metric: str) -> str:
    """Formats the last validation."""
    step_of_best = best_step(history, metric)
    best = "best so far" if step_of_best == history[-1]["step"] else f"best at step {step_of_best}"
    figures = "  ".join(
        f"{name.removeprefix('validation_')} {value:.4f}"
        for name, value in history[-1].items()
        if name != "step"
    )
    return f"validation at step {step}: {figures}  ({best})"


def reason_to_stop(config: Config, history: History) -> str:
    """Returns why the run ends before its last step, or ""."""
    patience = config.early_stopping_patience
    if patience and validations_since_best(history, config.selection_metric) >= patience:
        return f"stopped early: no better validation among the last {patience}"
    if config.weight_average == "swad" and decide(_losses(history)).ended:
        return "stopped early: the validation loss rises again, so SWAD's average is complete"
    return ""


def is_validated(history: History, number: int) -> bool:
    """Returns whether step `number` is the last that was validated."""
    return bool(history) and history[-1]["step"] == number


def is_over(history: History, number: int, num_steps: int, reason_to_stop: str = "") -> bool:
    """Returns whether a run that has done `number` steps ends there."""
    return is_validated(history, number) and (number >= num_steps or bool(reason_to_stop))


def is_due(history: History, number: int, num_steps: int, every: int) -> bool:
    """Returns whether a run that has done `number` steps validates before the next one."""
    if number == 0 or is_validated(history, number):
        return False
    return number % every == 0 or number >= num_steps


def with_average(
    state: TrainState,
    history: History,
    config: Config,
    estimate: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    last: bool,
) -> TrainState:
    """Returns the state with its average as the validations decide; without one, unchanged.

    `history` has the state's own validation. `estimate` returns the BatchNorm statistics of a
    network, and is called when the run ends.
    """
    if not state.swad:
        return state
    decision = decide(_losses(history), last=last)
    swad = with_decision(state.swad, state.params, state.batch_stats, decision)
    state = dataclasses.replace(state, swad=swad)
    if (last or decision.ended) and not config.frozen_statistics:
        swad = swad | {"batch_stats": estimate(state.network)}
    return dataclasses.replace(state, swad=swad)


def _losses(history: History) -> list[float]:
    return [validation["validation_loss"] for validation in history]


def validations_since_best(history: History, metric: str) -> int:
    """Counts the validations since the best one; 0 when the last is the best."""
    best = since = 0
    for index, validation in enumerate(history):
        since += 1
        if index == 0 or better(metric, validation[metric], history[best][metric]):
            best, since = index, 0
    return since


def plateau_scale(history: History, metric: str, *, patience: int, factor: float) -> float:
    """Returns the factor of the learning rate with "plateau", from the validations so far.

    Every `patience` validations without a better one multiply it by `factor`; then the count
    starts again.
    """
    scale, best, since = 1.0, None, 0
    for validation in history:
        value = validation[metric]
        if best is None or better(metric, value, best):
            best, since = value, 0
            continue
        since += 1
        if since == patience:
            scale, since = scale * factor, 0
    return scale


def learning_rate_scale(history: History, config: Config) -> float:
    """Returns the factor of the learning rate after the validations so far, a float32 value."""
    if config.schedule.name != "plateau":
        return 1.0
    scale = plateau_scale(
        history,
        config.selection_metric,
        patience=config.schedule.plateau_patience,
        factor=config.schedule.plateau_factor,
    )
    return float(np.float32(scale))


def with_plateau(state: TrainState, history: History, config: Config) -> TrainState:
    """Returns the state with the learning rate's scale, if the schedule is "plateau"."""
    if config.schedule.name != "plateau":
        return state
    scale = jnp.float32(learning_rate_scale(history, config))
    where = state.learning_rate_scale.sharding
    return dataclasses.replace(state, learning_rate_scale=jax.device_put(scale, where))
