"""Exact metrics from labels and probabilities; an undefined one is NaN, never 0.

An example of weight 2 counts as two examples and one of weight 0 as none, as resampling whole
clusters of examples needs.

To add a metric, compute it here, add it to `bootstrap.score_draws` and `bootstrap.SCALARS`, which
give its interval (on a logit, so for values from 0 to 1), to `results.METRIC_NAMES` and `HEADLINE`,
which name it on pages and in tables, and to report/run.html. To select checkpoints by it, add it to
`training/validation.py` and to `selection_metric` in `fields.py`.
"""

from typing import Any

import numpy as np

NUM_BINS = 15


def score(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, Any]:
    """Computes all metrics of one set.

    `labels` are int [n], `probabilities` float [n, k], rows sum to 1, and `weights` float [n],
    non-negative; None means all 1.

    Returns floats `accuracy`, `balanced_accuracy` (mean recall over the classes that occur),
    `macro_f1` (over the classes that occur), `pr_auc` and `roc_auc` (means over the classes for
    which they are defined, `pr_auc_classes` and `roc_auc_classes` many), `loss` (mean negative
    log-likelihood), `brier` (mean squared distance of the probabilities from the label's one-hot
    vector, 0 to 2), `ece`, `class_ece` (mean over classes of the calibration error of its
    probability), those of `from_confusion`; `prevalence`, `recall`, `precision`, `f1`,
    `class_pr_auc`, `class_roc_auc`: float64 [k]; `confusion`: float64 [k, k], rows are the true
    class; `n`: the sum of the weights.
    """
    labels = np.asarray(labels)
    probabilities = np.asarray(probabilities, np.float64)
    num_classes = probabilities.shape[1]
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    confusion = np.bincount(
        confusion_cells(labels, probabilities), weights=weights, minlength=num_classes**2
    ).reshape(num_classes, num_classes)
    scored: dict[str, Any] = from_confusion(confusion)
    scored = {name: value if value.ndim else float(value) for name, value in scored.items()}
    areas = [binary_areas(labels == c, probabilities[:, c], weights) for c in range(num_classes)]
    pr_auc, roc_auc = np.asarray(areas).T
    total = confusion.sum()
    loss = (weights * losses(labels, probabilities)).sum()
    return scored | {
        "n": float(total),
        "pr_auc": float(mean_defined(pr_auc)),
        "pr_auc_classes": int(np.isfinite(pr_auc).sum()),
        "roc_auc": float(mean_defined(roc_auc)),
        "roc_auc_classes": int(np.isfinite(roc_auc).sum()),
        "loss": float(ratio(loss, total)),
        "brier": float(ratio((weights * squared_errors(labels, probabilities)).sum(), total)),
        "ece": expected_calibration_error(labels, probabilities, weights),
        "class_ece": _class_calibration_error(labels, probabilities, weights),
        "class_pr_auc": pr_auc,
        "class_roc_auc": roc_auc,
        "confusion": confusion,
    }


def confusion_cells(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns each image's cell in the flattened confusion matrix (rows: true class), int64 [n]."""
    return labels * probabilities.shape[1] + probabilities.argmax(axis=1)


def losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns the negative log-likelihood of each image's label, float64 [n]."""
    return -np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1))


def squared_errors(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns each image's squared distance from its label's one-hot vector, float64 [n]."""
    return np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(axis=1)


def from_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the metrics that depend on the confusion matrix alone.

    Of float64 [..., k, k], rows are the true class: `accuracy`, `balanced_accuracy`, `macro_f1`,
    `weighted_f1` (F1 by prevalence), `kappa` (Cohen 1960), `mcc` (Matthews' correlation, Gorodkin
    2004) float64 [...]; `recall`, `precision`, `f1`, `prevalence` float64 [..., k].
    """
    support, given = confusion.sum(axis=-1), confusion.sum(axis=-2)
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    total = support.sum(axis=-1)
    recall = ratio(correct, support)
    f1 = np.where(support > 0, ratio(2 * correct, support + given), np.nan)
    right = correct.sum(axis=-1)
    agreed = (support * given).sum(axis=-1)
    spread = (np.square(total) - np.square(side).sum(axis=-1) for side in (support, given))
    return {
        "weighted_f1": ratio((np.nan_to_num(f1) * support).sum(axis=-1), total),
        "kappa": ratio(right * total - agreed, np.square(total) - agreed),
        "mcc": ratio(right * total - agreed, np.sqrt(np.prod(list(spread), axis=0))),
        "accuracy": ratio(right, total),
        "balanced_accuracy": mean_defined(recall),
        "macro_f1": mean_defined(f1),
        "recall": recall,
        "precision": ratio(correct, given),
        "f1": f1,
        "prevalence": ratio(support, total[..., None]),
    }


def ratio(numerator: Any, denominator: Any) -> Any:
    """Divides, with NaN where the denominator is 0."""
    denominator = np.asarray(denominator, np.float64)
    defined = denominator > 0
    return np.where(defined, numerator / np.where(defined, denominator, 1), np.nan)


def mean_defined(values: np.ndarray) -> np.ndarray:
    """Returns the mean of the finite values along the last axis; NaN without any."""
    defined = np.isfinite(values)
    return ratio(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1))


