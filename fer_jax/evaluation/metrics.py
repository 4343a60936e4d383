"""Exact metrics on the host, from labels and probabilities. Undefined is NaN, never 0.

Every function takes example weights: weight 2 counts as the same example twice, weight 0 as
its absence, which is what resampling whole clusters of examples needs.
"""

from typing import Any

import numpy as np

NUM_BINS = 15


def score(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, Any]:
    """All metrics of one set.

    Args:
      labels: int [n], indices of classes.
      probabilities: float [n, k], rows sum to 1.
      weights: float [n], non-negative; None means all 1.

    Returns:
      Floats `accuracy`, `balanced_accuracy` (mean recall over the classes that occur),
      `macro_f1` (over the classes that occur), `pr_auc` and `roc_auc` (means over the classes
      for which they are defined, `pr_auc_classes` and `roc_auc_classes` many), `loss` (mean
      negative log-likelihood), `ece`; `prevalence`, `recall`, `precision`, `f1`,
      `class_pr_auc`, `class_roc_auc`: float64 [k]; `confusion`: float64 [k, k], rows are the
      true class; `n`: the sum of the weights.
    """
    labels = np.asarray(labels)
    probabilities = np.asarray(probabilities, np.float64)
    num_classes = probabilities.shape[1]
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    confusion = np.bincount(
        confusion_cells(labels, probabilities), weights=weights, minlength=num_classes**2
    ).reshape(num_classes, num_classes)
    by_class = from_confusion(confusion)
    one_vs_rest = [
        binary_areas(labels == c, probabilities[:, c], weights) for c in range(num_classes)
    ]
    pr_auc, roc_auc = np.asarray(one_vs_rest).T
    total = confusion.sum()
    return {
        "n": float(total),
        "accuracy": float(by_class["accuracy"]),
        "balanced_accuracy": float(by_class["balanced_accuracy"]),
        "macro_f1": float(by_class["macro_f1"]),
        "pr_auc": float(mean_defined(pr_auc)),
        "pr_auc_classes": int(np.isfinite(pr_auc).sum()),
        "roc_auc": float(mean_defined(roc_auc)),
        "roc_auc_classes": int(np.isfinite(roc_auc).sum()),
        "loss": float(ratio((weights * losses(labels, probabilities)).sum(), total)),
        "ece": expected_calibration_error(labels, probabilities, weights),
        "prevalence": by_class["prevalence"],
        "recall": by_class["recall"],
        "precision": by_class["precision"],
        "f1": by_class["f1"],
        "class_pr_auc": pr_auc,
        "class_roc_auc": roc_auc,
        "confusion": confusion,
    }


def confusion_cells(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """int64 [n]: each image's cell in the flattened confusion matrix (rows: true class)."""
    return labels * probabilities.shape[1] + probabilities.argmax(axis=1)


def losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """float64 [n]: the negative log-likelihood of each image's label."""
    return -np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1))


