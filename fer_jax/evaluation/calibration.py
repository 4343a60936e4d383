"""Are the probabilities to be believed? A temperature from validation, priors of a new place.

Both act on predictions tables alone: softmax(log p / T) is what dividing the logits by T gives.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.evaluation import predictions

LABEL_SHIFT = "label_shift"
# Temperatures outside are not looked for: at the ends probabilities are uniform or certain.
COLDEST, HOTTEST = 1 / 64, 64.0
BISECTIONS = 60
SMALLEST = 1e-12  # as in metrics.losses: a probability of 0 has no logarithm
EM_ROUNDS = 10_000
EM_TOLERANCE = 1e-10


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """float64 [n, k]: probabilities as if the logits had been divided by the temperature."""
    logits = np.log(np.maximum(probabilities, SMALLEST)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature of the smallest loss (Guo et al. 2017).

    The loss is convex in 1 / T, so the sign of its derivative is bisected.

    Args:
      labels: int [n], of validation images.
      probabilities: float64 [n, k].

    Returns:
      T, from 1/64 to 64; the warmest of those with the same loss to the last digit.
    """
    logits = np.log(np.maximum(probabilities, SMALLEST))
    given = logits[np.arange(len(labels)), labels].sum()

    def too_hot(temperature: float) -> bool:
        # d loss / d(1/T) is the expected less the given logit, summed.
        return (with_temperature(probabilities, temperature) * logits).sum() < given

    low, high = np.log(COLDEST), np.log(HOTTEST)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if too_hot(np.exp(middle)) else (middle, high)
    return float(np.exp((low + high) / 2))


def shifted_prior(probabilities: np.ndarray, source_prior: np.ndarray) -> np.ndarray:
    """How often each class occurs in a place that is known by its unlabelled images only.

    Expectation maximization of Saerens, Latinne and Decaestecker (2002); it assumes that the
    place differs in nothing but the shares of the classes, and calibrated probabilities.

    Args:
      probabilities: float64 [n, k], of the images.
      source_prior: float64 [k], the classes' shares that the probabilities reckon with.

    Returns:
      float64 [k], sums to 1.
    """
    prior = source_prior
    for _ in range(EM_ROUNDS):
        following = with_prior(probabilities, source_prior, prior).mean(axis=0)
        change = np.abs(following - prior).max()
        prior = following
        if change < EM_TOLERANCE:
            break
    return prior


def with_prior(
    probabilities: np.ndarray, source_prior: np.ndarray, prior: np.ndarray
) -> np.ndarray:
    """float64 [n, k]: probabilities for other shares of the classes, by Bayes' rule."""
    weighted = probabilities * (prior / source_prior)
    return weighted / weighted.sum(axis=1, keepdims=True)


def from_validation(tables: Sequence[predictions.Table]) -> dict[str, Any] | None:
    """What validation says about a run's probabilities.

    Args:
      tables: predictions of the validation parts of all its sources.

    Returns:
      {"temperature", "source_prior": float64 [k], the mean calibrated probabilities
      (Alexandari, Kundaje and Shrikumar 2020), "n": images, "sets": their names}; None without
      a labelled image.
    """
    known = [table["label"] >= 0 for table in tables]
    if not any(rows.any() for rows in known):
        return None
    labels = np.concatenate([t["label"][rows] for t, rows in zip(tables, known, strict=True)])
    probabilities = np.concatenate(
        [t["probabilities"][rows] for t, rows in zip(tables, known, strict=True)]
    )
    temperature = fit_temperature(labels, probabilities)
    return {
        "temperature": temperature,
        "source_prior": with_temperature(probabilities, temperature).mean(axis=0),
        "n": len(labels),
        "sets": [f"{table['dataset'][0]} {table['split'][0]}" for table in tables],
    }


def write_label_shift(file: Path, fitted: dict[str, Any]) -> Path:
    """Writes the variant `label_shift` of a predictions table beside it.

    The images' own predictions say how often each class occurs there; their labels are not
    read. It is a separate table because it sees the whole test set before it answers.

    Args:
      file: the table.
      fitted: from `from_validation`.
    """
    table, classes = predictions.read(file)
    calibrated = with_temperature(table["probabilities"], fitted["temperature"])
    prior = shifted_prior(calibrated, fitted["source_prior"])
    table["probabilities"] = with_prior(calibrated, fitted["source_prior"], prior)
    name = predictions.file_name(str(table["dataset"][0]), str(table["split"][0]), LABEL_SHIFT)
    predictions.write(file.with_name(name), table, classes)
    return file.with_name(name)