def _thresholds(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of true and of false positives at every distinct score, highest first."""
    order = np.argsort(-scores, kind="stable")
    positive, scores, weights = positive[order], scores[order], weights[order]
    # Equal scores are one threshold.
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true = np.cumsum(positive * weights)[last]
    return true, np.cumsum(~positive * weights)[last]


def binary_areas(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[float, float]:
    """Computes the areas under the precision-recall and the ROC curve of a class against the rest.

    The first is the average precision, sum over thresholds of (R_i - R_{i-1}) P_i, without
    interpolation, NaN without positives; the second uses the trapezoidal rule, so ties count one
    half, NaN without positives or without negatives.
    """
    true, false = _thresholds(positive, scores, weights)
    positives, negatives = true[-1], false[-1]
    if not positives > 0:
        return float("nan"), float("nan")
    precision = ratio(true, true + false)
    gained = np.diff(true, prepend=0.0)
    # A threshold with weightless examples alone gains nothing and has no precision.
    pr_auc = float(np.where(gained > 0, gained * precision, 0).sum() / positives)
    if not negatives > 0:
        return pr_auc, float("nan")
    area = np.trapezoid(np.append(0.0, true), np.append(0.0, false))
    return pr_auc, float(area / (positives * negatives))


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `weight`, `confidence`, `accuracy` of 15 bins of the highest probability."""
    bins, confidence, correct = confidence_bins(labels, probabilities)
    weight, confidence, accuracy = (
        np.bincount(bins, weights=values, minlength=NUM_BINS)
        for values in (np.ones(len(labels)), confidence, correct)
    )
    return {
        "weight": weight,
        "confidence": ratio(confidence, weight),
        "accuracy": ratio(accuracy, weight),
    }


def confidence_bins(
    labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each image's bin of `reliability`, its confidence, and whether it is right: [n]."""
    confidence = probabilities.max(axis=1)
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return bins, confidence, probabilities.argmax(axis=1) == labels


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> float:
    """Returns the mean over bins of |accuracy - confidence|, by weight (Guo et al. 2017)."""
    bins, confidence, correct = confidence_bins(labels, probabilities)
    gap = np.bincount(bins, weights=weights * (correct - confidence), minlength=NUM_BINS)
    return float(ratio(np.abs(gap).sum(), weights.sum()))


def class_gaps(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each image's bin of every class's probability, and its gap there: [n, k] each.

    Bins are numbered over all classes, 0 to 15 k - 1; a gap is 1 or 0, less the probability.
    """
    k = probabilities.shape[1]
    bins = np.clip(np.ceil(probabilities * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return bins + NUM_BINS * np.arange(k), np.eye(k)[labels] - probabilities


def _class_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> float:
    """Returns the mean over classes of the error of a class's probability (Kull et al. 2019)."""
    bins, gaps = class_gaps(labels, probabilities)
    summed = np.bincount(bins.ravel(), (weights[:, None] * gaps).ravel())
    return float(ratio(np.abs(summed).sum(), probabilities.shape[1] * weights.sum()))


def curves(
    labels: np.ndarray, probabilities: np.ndarray, max_points: int = 200
) -> list[dict[str, np.ndarray] | None]:
    """Computes up to `max_points` points of every class's precision-recall and ROC curve.

    Returns per class {"recall", "precision", "false_positive_rate"}, float64 [points] at evenly
    chosen thresholds with both ends, or None for a class without positives.
    """
    found: list[dict[str, np.ndarray] | None] = []
    for c in range(probabilities.shape[1]):
        positive = labels == c
        if not positive.any():
            found.append(None)
            continue
        true, false = _thresholds(positive, probabilities[:, c], np.ones(len(labels)))
        kept = np.unique(np.linspace(0, len(true) - 1, max_points).round().astype(int))
        found.append(
            {
                "recall": true[kept] / true[-1],
                "precision": true[kept] / (true + false)[kept],
                "false_positive_rate": ratio(false, false[-1])[kept],
            }
        )
    return found
