"""One training step: augment, forward, loss, gradient, update. Pure; jitted in one place."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from flax import struct
from jax.sharding import Mesh

from fer_jax.config import Config
from fer_jax.data.augment import augment, normalize
from fer_jax.inference.network import model_arguments
from fer_jax.methods.coral import coral as coral_penalty
from fer_jax.methods.sam import ascended
from fer_jax.methods.swad import fresh_average, with_step
from fer_jax.models import xception
from fer_jax.models.mixstyle import Mixing
from fer_jax.sharding import batch_sharding, replicated

INITIAL_LOSS_SCALE = 2.0**15
LOSS_SCALE_GROWS_AFTER = 2000  # steps without overflow


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes, as plain arrays.

    Attributes:
      step: int32 [], steps done.
      params: float32 tree.
      batch_stats: float32 tree, BatchNorm's running mean and variance.
      ema: exponential moving average of params, or {} where none is kept.
      swad: the average of `fer_jax.methods.swad`, or {} where none is kept.
      opt_state: optax's.
      learning_rate_scale: float32 [], set by the plateau schedule.
      loss_scale: float32 [], 1 unless the network computes in float16.
      good_steps: int32 [], steps since the loss scale last changed.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    ema: Any
    swad: Any
    opt_state: Any
    learning_rate_scale: jax.Array
    loss_scale: jax.Array
    good_steps: jax.Array


def network_of(state: TrainState) -> dict[str, Any]:
    """What a prediction needs of the state."""
    if state.swad:
        return {name: state.swad[name] for name in ("params", "batch_stats")} | {"ema": {}}
    return trajectory_of(state)


def trajectory_of(state: TrainState) -> dict[str, Any]:
    """The network that is trained, where `network_of` has the average over its trajectory."""
    return {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}


def training_of(state: TrainState) -> dict[str, Any]:
    """The rest of the state; with `network_of` it is all of it."""
    rest = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    del rest["params"], rest["batch_stats"], rest["ema"], rest["swad"]
    if state.swad:
        rest["trajectory"] = {"params": state.params, "batch_stats": state.batch_stats}
        rest["swad"] = {name: state.swad[name] for name in ("mean", "count")}
    return rest


def joined(network: dict[str, Any], training: dict[str, Any]) -> TrainState:
    """The state of which `network_of` and `training_of` gave the two parts."""
    rest = dict(training)
    if "swad" not in rest:
        return TrainState(**network, **rest, swad={})
    kept = {name: network[name] for name in ("params", "batch_stats")}
    return TrainState(
        **rest.pop("trajectory"), ema=network["ema"], swad=kept | rest.pop("swad"), **rest
    )


@struct.dataclass
class StepMetrics(clu_metrics.Collection):
    """What a step reports; merged over steps on the host."""

    loss: clu_metrics.Average.from_output("loss")  # pyright: ignore[reportInvalidTypeForm] (CLU's way of declaring a metric)
    accuracy: clu_metrics.Average.from_output("accuracy")  # pyright: ignore[reportInvalidTypeForm] (as above)
    gradient_norm: clu_metrics.Average.from_output("gradient_norm")  # pyright: ignore[reportInvalidTypeForm] (as above)


def as_numbers(pending: list[StepMetrics]) -> list[list[float]]:
    """What steps reported, as JSON can hold it bit for bit: one list for each."""
    return [[float(x) for x in jax.tree.leaves(one)] for one in jax.device_get(pending)]


def from_numbers(rows: list[list[float]]) -> list[StepMetrics]:
    """What `as_numbers` was given."""
    leaves, structure = jax.tree.flatten(
        jax.eval_shape(
            functools.partial(
                StepMetrics.single_from_model_output, loss=0.0, accuracy=0.0, gradient_norm=0.0
            )
        )
    )
    dtypes = [leaf.dtype for leaf in leaves]
    return [
        structure.unflatten([np.asarray(x, d) for x, d in zip(row, dtypes, strict=True)])
        for row in rows
    ]


def not_finite(pending: list[StepMetrics], last_step: int) -> int | None:
    """The first of consecutive steps whose loss is not finite.

    Args:
      pending: what each step reported, oldest first; waited for.
      last_step: the number of the last of them.
    """
    losses = [float(one.loss.total) for one in jax.device_get(pending)]
    bad = np.flatnonzero(~np.isfinite(losses))
    return last_step - len(pending) + 1 + int(bad[0]) if len(bad) else None


def merged(pending: list[StepMetrics]) -> dict[str, float]:
    """Means over steps: {"train_loss", "train_accuracy", ...}.

    Computed by the host alone: whatever is asked of a device waits behind the step under way.
    """
    fetched = jax.device_get(pending)
    means = {}
    for name in ("loss", "accuracy", "gradient_norm"):
        parts = [getattr(one, name) for one in fetched]
        means[f"train_{name}"] = sum(float(p.total) for p in parts) / sum(
            float(p.count) for p in parts
        )
    return means


def init_state(
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    *,
    model: dict[str, Any],
    ema: bool,
    swad: bool = False,
) -> TrainState:
    """A fresh state; under `jax.eval_shape` only its shapes.

    Args:
      key: a random key.
      optimizer: from `make_optimizer`.
      model: keyword arguments of `xception.Xception`.
      ema: whether an exponential average of the parameters is kept.
      swad: whether the average over a valley of the validation loss is.
    """
    params, batch_stats = xception.init(key, **model)
    scaled = model["dtype"] == "float16"
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        # A copy: the step donates its state, and one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, params) if ema else {},
        swad=fresh_average(params, batch_stats) if swad else {},
        opt_state=optimizer.init(params),
        learning_rate_scale=jnp.ones((), jnp.float32),
        loss_scale=jnp.asarray(INITIAL_LOSS_SCALE if scaled else 1.0, jnp.float32),
        good_steps=jnp.zeros((), jnp.int32),
    )


def class_weights(shares: np.ndarray, kind: str) -> np.ndarray:
    """What each class weighs in the loss, float32 [k].

    Args:
      shares: float64 [k], how often each class is drawn.
      kind: "none" for ones; "balanced" for the inverse of the shares, scaled so that the mean
        weight of the drawn images is 1. A class that is never drawn weighs 0.
    """
    if kind == "none":
        return np.ones(len(shares), np.float32)
    present = shares > 0
    weights = np.where(present, 1 / np.where(present, shares, 1), 0) / present.sum()
    return weights.astype(np.float32)


def cross_entropy(
    logits: jax.Array, targets: jax.Array, class_weights: jax.Array, label_smoothing: float
) -> jax.Array:
    """Mean weighted cross-entropy with smoothed targets (Szegedy et al. 2016), float32 [].

    Args:
      logits: float32 [b, k].
      targets: float32 [b, k], distributions.
      class_weights: float32 [k]; an image weighs as its target's classes do.
      label_smoothing: share of the target that is spread over all classes.
    """
    weights = targets @ class_weights
    smooth = targets * (1 - label_smoothing) + label_smoothing / targets.shape[-1]
    return jnp.mean(weights * optax.softmax_cross_entropy(logits, smooth))


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    graphdef: Any,
    optimizer: optax.GradientTransformation,
    class_weights: Any,
    label_smoothing: float,
    augmentation: dict[str, Any],
    accumulation_steps: int,
    ema_decay: float,
    frozen_statistics: bool,
    dynamic_loss_scale: bool,
    num_domains: int = 1,
    mixstyle: float = 0.0,
    coral: float = 0.0,
    sam: float = 0.0,
) -> tuple[TrainState, StepMetrics]:
    """One update of the parameters from one batch.

    With accumulation the batch is cut into equal parts whose gradients are averaged; BatchNorm
    then normalises over each part and its running statistics move once a part, so only with
    frozen statistics is it the same as the whole batch. MixStyle and CORAL compare the images
    of a part, too.

    Args:
      state: donated by the caller.
      batch: {"image": uint8 [b, s, s, 3], "target": float32 [b, k], "domain": int32 [b]},
        sharded over devices; the domain is read by MixStyle and CORAL only.
      key: the run's key; this step's is derived from it and `state.step`.
      graphdef: the network without its arrays.
      optimizer: from `make_optimizer`.
      class_weights: float32 [k].
      label_smoothing: of the loss.
      augmentation: keyword arguments of `augment`.
      accumulation_steps: parts the batch is cut into; it must divide b.
      ema_decay: of the parameters' average; 0 where none is kept.
      frozen_statistics: BatchNorm uses its running statistics and leaves them.
      dynamic_loss_scale: for float16, whose gradients underflow otherwise.
      num_domains: how many sources there are, for CORAL.
      mixstyle: probability of MixStyle after a block; 0 leaves it out.
      coral: weight of the CORAL penalty, which is part of the reported loss; 0 leaves it out.
      sam: radius of SAM; 0 leaves its second gradient out. BatchNorm's statistics, the loss and
        the accuracy are of the first pass, at the parameters themselves; both passes see the same
        images, dropout and mixed styles.

    Returns:
      The next state, and metrics. A loss of NaN says that the gradient was not finite for
      another reason than float16's range.
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    images, targets = augment(batch["image"], batch["target"], augment_key, **augmentation)
    domain = batch["domain"] if mixstyle or coral else None

    def loss_of(params: Any, batch_stats: Any, part: Any):
        images, targets, domain, key = part
        # The network splits the key in two for dropout: 0 and 1 are taken.
        mixing = Mixing(mixstyle, jax.random.fold_in(key, 2), domain) if mixstyle else None
        features, logits, batch_stats = xception.apply_pooled(
            graphdef,
            params,
            batch_stats,
            normalize(images),
            train=True,
            frozen_statistics=frozen_statistics,
            dropout_key=key,
            mixing=mixing,
        )
        loss = cross_entropy(logits, targets, class_weights, label_smoothing)
        if coral:
            loss += coral * coral_penalty(features, domain, num_domains)
        correct = jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1)
        return loss * state.loss_scale, (loss, jnp.mean(correct), batch_stats)

    def gradient_at(params: Any) -> tuple[Any, Any]:
        """The batch's gradient there, and (loss, accuracy, BatchNorm's next statistics)."""
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        whole = (images, targets, domain, dropout_key)
        if accumulation_steps == 1:
            (_, aux), gradient = gradient_of(params, state.batch_stats, whole)
        else:
            gradient, aux = _accumulated(gradient_of, params, state, whole, accumulation_steps)
        return jax.tree.map(lambda g: g / state.loss_scale, gradient), aux

    gradient, (loss, accuracy, batch_stats) = gradient_at(state.params)
    if sam:
        gradient, _ = gradient_at(ascended(state.params, gradient, sam))
    gradient_norm = optax.tree.norm(gradient)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: u * state.learning_rate_scale, updates)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema_decay:
        # The average of a young run forgets faster, so it is not stuck at initialisation.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda e, p: (e + (p - e) * (1 - decay)).astype(e.dtype), ema, params)
    swad = with_step(state.swad, params) if state.swad else {}
    following = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        ema=ema,
        swad=swad,
        opt_state=opt_state,
    )
    finite = jnp.isfinite(gradient_norm)
    if dynamic_loss_scale:
        following = _adapt_loss_scale(state, following, finite)
        finite |= state.loss_scale > 1
    metrics = StepMetrics.single_from_model_output(
        loss=jnp.where(finite, loss, jnp.nan),
        accuracy=accuracy,
        gradient_norm=gradient_norm,
    )
    return following, metrics


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


