"""Between steps: the validation parts are scored, and what follows from the scores so far."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fer_jax.config import Config
from fer_jax.data.records import Records, labelled_rows
from fer_jax.evaluation import metrics
from fer_jax.evaluation.predict import predict
from fer_jax.inference.network import PredictStep
from fer_jax.methods.swad import decide, with_decision
from fer_jax.training.optimizer import plateau_scale, validations_since_best
from fer_jax.training.step import TrainState, network_of

METRICS = ("loss", "accuracy", "balanced_accuracy", "macro_f1")

History = list[dict[str, float]]  # {"step", "validation_loss", ...}, oldest first


@dataclasses.dataclass(frozen=True)
class Part:
    """One source's validation part: its records, and int64 [n], those of them that are labelled."""

    records: Records
    rows: np.ndarray


def labelled_parts(opened: Sequence[Records], task: str) -> list[Part]:
    """The labelled records of the sources' validation parts.

    Raises:
      InputError: one has no label for the task.
    """
    return [Part(records, labelled_rows(records, task)) for records in opened]


def validate(
    score: PredictStep, network: dict[str, Any], parts: Sequence[Part], config: Config, mesh: Mesh
) -> dict[str, float]:
    """Metrics on the validation parts of all sources together.

    Args:
      score: from `compile_predict_step`.
      network: {"params", "batch_stats", "ema"}.
      parts: from `labelled_parts`.
      config: of the run.
      mesh: from `make_mesh`.

    Returns:
      {"validation_loss", "validation_accuracy", ...}, one per `METRICS`.
    """
    labels = [part.records.labels(config.task)[part.rows] for part in parts]
    probabilities = [
        predict(
            score,
            network,
            part.records,
            part.rows,
            batch_size=config.batch_size,
            image_size=config.model.image_size,
            mesh=mesh,
        )
        for part in parts
    ]
    scored = metrics.score(np.concatenate(labels), np.concatenate(probabilities))
    return {f"validation_{name}": scored[name] for name in METRICS}


def line(step: int, history: History, metric: str) -> str:
    """The last validation for the person watching."""
    since = validations_since_best(history, metric)
    marks = "best so far" if since == 0 else f"best was {since} validations ago"
    figures = "  ".join(
        f"{name.removeprefix('validation_')} {value:.4f}"
        for name, value in history[-1].items()
        if name != "step"
    )
    return f"validation at step {step}: {figures}  ({marks})"


def reason_to_stop(config: Config, history: History) -> str:
    """Why the run ends before its last step, for the person watching; "" where it goes on."""
    patience = config.early_stopping_patience
    if patience and validations_since_best(history, config.selection_metric) >= patience:
        return f"stopped early: the last {patience} validations were no better"
    if config.weight_average == "swad" and decide(_losses(history)).ended:
        return "stopped early: the validation loss has left its valley"
    return ""


def is_over(config: Config, history: History, number: int, num_steps: int) -> bool:
    """Whether a run that has done `number` steps and validated the last of them goes no further."""
    validated = bool(history) and history[-1]["step"] == number
    return validated and (number >= num_steps or bool(reason_to_stop(config, history)))


def is_due(history: History, number: int, num_steps: int, every: int) -> bool:
    """Whether a run that has done `number` steps validates before it goes on."""
    if history and history[-1]["step"] == number:
        return False
    return number > 0 and (number % every == 0 or number >= num_steps)


def with_average(
    state: TrainState,
    history: History,
    config: Config,
    estimate: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    last: bool,
) -> TrainState:
    """The state with what the validations say of its average; as it was where none is kept.

    Args:
      state: that was validated last.
      history: with its validation.
      config: of the run.
      estimate: a network to BatchNorm's statistics of it, asked for where the run ends.
      last: whether this was the run's last step.
    """
    if not state.swad:
        return state
    decision = decide(_losses(history), last=last)
    swad = with_decision(state.swad, state.params, state.batch_stats, decision)
    state = dataclasses.replace(state, swad=swad)
    if (last or decision.ended) and not config.frozen_statistics:
        swad = swad | {"batch_stats": estimate(network_of(state))}
    return dataclasses.replace(state, swad=swad)


def _losses(history: History) -> list[float]:
    return [validation["validation_loss"] for validation in history]


def with_plateau(state: TrainState, history: History, config: Config) -> TrainState:
    """The state with the learning rate's scale that "plateau" asks for; else as it was."""
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
