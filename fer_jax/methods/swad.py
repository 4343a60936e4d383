"""SWAD (Cha et al. 2021, arXiv:2102.08604): the mean of all parameters in a valley of the loss.

The parameters of every step are averaged, from the validation at which the loss on the sources'
validation parts stops falling to the one after which it has clearly risen. The paper finds both
only later and stores the averages in between; here two trees are enough, because the start can
only be the best validation so far, and the end the last one that was not too high.

The running BatchNorm statistics do not fit an average, so they are estimated from training images
when the run ends (as Izmailov et al. 2018 do for SWA). Earlier checkpoints have the running ones.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fer_jax.checkpoints import better
from fer_jax.data.augment import Augmentation, augment
from fer_jax.methods.adaptation import MomentsStep, estimated
from fer_jax.sharding import to_devices

# N_s, N_e and r of the paper: the patience before the start and the end, and the tolerance.
OPTIMUM_PATIENCE = 3
OVERFIT_PATIENCE = 6
TOLERANCE = 1.3
ESTIMATED_FROM = 100  # batches, at most one epoch


class Decision(NamedTuple):
    """What a validation means for the average."""

    restarts: bool  # the average restarts with the parameters of this step
    keeps: bool  # the average up to this step becomes the network that predicts
    ended: bool  # the valley is over, and with it the training


def decide(losses: Sequence[float], *, last: bool = False) -> Decision:
    """Decides as algorithm 1 of the paper, from the losses of all validations so far.

    If a run ends (`last`) before the valley has begun, the average is that since the best
    validation (the paper's algorithm would average from the first step, its authors' program the
    last steps). The validation after the best one is always in it, however high.
    """
    best, begun, too_high = 0, False, 0
    bound = float("inf")
    for index, loss in enumerate(losses):
        if begun:
            # NaN counts as too high.
            too_high = 0 if loss <= bound else too_high + 1
        elif index == 0 or better("loss", loss, losses[best]):
            best = index
        elif index - best == OPTIMUM_PATIENCE - 1:
            begun = True
            bound = TOLERANCE * sum(losses[best : index + 1]) / OPTIMUM_PATIENCE
            while not losses[index - too_high] <= bound:
                too_high += 1
        if too_high == OVERFIT_PATIENCE:
            return Decision(False, False, True)
    restarts = not begun and best == len(losses) - 1
    return Decision(restarts, not too_high or last, False)


def fresh_average(params: Any, batch_stats: Any) -> dict[str, Any]:
    """Initializes the average.

    Returns {"mean": since the average began, "count": int32 [], the steps in it, "params",
    "batch_stats": the network that predicts}; copies, since the step donates its state and one
    buffer cannot be donated twice.
    """
    return {
        "mean": jax.tree.map(jnp.copy, params),
        "count": jnp.zeros((), jnp.int32),
        "params": jax.tree.map(jnp.copy, params),
        "batch_stats": jax.tree.map(jnp.copy, batch_stats),
    }


def with_step(swad: dict[str, Any], params: Any) -> dict[str, Any]:
    """Adds the parameters of one step to the average."""
    count = swad["count"] + 1
    mean = jax.tree.map(lambda m, p: (m + (p - m) / count).astype(m.dtype), swad["mean"], params)
    return swad | {"mean": mean, "count": count}


def with_decision(
    swad: dict[str, Any], params: Any, batch_stats: Any, decision: Decision
) -> dict[str, Any]:
    """Applies a decision to the average, after a validation of `params` and `batch_stats`."""
    following = dict(swad)
    if decision.restarts:
        following["mean"] = jax.tree.map(jnp.copy, params)
        following["count"] = jnp.ones_like(swad["count"])
    if decision.keeps:
        following["params"] = jax.tree.map(jnp.copy, following["mean"])
        following["batch_stats"] = jax.tree.map(jnp.copy, batch_stats)
    return following


def estimated_statistics(
    network: dict[str, Any],
    *,
    step: MomentsStep,
    batches: Iterable[dict[str, Any]],
    augmentation: Augmentation,
    key: jax.Array,
    mesh: Mesh,
) -> dict[str, Any]:
    """Estimates BatchNorm's statistics of the average from augmented training images.

    `batches` are of `train_batches`, this process's part. Returns a tree like batch_stats, with its
    shardings.
    """
    augmented = jax.jit(functools.partial(augment, options=augmentation))

    def images() -> Iterable[jax.Array]:
        for number, batch in enumerate(batches):
            placed = to_devices(batch, mesh)
            yield augmented(placed["image"], placed["target"], jax.random.fold_in(key, number))[0]

    return jax.tree.map(
        lambda new, old: jax.device_put(new, old.sharding),
        estimated(step, network, images()),
        network["batch_stats"],
    )
