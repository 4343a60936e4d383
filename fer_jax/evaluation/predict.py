"""Predicts a split of records and lays the predictions out as a table."""

from typing import Any

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
    """Predicts records: probabilities, float64 [n, classes], in the order of `rows`, int64 [n].

    `batch_size` is over all devices and processes, and divisible by the devices.
    """
    batches = evaluation_batches(
        records,
        rows,
        batch_size=batch_size,
        image_size=image_size,
    )
    predicted = []
    for images in batches:
        predicted.append(step(network, to_devices(images, mesh)))
        # Decoding runs ahead of the device, but no further than memory allows.
        if len(predicted) > BATCHES_IN_FLIGHT:
            predicted[-BATCHES_IN_FLIGHT].block_until_ready()
    # Only the last batch was padded, at its end.
    return np.concatenate([np.asarray(p, np.float64) for p in predicted])[: len(rows)]


def predictions_table(
    records: Records, rows: np.ndarray, task: str, probabilities: np.ndarray
) -> predictions.Table:
    """Returns the predictions table of some rows of the records."""
    columns = predictions.take(records.columns, rows)
    table = {name: columns[name] for name in predictions.ORDER if name in columns}
    table["dataset"] = np.full(len(rows), records.name)
    table["split"] = np.full(len(rows), records.split)
    table["label"] = columns[task]
    table["probabilities"] = probabilities
    return table
