"""Uncertainty by resampling whole people: every metric, thousands of draws, in seconds.

Images of one person are not independent witnesses, so clusters of images are drawn. A draw is
a count per cluster, and a metric of the drawn images is the metric with every image weighted
by its cluster's count: the sorting that the areas need is done once for all draws.

The interval is t times a standard error, on the logit scale for what lies between 0 and 1
(Boyd, Eng and Page 2013 for the area under the precision-recall curve; Korn and Graubard 1998
for proportions of clustered samples), on the log scale for the loss.
- The standard error is the root mean square of (draw - estimate). G - 1 of G clusters are drawn,
  which makes the variance of a mean unbiased (Rao and Wu 1988). Where that of the jackknife over
  clusters is larger it is taken: draws understate what a class that few people show adds, and
  the jackknife errs to the other side (Efron and Stein 1981).
- Clusters of unequal size tell less than as many equal ones, so t has the effective number of
  clusters less one degrees of freedom (Carter, Schnepel and Steigerwald 2017).
`fer-jax benchmark statistics` measures how often such intervals hold the truth; percentiles of
the same draws were too narrow below 200 clusters.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse, special

from fer_jax.evaluation import metrics

DRAWS = 2000
LEVEL = 0.95
FEW_CLUSTERS = 20
MUCH_UNDEFINED = 0.01
# With more clusters no single one matters, and the jackknife would cost more than the draws.
JACKKNIFE_CLUSTERS = DRAWS
# float64 values in the largest array of a block of draws: 64 MiB, of which a few exist at once.
BLOCK_VALUES = 2**23
# Draws that differ by less than this differ by rounding only.
ROUNDING = 1e-12

SCALARS = ("accuracy", "balanced_accuracy", "macro_f1", "pr_auc", "roc_auc", "ece", "loss")
BY_CLASS = ("recall", "precision", "f1", "class_pr_auc", "class_roc_auc")
AREAS = ("pr_auc", "roc_auc", "class_pr_auc", "class_roc_auc")


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One class against the rest: a row for each of the t scores that a positive has.

    Attributes:
      positive: sparse [t, g], positives of each cluster at this score; highest score first.
      passed: sparse [t, g], negatives at this score or between it and the row above.
      tied: sparse [t, g], negatives at exactly this score; None where there are none at all.
    """

    positive: Any
    passed: Any
    tied: Any


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the draws need of a predictor.

    Attributes:
      sums: sparse [k * k + 1 + bins, g]: confusion cells, loss and calibration gaps by cluster.
      ranked: one per class; empty where the areas are not wanted.
      num_classes: k.
    """

    sums: Any
    ranked: Sequence[Ranked]
    num_classes: int


def clusters(table: dict[str, np.ndarray]) -> tuple[np.ndarray, str]:
    """Which images go together: those of a subject, else of a clip, else each alone.

    Args:
      table: columns of a predictions table; subject_id, clip_id and record_id are read.

    Returns:
      (int64 [n], numbers 0..g-1; "subject", "clip" or "image", or those that occur joined by
      "+" where images differ in what is known of them).
    """
    subject, clip = table["subject_id"] != "", table["clip_id"] != ""
    kind = np.where(subject, "subject", np.where(clip, "clip", "image"))
    name = np.where(
        subject, table["subject_id"], np.where(clip, table["clip_id"], table["record_id"])
    )
    keys = np.char.add(np.char.add(kind, "/"), name)
    occurring = [word for word in ("subject", "clip", "image") if (kind == word).any()]
    return np.unique(keys, return_inverse=True)[1], "+".join(occurring)


def effective_number(sizes: np.ndarray) -> np.ndarray:
    """How many equal clusters tell as much as these: (sum of sizes)^2 / sum of squared sizes.

    Args:
      sizes: float [..., g].

    Returns:
      float64 [...]; 0 where all sizes are.
    """
    total = sizes.sum(axis=-1, dtype=np.float64)
    return np.nan_to_num(metrics.ratio(total**2, np.square(sizes, dtype=np.float64).sum(axis=-1)))


def prepare(
    labels: np.ndarray,
    probabilities: np.ndarray,
    cluster: np.ndarray,
    num_clusters: int,
    *,
    areas: bool = True,
) -> Prepared:
    """Sums by cluster, and every class's images sorted by score.

    Args:
      labels: int [n].
      probabilities: float64 [n, k].
      cluster: int [n], numbers below num_clusters.
      num_clusters: g.
      areas: whether PR-AUC and ROC-AUC are wanted.
    """
    n, k = probabilities.shape
    bins, confidence, correct = metrics.confidence_bins(labels, probabilities)
    cells = metrics.confusion_cells(labels, probabilities)
    rows = np.concatenate([cells, np.full(n, k * k), k * k + 1 + bins])
    values = np.concatenate(
        [np.ones(n), metrics.losses(labels, probabilities), correct - confidence]
    )
    sums = sparse.csr_array(
        (values, (rows, np.tile(cluster, 3))), shape=(k * k + 1 + metrics.NUM_BINS, num_clusters)
    )
    ranked = [
        _rank(labels == c, probabilities[:, c], cluster, num_clusters) for c in range(k) if areas
    ]
    return Prepared(sums, ranked, k)


def _rank(
    positive: np.ndarray, scores: np.ndarray, cluster: np.ndarray, num_clusters: int
) -> Ranked:
    # A curve gains area only where it passes a positive: other scores need no row.
    thresholds = np.unique(scores[positive])
    t = len(thresholds)
    row = t - np.searchsorted(thresholds, scores, side="right")
    passed = ~positive & (row < t)
    tied = passed.copy()
    tied[passed] = thresholds[t - 1 - row[passed]] == scores[passed]

    def count(chosen: np.ndarray) -> Any:
        ones = np.ones(np.count_nonzero(chosen))
        return sparse.csr_array((ones, (row[chosen], cluster[chosen])), shape=(t, num_clusters))

    return Ranked(count(positive), count(passed), count(tied) if tied.any() else None)


def score_draws(prepared: Prepared, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of `metrics.score` for many weightings of the clusters.

    Args:
      prepared: from `prepare`.
      weights: float64 [g, draws], non-negative.

    Returns:
      `SCALARS`: float64 [draws]; `BY_CLASS` and `prevalence`: float64 [draws, k]. `AREAS` are
      absent where they were not prepared.
    """
    k = prepared.num_classes
    sums = prepared.sums @ weights
    confusion = sums[: k * k].T.reshape(-1, k, k)
    total = confusion.sum(axis=(1, 2))
    scored = metrics.from_confusion(confusion)
    scored["loss"] = metrics.ratio(sums[k * k], total)
    scored["ece"] = metrics.ratio(np.abs(sums[k * k + 1 :]).sum(axis=0), total)
    if prepared.ranked:
        support = confusion.sum(axis=2)
        areas = [
            # Not the total less the positives: fractional weights would leave a remainder of 0.
            _areas(ranked, weights, support[:, c], np.delete(support, c, axis=1).sum(axis=1))
            for c, ranked in enumerate(prepared.ranked)
        ]
        for name, values in zip(("pr_auc", "roc_auc"), zip(*areas, strict=True), strict=True):
            scored[f"class_{name}"] = np.stack(values, axis=1)
            scored[name] = metrics.mean_defined(scored[f"class_{name}"])
    return scored


