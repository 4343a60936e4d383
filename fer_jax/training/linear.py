"""A linear head on frozen features: multinomial logistic regression.

The loss is convex, so the seed changes nothing. The L2 penalty is chosen by validation.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from fer_jax import checkpoints
from fer_jax.config import Config
from fer_jax.data.experiment import as_source
from fer_jax.data.records import Records, labelled_rows
from fer_jax.errors import InputError
from fer_jax.evaluation import baselines, metrics
from fer_jax.inference.features import Features, Head, open_features, write_head
from fer_jax.training import start, validation
from fer_jax.training.log import MetricsLog
from fer_jax.training.step import class_weights, cross_entropy

PENALTIES = np.logspace(1, -5, 20)  # on half the squared norm of the standardized kernel
MAX_ITERATIONS = 200


def train(config: Config, workdir: Path, data_dir: Path) -> dict[str, float]:
    """Trains a head for each of `PENALTIES`, keeps the best, and returns its validation.

    The workdir receives what that of a network does, without checkpoints and images. Raises
    InputError as `classifier.train` does.
    """
    if any(as_source(entry).weight for entry in config.sources):
        raise InputError("the weight of a source has no effect on a linear head; leave it out")
    with start.open_run(config, workdir, data_dir, soft_labels=config.loss.soft_labels) as run:
        features = open_features(config.features)
        learned = _labelled(run.experiment.train, config.task)
        selected_on = _labelled(run.experiment.validation, config.task)
        x, tested = _read(features, learned), _read(features, selected_on)
        targets = [one.targets(config.task, config.loss.soft_labels) for one in learned]
        weights = class_weights(run.mixture.class_shares, config.loss.class_weights)
        labels = np.concatenate([one.labels(config.task) for one in selected_on])
        print(f"{config.task}: {x.shape[1]} features of {len(x)} images; {len(labels)} to validate")
        start.write_inputs(run)
        baselines.write(workdir, run.experiment.train, config.task)
        heads = fit(x, np.concatenate(targets), weights, config.loss.label_smoothing)
        history, log = [], MetricsLog(workdir)
        for step, head in enumerate(heads, 1):
            scored = metrics.score(labels, head.probabilities(tested))
            row = {f"validation_{name}": scored[name] for name in validation.METRICS}
            log.write_scalars(step, row | {"l2": float(PENALTIES[step - 1])})
            history.append({"step": step} | row)
        log.close()
        best = checkpoints.best_step(history, config.selection_metric)
        assert best is not None
        print(validation.line(best, history[:best], config.selection_metric))
        write_head(workdir, heads[best - 1], features.fingerprint, best)
        return history[best - 1]


def fit(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, label_smoothing: float = 0.0
) -> list[Head]:
    """Fits a head for each of `PENALTIES`, each from the one before.

    `features` are float32 [n, d]; targets, weights and smoothing those of `cross_entropy`.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
    x, y = jnp.asarray((features - mean) / scale), jnp.asarray(targets)
    shape = (x.shape[1] + 1, y.shape[1])

    @jax.jit
    def loss_and_gradient(flat: jax.Array, x: jax.Array, y: jax.Array, penalty: jax.Array):
        def loss(flat: jax.Array) -> jax.Array:
            kernel, bias = jnp.split(flat.reshape(shape), [shape[0] - 1])
            fitted = cross_entropy(x @ kernel + bias, y, weights, label_smoothing)
            return fitted + penalty / 2 * jnp.sum(jnp.square(kernel))

        return jax.value_and_grad(loss)(flat)

    def function(flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        value, gradient = loss_and_gradient(jnp.asarray(flat, jnp.float32), x, y, penalty)
        return float(value), np.asarray(gradient, np.float64)

    flat, heads = np.zeros(shape[0] * shape[1]), []
    for penalty in PENALTIES:
        options = {"maxiter": MAX_ITERATIONS}
        flat = scipy.optimize.minimize(
            function, flat, (penalty,), method="L-BFGS-B", jac=True, options=options
        ).x
        kernel, bias = np.split(flat.reshape(shape).astype(np.float32), [shape[0] - 1])
        kernel = kernel / scale[:, None]
        heads.append(Head(kernel, bias[0] - mean @ kernel))
    return heads


def _labelled(parts: Sequence[Records], task: str) -> list[Records]:
    return [one.select(labelled_rows(one, task)) for one in parts]


def _read(features: Features, parts: Sequence[Records]) -> np.ndarray:
    return np.concatenate([features.of(one) for one in parts])
