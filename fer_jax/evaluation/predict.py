"""A split of records to its predictions table: every image is scored exactly once."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fer_jax.data.batches import evaluation_batches
from fer_jax.data.records import Records
from fer_jax.evaluation import predictions
from fer_jax.inference.network import PredictStep
from fer_jax.sharding import to_devices

BATCHES_IN_FLIGHT = 4


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
