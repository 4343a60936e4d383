"""Calibration: a temperature from validation, and class priors of unlabelled test images.

Both act on predictions tables alone: softmax(log p / T) is what dividing the logits by T gives.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.config import Config
from fer_jax.data.experiment import as_source
from fer_jax.evaluation import predictions

LABEL_SHIFT = "label_shift"
# The range of the search: at the ends probabilities are certain or uniform.
COLDEST, HOTTEST = 1 / 64, 64.0
BISECTIONS = 60
SMALLEST = 1e-12  # as in metrics.losses: a probability of 0 has no logarithm
EM_ROUNDS = 10_000
EM_TOLERANCE = 1e-10


def with_temperature(
    probabilities: np.ndarray, temperature: float, smallest: float = SMALLEST
) -> np.ndarray:
    """Returns probabilities as if the logits had been divided by the temperature, float64 [n, k].

    Probabilities below `smallest` are raised to it before the logarithm.
    """
    logits = _log_probabilities(probabilities, smallest) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _log_probabilities(probabilities: np.ndarray, smallest: float) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, np.float64), smallest))


def fit_temperature(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    bounds: tuple[float, float] = (COLDEST, HOTTEST),
    smallest: float = SMALLEST,
) -> float:
    """Returns the temperature within the bounds that has the smallest loss (Guo et al. 2017).

    The loss is convex in 1 / T, so the sign of its derivative is bisected. Of temperatures with the
    same loss it is the highest. `labels` int [n] and `probabilities` float [n, k] are of validation
    images; `smallest` is as in `with_temperature`.
    """
    logits = _log_probabilities(probabilities, smallest)
    given = logits[np.arange(len(labels)), labels].sum()

    def too_hot(temperature: float) -> bool:
        # d loss / d(1/T) is the expected less the given logit, summed.
        return (with_temperature(probabilities, temperature, smallest) * logits).sum() < given

    low, high = np.log(bounds)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if too_hot(np.exp(middle)) else (middle, high)
    return float(np.exp((low + high) / 2))


def shifted_prior(probabilities: np.ndarray, source_prior: np.ndarray) -> np.ndarray:
    """Estimates the class shares, float64 [k], of images from their probabilities, float64 [n, k].

    Expectation maximization of Saerens, Latinne and Decaestecker (2002); it assumes calibrated
    probabilities and that nothing but the shares of the classes differs. `source_prior`, float64
    [k], are the class shares that the probabilities assume.
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
    """Returns the probabilities for other class shares by Bayes' rule, float64 [n, k]."""
    weighted = probabilities * (prior / source_prior)
    return weighted / weighted.sum(axis=1, keepdims=True)


def validation_files(workdir: Path, config: Config) -> list[Path]:
    """Returns the predictions of the parts that a run's checkpoint was selected on."""
    sources = [as_source(entry) for entry in config.sources]
    names = [predictions.file_name(source.name, source.validation) for source in sources]
    files = [workdir / "predictions" / name for name in dict.fromkeys(names)]
    return [file for file in files if file.is_file()]


def of_run(workdir: Path, config: Config) -> dict[str, Any] | None:
    """Returns `from_validation` of a run's tables."""
    files = validation_files(workdir, config)
    return from_validation([predictions.read(file)[0] for file in files])


def from_validation(tables: Sequence[predictions.Table]) -> dict[str, Any] | None:
    """Fits a run's temperature to the predictions of its validation parts.

    Returns {"temperature", "source_prior": float64 [k], the mean calibrated probabilities
    (Alexandari, Kundaje and Shrikumar 2020), "n": images, "sets": their names}; None without a
    labelled image.
    """
    labelled = [predictions.labelled(table) for table in tables]
    if not any(len(table["label"]) for table in labelled):
        return None
    labels = np.concatenate([table["label"] for table in labelled])
    probabilities = np.concatenate([table["probabilities"] for table in labelled])
    temperature = fit_temperature(labels, probabilities)
    return {
        "temperature": temperature,
        "source_prior": with_temperature(probabilities, temperature).mean(axis=0),
        "n": len(labels),
        "sets": [f"{table['dataset'][0]} {table['split'][0]}" for table in tables],
    }


def write_label_shift(file: Path, fitted: dict[str, Any]) -> Path:
    """Writes the variant `label_shift` of a predictions table next to it.

    The class shares are estimated from the images' own predictions; labels are not read. It is a
    separate table because it depends on the whole test set. `fitted` is from `from_validation`.
    """
    table, classes = predictions.read(file)
    calibrated = with_temperature(table["probabilities"], fitted["temperature"])
    prior = shifted_prior(calibrated, fitted["source_prior"])
    table["probabilities"] = with_prior(calibrated, fitted["source_prior"], prior)
    shifted = file.with_suffix(f".{LABEL_SHIFT}.csv")
    predictions.write(shifted, table, classes, predictions.read_origin(file))
    return shifted