def _accumulated(
    gradient_of: Any, params: Any, state: TrainState, whole: Any, num_parts: int
) -> tuple[Any, Any]:
    """The mean gradient over the parts of a batch, and the rest of what `gradient_at` gives."""
    *arrays, dropout_key = whole

    # Part i takes every n-th image, so that each device keeps the images it has.
    def parts(x: jax.Array) -> jax.Array:
        return x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1)

    def accumulate(carry: Any, part: Any) -> tuple[Any, Any]:
        gradient, batch_stats = carry
        (_, aux), more = gradient_of(params, batch_stats, part)
        loss, accuracy, batch_stats = aux
        return (jax.tree.map(jnp.add, gradient, more), batch_stats), (loss, accuracy)

    keys = jax.random.split(dropout_key, num_parts)
    start = (jax.tree.map(jnp.zeros_like, params), state.batch_stats)
    (gradient, batch_stats), reported = jax.lax.scan(
        accumulate, start, (*jax.tree.map(parts, arrays), keys)
    )
    gradient = jax.tree.map(lambda g: g / num_parts, gradient)
    loss, accuracy = jax.tree.map(jnp.mean, reported)
    return gradient, (loss, accuracy, batch_stats)


def _adapt_loss_scale(state: TrainState, following: TrainState, finite: jax.Array) -> TrainState:
    """Skips an update that overflowed and halves the loss scale; doubles it after a good run.

    The scheme of Micikevicius et al. 2018, Mixed Precision Training.
    """
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), following, state)
    good_steps = jnp.where(finite, state.good_steps + 1, 0)
    grows = good_steps >= LOSS_SCALE_GROWS_AFTER
    halved = jnp.maximum(state.loss_scale / 2, 1.0)
    scale = jnp.where(finite, jnp.where(grows, state.loss_scale * 2, state.loss_scale), halved)
    return dataclasses.replace(
        kept,
        step=following.step,
        loss_scale=scale,
        good_steps=jnp.where(grows, 0, good_steps),
    )
