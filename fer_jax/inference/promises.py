"""What a model promises of its answers: the thresholds that `evaluation/certainty.py` found."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fer_jax.errors import InputError

PROMISES = tuple(round(0.5 + 0.01 * n, 2) for n in range(50))


def sets(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Returns which classes are in each image's set, bool [n, k]: at least the likeliest."""
    likeliest = np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None]
    return (probabilities >= threshold) | likeliest


def level(fitted: Mapping[str, Any], promise: float) -> tuple[float, float]:
    """Returns the two thresholds of a promise; that of answers is infinite to answer none.

    `fitted` is from `certainty.fit`. InputError for a promise that it does not have or cannot keep.
    """
    found = fitted["levels"].get(f"{promise:.2f}") if 0 <= promise <= 1 else None
    if found is None or abs(promise - round(promise, 2)) > 1e-9:
        low, high = PROMISES[0], PROMISES[-1]
        raise InputError(f"certainty must be {low} to {high} in steps of 0.01, got {promise:g}")
    of_sets, of_answers = found
    if of_sets is None:
        raise InputError(
            f"certainty {promise:g} cannot be promised from {fitted['groups']} groups (each a "
            f"{fitted['of']}): they carry at most {fitted['most']:.3f}, k / (k + 1) of k groups"
        )
    return of_sets, np.inf if of_answers is None else of_answers


def of_model(about: Mapping[str, Any], promise: float) -> tuple[float, float]:
    """Returns the two thresholds of `level` from a model's metadata."""
    fitted = (about.get("certainty") or {}).get("source")
    if not fitted:
        raise InputError(
            "the model has no certainty; run `fer-jax evaluate` on its run, then export"
        )
    return level(fitted, promise)
