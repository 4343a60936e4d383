"""A split of records to its predictions table: every image is scored exactly once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fer_jax.config import Config
from fer_jax.data.augment import normalize
from fer_jax.data.batches import evaluation_batches
from fer_jax.data.records import Records
from fer_jax.evaluation import predictions
from fer_jax.models import xception
from fer_jax.schema import TASKS
from fer_jax.sharding import batch_sharding, replicated, to_devices

BATCHES_IN_FLIGHT = 4

PredictStep = Callable[[dict[str, Any], jax.Array], jax.Array]


def model_arguments(config: Config) -> dict[str, Any]:
    """The config's model block and task as keyword arguments of `xception.Xception`."""
    return dict(config.model) | {"num_classes": len(TASKS[config.task])}


def network_shapes(config: Config, mesh: Mesh) -> dict[str, Any]:
    """What a run's network looks like, whole on every device.

    Args:
      config: of the run.
      mesh: from `make_mesh`.

    Returns:
      {"params", "batch_stats", "ema"} (the average is empty where the run keeps none), each a
      nested dict of `jax.ShapeDtypeStruct` with shardings.
    """
    model = model_arguments(config)
    params, batch_stats = jax.eval_shape(lambda key: xception.init(key, **model), jax.random.key(0))
    shapes = {
        "params": params,
        "batch_stats": batch_stats,
        "ema": params if config.ema_decay else {},
    }
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes
    )


def predict_step(
    network: dict[str, Any], images: jax.Array, *, graphdef: Any, flip: bool = False
) -> jax.Array:
    """Class probabilities of one batch.

    Args:
      network: {"params", "batch_stats", "ema"}; the average is used where there is one.
      images: uint8 [b, s, s, 3].
      graphdef: the network without its arrays.
      flip: the probabilities are the mean over each image and its mirror image.

    Returns:
      float32 [b, classes], rows sum to 1.
    """

    def probabilities(images: jax.Array) -> jax.Array:
        params = network["ema"] or network["params"]
        logits, _ = xception.apply(graphdef, params, network["batch_stats"], normalize(images))
        return jax.nn.softmax(logits)

    if not flip:
        return probabilities(images)
    return (probabilities(images) + probabilities(images[:, :, ::-1])) / 2


def compile_predict_step(
    graphdef: Any, network_sharding: Any, mesh: Mesh, *, flip: bool
) -> PredictStep:
    """`predict_step`, jitted: images sharded over the mesh, probabilities on every device."""
    return jax.jit(
        functools.partial(predict_step, graphdef=graphdef, flip=flip),
        in_shardings=(network_sharding, batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def predict(
    step: PredictStep,
    network: dict[str, Any],
    records: Records,
    rows: np.ndarray,
    *,
    batch_size: int,
    image_size: int,
    mesh: Mesh,
) -> np.ndarray:
    """Scores records.

    Args:
      step: from `compile_predict_step`.
      network: {"params", "batch_stats", "ema"}.
      records: the split.
      rows: int64 [n], which of its records.
      batch_size: over all devices and processes; divisible by the devices.
      image_size: pixels a side.
      mesh: from `make_mesh`.

    Returns:
      float64 [n, classes], in the order of `rows`.
    """
    batches = evaluation_batches(
        records,
        rows,
        batch_size=batch_size,
        image_size=image_size,
        process=jax.process_index(),
        num_processes=jax.process_count(),
    )
    scored = []
    for images in batches:
        scored.append(step(network, to_devices(images, mesh)))
        # Decoding runs ahead of the device, but no further than memory allows.
        if len(scored) > BATCHES_IN_FLIGHT:
            scored[-BATCHES_IN_FLIGHT].block_until_ready()
    # Only the last batch was padded, at its end.
    return np.concatenate([np.asarray(p, np.float64) for p in scored])[: len(rows)]


def predictions_table(
    records: Records, rows: np.ndarray, task: str, probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """The predictions table of `fer_jax.evaluation.predictions` for scored rows."""
    columns = {name: values[rows] for name, values in records.columns.items()}
    table = {name: columns[name] for name in predictions.ORDER if name in columns}
    table["dataset"] = np.full(len(rows), records.name)
    table["split"] = np.full(len(rows), records.split)
    table["label"] = columns[task]
    table["probabilities"] = probabilities
    return table
