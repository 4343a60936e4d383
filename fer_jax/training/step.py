"""One training step: augment, forward, loss, gradient, update. Pure; jitted in one place.

Here are also the optimizer and its learning rate.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from flax import struct
from jax.sharding import Mesh

from fer_jax.config import Config
from fer_jax.data.augment import Augmentation, augment, normalize
from fer_jax.inference.network import model_arguments
from fer_jax.methods.coral import coral
from fer_jax.methods.mixstyle import mix_styles
from fer_jax.methods.sam import perturbed_params
from fer_jax.methods.swad import fresh_average, with_step
from fer_jax.models import xception
from fer_jax.sharding import batch_sharding, replicated

ALL_BUT_HEAD = "all but head"  # of `config.freeze`
INITIAL_LOSS_SCALE = 2.0**15
LOSS_SCALE_GROWS_AFTER = 2000  # steps without overflow


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes, as plain arrays."""

    step: jax.Array  # int32 [], steps done
    params: Any  # float32 tree
    batch_stats: Any  # float32 tree, BatchNorm's running mean and variance
    ema: Any  # exponential moving average of params, or {}
    swad: Any  # the average of `fer_jax.methods.swad`, or {}
    opt_state: Any  # optax's
    learning_rate_scale: jax.Array  # float32 [], set by the plateau schedule
    loss_scale: jax.Array  # float32 [], 1 unless the network computes in float16
    good_steps: jax.Array  # int32 [], steps since the loss scale last changed

    @property
    def network(self) -> dict[str, Any]:
        """What a prediction needs: the average over the trajectory where the run has one."""
        if self.swad:
            return {name: self.swad[name] for name in ("params", "batch_stats")} | {"ema": {}}
        return self.trajectory

    @property
    def trajectory(self) -> dict[str, Any]:
        """The network that the steps update."""
        return {"params": self.params, "batch_stats": self.batch_stats, "ema": self.ema}

    def split(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns (`network`, the rest of the state) as a checkpoint stores them."""
        rest = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("params", "batch_stats", "ema", "swad"):
            del rest[name]
        if self.swad:
            rest["trajectory"] = {"params": self.params, "batch_stats": self.batch_stats}
            rest["swad"] = {name: self.swad[name] for name in ("mean", "count")}
        return self.network, rest

    @classmethod
    def merge(cls, network: dict[str, Any], rest: dict[str, Any]) -> "TrainState":
        """Returns the state that `split` divided."""
        if "swad" not in rest:
            return cls(**network, **rest, swad={})
        rest = dict(rest)
        average = {name: network[name] for name in ("params", "batch_stats")} | rest.pop("swad")
        return cls(**rest.pop("trajectory"), ema=network["ema"], swad=average, **rest)


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What stays the same in all steps of a run; from its config by `step_options`."""

    graphdef: Any  # the network without its arrays
    optimizer: optax.GradientTransformation
    class_weights: np.ndarray  # float32 [k], of the loss
    augmentation: Augmentation
    label_smoothing: float = 0.0  # share of the target that is spread over all classes
    accumulation_steps: int = 1  # parts into which a batch is divided; must divide its size
    ema_decay: float = 0.0  # of the average of the parameters; 0 for none
    frozen_statistics: bool = False  # BatchNorm uses its running statistics, and keeps them
    freeze: str = "none"  # the field of a config
    dynamic_loss_scale: bool = False  # for float16, whose gradients underflow otherwise
    num_domains: int = 1  # sources, for CORAL
    mixstyle: float = 0.0  # probability after a block
    coral: float = 0.0  # weight of the penalty, which is part of the reported loss
    sam: float = 0.0  # radius


def step_options(
    config: Config, optimizer: optax.GradientTransformation, class_shares: np.ndarray
) -> StepOptions:
    """Returns the options of a run's steps; `class_shares` is how often each class is sampled."""
    return StepOptions(
        graphdef=xception.graphdef(**model_arguments(config)),
        optimizer=optimizer,
        class_weights=class_weights(class_shares, config.loss.class_weights),
        augmentation=Augmentation(**config.augment),
        label_smoothing=config.loss.label_smoothing,
        accumulation_steps=config.accumulation_steps,
        ema_decay=config.ema_decay,
        frozen_statistics=config.frozen_statistics or config.freeze == ALL_BUT_HEAD,
        freeze=config.freeze,
        dynamic_loss_scale=config.model.dtype == "float16",
        num_domains=len(config.sources),
        **config.method,
    )


@struct.dataclass
class StepMetrics(clu_metrics.Collection):
    """What a step reports."""

    loss: clu_metrics.Average.from_output("loss")  # pyright: ignore[reportInvalidTypeForm] (CLU's way of declaring a metric)
    accuracy: clu_metrics.Average.from_output("accuracy")  # pyright: ignore[reportInvalidTypeForm] (as above)
    gradient_norm: clu_metrics.Average.from_output("gradient_norm")  # pyright: ignore[reportInvalidTypeForm] (as above)


def to_rows(pending: Sequence[Any]) -> list[dict[str, float]]:
    """Waits for steps and returns their figures, such as {"loss", "accuracy", "gradient_norm"}.

    Each reported `StepMetrics` or a dict of scalars, or is a row already. The host computes them: a
    device would do so only after the step that it is working on.
    """
    fetched = jax.device_get(list(pending))
    rows = [one.compute() if isinstance(one, StepMetrics) else one for one in fetched]
    return [{name: float(value) for name, value in row.items()} for row in rows]


def init_state(
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    *,
    model: dict[str, Any],
    ema: bool,
    swad: bool = False,
) -> TrainState:
    """Initializes the state of `xception.Xception(**model)`, with or without both averages."""
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
    """Returns the weight of each class in the loss, float32 [k].

    "none" gives ones. "balanced" gives the inverse of the shares with which classes are sampled,
    scaled so that the mean weight of the sampled images is 1; a class without images gets 0.
    """
    if kind == "none":
        return np.ones(len(shares), np.float32)
    present = shares > 0
    weights = np.where(present, 1 / np.where(present, shares, 1), 0) / present.sum()
    return weights.astype(np.float32)


def cross_entropy(
    logits: jax.Array, targets: jax.Array, class_weights: Any, label_smoothing: float
) -> jax.Array:
    """Computes the mean weighted cross-entropy with smoothed targets (Szegedy et al. 2016).

    Logits and targets (distributions) are float32 [b, k], `class_weights` [k]; the weight of an
    image is the mean over its target. `label_smoothing` is the share of the target that is spread
    over all classes.
    """
    weights = targets @ class_weights
    smooth = targets * (1 - label_smoothing) + label_smoothing / targets.shape[-1]
    return jnp.mean(weights * optax.softmax_cross_entropy(logits, smooth))


def train_step(
    state: TrainState, batch: dict[str, jax.Array], key: jax.Array, options: StepOptions
) -> tuple[TrainState, StepMetrics]:
    """Updates the parameters once, from one batch.

    With accumulation the batch is divided into equal parts whose gradients are averaged. BatchNorm
    then normalizes over each part and updates its running statistics once a part, so only frozen
    statistics give the same result as the whole batch. MixStyle and CORAL compare the images of a
    part, too.

    With SAM, BatchNorm's statistics, the loss and the accuracy are those of the first pass, at the
    parameters themselves; both passes use the same images, dropout and mixed styles.

    The batch is {"image": uint8 [b, s, s, 3], "target": float32 [b, k], "domain": int32 [b]},
    sharded over devices; only MixStyle and CORAL read the domain. `key` is the run's; this step's
    is derived from it and `state.step`. The caller donates the state. Returns the next state, and
    metrics; a loss of NaN means that the gradient was not finite for another reason than float16's
    range.
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    images, targets = augment(batch["image"], batch["target"], augment_key, options.augmentation)
    domain = batch["domain"] if options.mixstyle or options.coral else None
    inputs = (images, targets, domain, dropout_key)
    gradient, (loss, accuracy, batch_stats) = _gradient(state.params, state, inputs, options)
    if options.sam:
        worst = perturbed_params(state.params, gradient, options.sam)
        gradient, _ = _gradient(worst, state, inputs, options)
    gradient_norm = optax.tree.norm(gradient)
    updates, opt_state = options.optimizer.update(gradient, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: u * state.learning_rate_scale, updates)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if options.ema_decay:
        # At first the average forgets faster, so that it does not stay at the initialization.
        decay = jnp.minimum(options.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda e, p: (e + (p - e) * (1 - decay)).astype(e.dtype), ema, params)
    following = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        ema=ema,
        swad=with_step(state.swad, params) if state.swad else {},
        opt_state=opt_state,
    )
    finite = jnp.isfinite(gradient_norm)
    if options.dynamic_loss_scale:
        following = _adapt_loss_scale(state, following, finite)
        finite |= state.loss_scale > 1
    metrics = StepMetrics.single_from_model_output(
        loss=jnp.where(finite, loss, jnp.nan), accuracy=accuracy, gradient_norm=gradient_norm
    )
    return following, metrics


def jit_train_step(options: StepOptions, sharding: TrainState, mesh: Mesh) -> Any:
    """Jits `train_step`: (state, which is donated, batch, key) to (state, metrics)."""
    return jax.jit(
        functools.partial(train_step, options=options),
        in_shardings=(sharding, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(sharding, replicated(mesh)),
        donate_argnums=0,
    )


def _gradient(params: Any, state: TrainState, inputs: Any, options: StepOptions) -> tuple[Any, Any]:
    """Returns a batch's gradient at `params`, and (loss, accuracy, BatchNorm's statistics)."""

    def scaled_loss(params: Any, batch_stats: Any, part: Any):
        images, targets, domain, key = part
        kept = frozen(params, options.freeze)
        params = {n: jax.lax.stop_gradient(x) if n in kept else x for n, x in params.items()}
        mix = None
        if options.mixstyle:
            # The network splits the key in two for dropout: 0 and 1 are taken.
            key_of_mix = jax.random.fold_in(key, 2)
            mix = functools.partial(
                mix_styles, probability=options.mixstyle, key=key_of_mix, domain=domain
            )
        features, logits, batch_stats = xception.apply_pooled(
            options.graphdef,
            params,
            batch_stats,
            normalize(images),
            train=True,
            frozen_statistics=options.frozen_statistics,
            frozen_stem=options.freeze == "stem",
            dropout_key=key,
            mix=mix,
        )
        loss = cross_entropy(logits, targets, options.class_weights, options.label_smoothing)
        if options.coral:
            loss += options.coral * coral(features, domain, options.num_domains)
        correct = jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1)
        return loss * state.loss_scale, (loss, jnp.mean(correct), batch_stats)

    gradient_of = jax.value_and_grad(scaled_loss, has_aux=True)
    if options.accumulation_steps == 1:
        (_, aux), gradient = gradient_of(params, state.batch_stats, inputs)
    else:
        num_parts = options.accumulation_steps
        gradient, aux = _accumulated(gradient_of, params, state, inputs, num_parts)
    return jax.tree.map(lambda g: g / state.loss_scale, gradient), aux


def _accumulated(
    gradient_of: Any, params: Any, state: TrainState, whole: Any, num_parts: int
) -> tuple[Any, Any]:
    """Returns the mean gradient over the parts of a batch, and the rest as `_gradient` does."""
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
    """Skips an update that overflowed; adapts the loss scale (Micikevicius et al. 2018)."""
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), following, state)
    good_steps = jnp.where(finite, state.good_steps + 1, 0)
    grows = good_steps >= LOSS_SCALE_GROWS_AFTER
    halved = jnp.maximum(state.loss_scale / 2, 1.0)
    scale = jnp.where(finite, jnp.where(grows, state.loss_scale * 2, state.loss_scale), halved)
    return dataclasses.replace(
        kept, step=following.step, loss_scale=scale, good_steps=jnp.where(grows, 0, good_steps)
    )


def make_schedule(
    *, learning_rate: float, num_steps: int, warmup_steps: int, name: str
) -> optax.Schedule:
    """Makes the learning rate by step: linear warm-up from 0, then cosine to 0, or constant.

    "plateau" is constant here: `plateau_scale` multiplies it.
    """
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    if name == "cosine":
        rest = optax.cosine_decay_schedule(learning_rate, max(1, num_steps - warmup_steps))
    else:
        rest = optax.constant_schedule(learning_rate)
    return optax.join_schedules([warmup, rest], [warmup_steps]) if warmup_steps else rest


def make_optimizer(
    schedule: optax.Schedule,
    *,
    name: str,
    weight_decay: float,
    momentum: float,
    max_gradient_norm: float,
    layer_decay: float = 1.0,
    freeze: str = "none",
) -> optax.GradientTransformation:
    """Makes AdamW (Loshchilov and Hutter 2019), Adam with L2, or SGD with Nesterov momentum and L2.

    Weight decay is of kernels only, not of biases or BatchNorm's scale and offset. The head has the
    learning rate of the schedule, each block before it `layer_decay` times that of the next one,
    and frozen layers 0.
    """

    def kernels(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    decay = optax.add_decayed_weights(weight_decay, mask=kernels)
    direction = {
        "adamw": [optax.scale_by_adam(), decay],
        "adam": [decay, optax.scale_by_adam()],
        "sgd": [decay, optax.trace(momentum, nesterov=True)],
    }[name]
    clip = [optax.clip_by_global_norm(max_gradient_norm)] if max_gradient_norm else []
    by_layer = []
    if layer_decay != 1 or freeze != "none":
        by_layer = [optax.stateless(functools.partial(_scale_layers, layer_decay, freeze))]
    return optax.chain(*clip, *direction, *by_layer, optax.scale_by_learning_rate(schedule))


def _scale_layers(layer_decay: float, freeze: str, updates: Any, params: Any) -> Any:
    """Multiplies the updates of each layer by the factor on its learning rate."""
    del params
    kept = frozen(updates, freeze)
    return {
        name: jax.tree.map(
            lambda u, f=0 if name in kept else layer_decay**back: u * f, updates[name]
        )
        for back, names in enumerate(reversed(xception.layers_by_block(updates)))
        for name in names
    }


def frozen(names: Iterable[str], freeze: str) -> set[str]:
    """Returns which layers of a network a config's `freeze` keeps as they are."""
    blocks = xception.layers_by_block(names)
    kept = {"none": [], "stem": blocks[:1], ALL_BUT_HEAD: blocks[:-1]}[freeze]
    return {name for block in kept for name in block}