def from_confusion(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics that need only how often each class was taken for each.

    Args:
      confusion: float64 [..., k, k], rows are the true class.

    Returns:
      `accuracy`, `balanced_accuracy`, `macro_f1`: float64 [...]; `recall`, `precision`, `f1`,
      `prevalence`: float64 [..., k].
    """
    support, given = confusion.sum(axis=-1), confusion.sum(axis=-2)
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    total = support.sum(axis=-1)
    recall = ratio(correct, support)
    f1 = np.where(support > 0, ratio(2 * correct, support + given), np.nan)
    return {
        "accuracy": ratio(correct.sum(axis=-1), total),
        "balanced_accuracy": mean_defined(recall),
        "macro_f1": mean_defined(f1),
        "recall": recall,
        "precision": ratio(correct, given),
        "f1": f1,
        "prevalence": ratio(support, total[..., None]),
    }


def ratio(numerator: Any, denominator: Any) -> Any:
    """Division with NaN where the denominator is 0."""
    denominator = np.asarray(denominator, np.float64)
    defined = denominator > 0
    return np.where(defined, numerator / np.where(defined, denominator, 1), np.nan)


def mean_defined(values: np.ndarray) -> np.ndarray:
    """The mean along the last axis of what is not NaN; NaN if nothing is."""
    defined = np.isfinite(values)
    return ratio(np.where(defined, values, 0).sum(axis=-1), defined.sum(axis=-1))


def _thresholds(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of true and false positives at every distinct score, highest first; the scores."""
    order = np.argsort(-scores, kind="stable")
    positive, scores, weights = positive[order], scores[order], weights[order]
    # Equal scores are one threshold: they cannot be told apart.
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    true = np.cumsum(positive * weights)[last]
    false = np.cumsum(~positive * weights)[last]
    return true, false, scores[last]


def binary_areas(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[float, float]:
    """Areas under the precision-recall and the ROC curve of one class against the rest.

    The first is the average precision, sum over thresholds of (R_i - R_{i-1}) P_i, without
    interpolation; the second by the trapezoidal rule, ties counting one half.

    Args:
      positive: bool [n].
      scores: float [n].
      weights: float [n].

    Returns:
      (PR-AUC, NaN without positives; ROC-AUC, NaN without positives or without negatives).
    """
    true, false, _ = _thresholds(positive, scores, weights)
    positives, negatives = true[-1], false[-1]
    if not positives > 0:
        return float("nan"), float("nan")
    precision = ratio(true, true + false)
    gained = np.diff(true, prepend=0.0)
    # A threshold that only weightless examples reach gains nothing and has no precision.
    pr_auc = float(np.where(gained > 0, gained * precision, 0).sum() / positives)
    if not negatives > 0:
        return pr_auc, float("nan")
    area = np.trapezoid(np.append(0.0, true), np.append(0.0, false))
    return pr_auc, float(area / (positives * negatives))


def reliability(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Confidence against accuracy in 15 equal bins of the highest probability.

    Returns:
      `weight`, `confidence`, `accuracy`: float64 [15]; the latter two NaN in empty bins.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    bins, confidence, correct = confidence_bins(labels, probabilities)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(bins, weights=values, minlength=NUM_BINS)

    weight = total(weights)
    return {
        "weight": weight,
        "confidence": ratio(total(weights * confidence), weight),
        "accuracy": ratio(total(weights * correct), weight),
    }


def confidence_bins(
    labels: np.ndarray, probabilities: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each image's bin of `reliability`, its confidence, and whether it was right: [n] each."""
    confidence = probabilities.max(axis=1)
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return bins, confidence, probabilities.argmax(axis=1) == labels


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> float:
    """Mean over bins of |accuracy - confidence|, by weight (Guo et al. 2017; 15 bins)."""
    bins, confidence, correct = confidence_bins(labels, probabilities)
    gap = np.bincount(bins, weights=weights * (correct - confidence), minlength=NUM_BINS)
    return float(ratio(np.abs(gap).sum(), weights.sum()))


def curves(
    labels: np.ndarray, probabilities: np.ndarray, max_points: int = 200
) -> list[dict[str, np.ndarray] | None]:
    """Points of the precision-recall and ROC curves, one entry per class.

    Args:
      labels: int [n].
      probabilities: float [n, k].
      max_points: evenly chosen thresholds that are kept; the ends always are.

    Returns:
      Per class {"recall", "precision", "false_positive_rate"}, float64 [points], or None for
      a class without positives.
    """
    found: list[dict[str, np.ndarray] | None] = []
    for c in range(probabilities.shape[1]):
        positive = labels == c
        if not positive.any():
            found.append(None)
            continue
        true, false, _ = _thresholds(positive, probabilities[:, c], np.ones(len(labels)))
        kept = np.unique(np.linspace(0, len(true) - 1, max_points).round().astype(int))
        found.append(
            {
                "recall": true[kept] / true[-1],
                "precision": true[kept] / (true + false)[kept],
                "false_positive_rate": ratio(false, false[-1])[kept],
            }
        )
    return found