def _areas(
    ranked: Ranked, weights: np.ndarray, positives: np.ndarray, negatives: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`metrics.binary_areas` for every draw: (PR-AUC, ROC-AUC), float64 [draws] each."""
    gained = ranked.positive @ weights
    true, false = np.cumsum(gained, axis=0), np.cumsum(ranked.passed @ weights, axis=0)
    pairs = positives * negatives
    reached = true + false
    precision = np.divide(true, reached, out=true, where=reached > 0)
    pr_auc = metrics.ratio(np.einsum("td,td->d", gained, precision), positives)
    if ranked.tied is not None:
        false -= (ranked.tied @ weights) / 2
    return pr_auc, metrics.ratio(pairs - np.einsum("td,td->d", gained, false), pairs)


def draw(num_clusters: int, num_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Counts of g - 1 clusters drawn with replacement from g: float64 [g, num_draws]."""
    counts = np.empty((num_clusters, num_draws))
    for column in range(num_draws):
        drawn = rng.integers(0, num_clusters, num_clusters - 1)
        counts[:, column] = np.bincount(drawn, minlength=num_clusters)
    return counts


class Replicates(NamedTuple):
    """A predictor's metrics, as `score_draws` returns them.

    Attributes:
      draws: of each draw of clusters.
      left_out: without each cluster in turn; empty for more than `JACKKNIFE_CLUSTERS`.
    """

    draws: dict[str, np.ndarray]
    left_out: dict[str, np.ndarray]


def replicates(
    prepared: Sequence[Prepared],
    sizes: np.ndarray,
    *,
    scale: np.ndarray | None = None,
    num_draws: int = DRAWS,
    seed: int = 0,
) -> list[Replicates]:
    """The metrics of several predictors of the same images, in the same draws.

    Args:
      prepared: one per predictor, over the same clusters.
      sizes: int [g], images of each cluster.
      scale: float64 [g], what an image of each cluster weighs; None means 1.
      num_draws: how many.
      seed: of the draws; the same seed gives the same draws.

    Returns:
      One per predictor; empty from fewer than two clusters.
    """
    num_clusters = len(sizes)
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_VALUES // max(int(sizes.sum()), num_clusters))
    weigh = np.ones(num_clusters) if scale is None else scale

    def scored(number: int, weights: Callable[[int, int], np.ndarray]) -> list[dict[str, Any]]:
        found: list[list[dict[str, np.ndarray]]] = [[] for _ in prepared]
        for first in range(0, max(number, 1), block):
            weighted = weights(first, min(first + block, number)) * weigh[:, None]
            for one, blocks in zip(prepared, found, strict=True):
                blocks.append(score_draws(one, weighted))
        return [
            {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
            for blocks in found
        ]

    alone = num_clusters < 2
    drawn = scored(
        0 if alone else num_draws, lambda start, stop: draw(num_clusters, stop - start, rng)
    )
    left_out = scored(
        0 if alone or num_clusters > JACKKNIFE_CLUSTERS else num_clusters,
        lambda start, stop: 1.0 - (np.arange(num_clusters)[:, None] == np.arange(start, stop)),
    )
    return [Replicates(*both) for both in zip(drawn, left_out, strict=True)]


def bootstrap_error(estimate: float, draws: np.ndarray) -> float:
    """The root mean square of (draw - estimate) over the defined draws; NaN without one.

    A bias of the draws is counted as error too.
    """
    defined = draws[np.isfinite(draws)]
    return float(np.sqrt(np.mean(np.square(defined - estimate)))) if len(defined) else np.nan


def jackknife_error(estimate: float, left_out: np.ndarray) -> float:
    """Tukey's standard error, sqrt((m - 1) / m * sum of squares), over the m defined values."""
    defined = left_out[np.isfinite(left_out)]
    if not len(defined):
        return np.nan
    return float(np.sqrt((len(defined) - 1) * np.mean(np.square(defined - estimate))))


def standard_error(estimate: float, draws: np.ndarray, left_out: np.ndarray) -> float:
    """The larger of both; NaN where neither exists.

    Args:
      estimate: a metric, or a difference of two.
      draws: float64 [draws], it in each draw.
      left_out: float64 [g] or [0], it without each cluster.
    """
    return float(np.fmax(bootstrap_error(estimate, draws), jackknife_error(estimate, left_out)))


def quantile_of_t(degrees: float) -> float:
    """How many standard errors an interval of `LEVEL` reaches; NaN below one degree of freedom.

    Less than one means that a single cluster holds most of the images.
    """
    return float(special.stdtrit(degrees, (1 + LEVEL) / 2)) if degrees >= 1 else float("nan")


def interval(name: str, estimate: float, error: float, degrees: float) -> list[float]:
    """Where the metric of new clusters of the same kind lies, with confidence `LEVEL`.

    Args:
      name: of the metric; says on which scale the interval is symmetric.
      estimate: the metric of the images.
      error: from `standard_error`.
      degrees: of freedom of t.

    Returns:
      [low, high]; NaN where the error or `quantile_of_t` is, and where the error is 0: a score
      that all clusters have in common, such as all right, does not show how far others may be.
    """
    reach = quantile_of_t(degrees) * error
    if not np.isfinite(reach) or error <= ROUNDING:
        return [float("nan")] * 2
    if name == "ece":  # its draws lie above the estimate, never as far below it
        return [max(0.0, estimate - reach), min(1.0, estimate + reach)]
    if name == "loss":
        factor = np.exp(reach / estimate)
        return [float(estimate / factor), float(estimate * factor)]
    # The derivative of the logit brings the standard error to its scale (delta method).
    reach /= estimate * (1 - estimate)
    middle = special.logit(estimate)
    return [float(special.expit(middle - reach)), float(special.expit(middle + reach))]


def difference(estimate: float, error: float, degrees: float) -> dict[str, float | list[float]]:
    """A difference with its interval and its two-sided p-value.

    Args:
      estimate: the difference on the images.
      error: its `standard_error`.
      degrees: of freedom of t.

    Returns:
      {"difference", "interval": [low, high], "p"}: p is the chance of a t as far from 0 if there
      were no difference, so the interval leaves out 0 exactly where p < 1 - LEVEL. No
      difference in any draw is p = 1; NaN where `interval` would be.
    """
    reach, p = float("nan"), float("nan")
    if abs(estimate) <= ROUNDING and error <= ROUNDING:
        reach, p = 0.0, 1.0
    elif degrees >= 1 and error > ROUNDING:
        reach = quantile_of_t(degrees) * error
        p = float(2 * special.stdtr(degrees, -abs(estimate) / error))
    return {"difference": estimate, "interval": [estimate - reach, estimate + reach], "p": p}


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several (Holm 1979); NaN stays and is not counted."""
    corrected = np.full(len(p_values), np.nan)
    defined = np.flatnonzero(np.isfinite(p_values))
    highest = 0.0
    for rank, index in enumerate(defined[np.argsort(np.asarray(p_values)[defined], kind="stable")]):
        highest = max(highest, min(1.0, (len(defined) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected.tolist()


@dataclasses.dataclass(frozen=True)
class Sample:
    """Labelled images and their clusters: what predictors are scored and compared on.

    Attributes:
      labels: int [n].
      cluster: int [n], numbers 0..g-1.
      num_classes: k.
      scale: float64 [g], what an image of each cluster weighs.
    """

    labels: np.ndarray
    cluster: np.ndarray
    num_classes: int
    scale: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Images of each cluster: int [g]."""
        return np.bincount(self.cluster, minlength=len(self.scale))

    def degrees(self) -> tuple[float, np.ndarray]:
        """Degrees of freedom of t: of all images, and float64 [k] of each class's images.

        A class has as many clusters as have an image of it.
        """
        by_class = np.zeros((self.num_classes, len(self.scale)))
        np.add.at(by_class, (self.labels, self.cluster), 1.0)
        by_class *= self.scale
        return float(effective_number(by_class.sum(axis=0))) - 1, effective_number(by_class) - 1


def sample(
    labels: np.ndarray, cluster: np.ndarray, num_classes: int, *, equal_clusters: bool = False
) -> Sample:
    """A `Sample`; with `equal_clusters` every cluster weighs the same, whatever its size."""
    names, numbers = np.unique(cluster, return_inverse=True)
    sizes = np.bincount(numbers, minlength=len(names))
    scale = 1 / sizes if equal_clusters else np.ones(len(names))
    return Sample(labels, numbers, num_classes, scale)


def score(
    of: Sample,
    predictors: Sequence[np.ndarray],
    *,
    areas: Sequence[bool] | None = None,
    num_draws: int = DRAWS,
    seed: int = 0,
) -> tuple[list[dict[str, Any]], list[Replicates]]:
    """Scores predictors of the same images, with intervals, in the same draws.

    Args:
      of: the images.
      predictors: probabilities, float64 [n, k] each.
      areas: per predictor, whether PR-AUC and ROC-AUC get intervals; None means all.
      num_draws: how many.
      seed: of the draws.

    Returns:
      (per predictor what `metrics.score` returns and "intervals": {metric: [low, high], or a
      list of these for each class}, "n_clusters", "effective_clusters", "undefined_draws":
      {metric: share of the draws without it, where above 1 %}; the replicates by predictor).
    """
    areas = areas or [True] * len(predictors)
    prepared = [
        prepare(of.labels, probabilities, of.cluster, len(of.scale), areas=wanted)
        for probabilities, wanted in zip(predictors, areas, strict=True)
    ]
    drawn = replicates(prepared, of.sizes, scale=of.scale, num_draws=num_draws, seed=seed)
    degrees, class_degrees = of.degrees()
    scores = []
    for probabilities, (draws, left_out) in zip(predictors, drawn, strict=True):
        scored = metrics.score(of.labels, probabilities, of.scale[of.cluster])
        intervals: dict[str, Any] = {
            name: interval(
                name,
                scored[name],
                standard_error(scored[name], draws[name], left_out[name]),
                degrees,
            )
            for name in SCALARS
            if name in draws
        }
        for name in BY_CLASS:
            if name in draws:
                values, kinds = scored[name], (draws[name].T, left_out[name].T)
                errors = map(standard_error, values, *kinds)
                intervals[name] = [
                    interval(name, *of_class)
                    for of_class in zip(values, errors, class_degrees, strict=True)
                ]
        undefined = {
            name: np.isnan(draws[name]).mean(axis=0) for name in intervals if len(draws[name])
        }
        scores.append(
            scored
            | {
                "n": float(len(of.labels)),
                "n_clusters": len(of.scale),
                "effective_clusters": degrees + 1,
                "intervals": intervals,
                "undefined_draws": {
                    name: share
                    for name, share in undefined.items()
                    if (np.asarray(share) > MUCH_UNDEFINED).any()
                },
            }
        )
    return scores, drawn
