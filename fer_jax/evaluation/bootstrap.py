"""Cluster bootstrap: intervals and p-values of every metric by reweighting whole people.

Images of one person are not independent, so clusters of images are drawn. A draw is a weight per
cluster, and a metric of a draw is the metric with every image weighted by its cluster's weight:
the sorting that the areas need is done once for all draws.

The weights are standard exponential (the Bayesian bootstrap, Rubin 1981), computed from the
cluster's name and the draw's number alone. A person therefore has the same weight in every test
set, for every model and in every run, and estimates of several of them are added, subtracted and
averaged draw by draw (`combine`): what they have in common is in the draws of the result. A class
or a small test set is absent from no draw.

The interval is t times a standard error, on the logit scale for what lies between 0 and 1
(Boyd, Eng and Page 2013 for the area under the precision-recall curve; Korn and Graubard 1998
for proportions of clustered samples), on the log scale for the loss and the Brier score.
- The standard error is the root mean square of (draw - estimate), times sqrt((g + 1) / (g - 1)),
  which makes the variance of a mean of g clusters unbiased. If the jackknife over clusters gives
  a larger one, that is used: draws underestimate the variance that comes from a class of few
  people, and the jackknife overestimates it (Efron and Stein 1981).
- A class that only one cluster has does not show its error; in means over classes it is taken to
  be that of one cluster of the other classes.
- Clusters of unequal size have less information than as many equal ones, so t has the effective
  number of clusters less one degrees of freedom (Carter, Schnepel and Steigerwald 2017). In a sum
  of estimates a cluster counts by its share in each, and these by their shares of the variance.
- Seeds are a second source of error: the variance between them, less what the choice of clusters
  explains of it, with degrees of freedom by Welch and Satterthwaite.
`fer-jax benchmark statistics` measures how often such intervals cover the true value; percentiles
of the draws were too narrow below 200 clusters.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse, special

from fer_jax.evaluation import metrics
from fer_jax.evaluation.predictions import GROUP

DRAWS = 2000
CORRECTION_DRAWS = 20_000  # a corrected p of 0.05 has a standard error of 0.0015
LEVEL = 0.95
POWER = 0.8
FEW_CLUSTERS = 20
# With more clusters the jackknife changes little and would cost more than the draws.
JACKKNIFE_CLUSTERS = DRAWS
# float64 values in the largest array of a block of draws: 64 MiB, of which a few exist at once.
BLOCK_VALUES = 2**23
# Smaller differences between draws are rounding errors.
ROUNDING = 1e-12

SCALARS = (
    *("accuracy", "balanced_accuracy", "macro_f1", "pr_auc", "roc_auc", "ece", "loss"),
    *("weighted_f1", "kappa", "mcc", "brier", "class_ece"),
)
BY_CLASS = ("recall", "precision", "f1", "class_pr_auc", "class_roc_auc")
# Means over classes, and the values that they are means of.
MEAN_OF = {
    "balanced_accuracy": "recall",
    "macro_f1": "f1",
    "pr_auc": "class_pr_auc",
    "roc_auc": "class_roc_auc",
}


@dataclasses.dataclass(frozen=True)
class Sample:
    """Labelled images and their clusters, on which predictors are scored and compared."""

    labels: np.ndarray  # int [n]
    cluster: np.ndarray  # int [n], numbers 0..g-1
    num_classes: int
    keys: np.ndarray  # uint64 [g], the same for a cluster in every sample
    scale: np.ndarray  # float64 [g], the weight of an image of each cluster
    kind: str = ""  # of the clusters, as `clusters` names it

    def describe(self) -> dict[str, Any]:
        """Returns the clusters' kind, number, effective number, and the number with each class."""
        return {
            "cluster": self.kind,
            "n_clusters": len(self.scale),
            "effective_clusters": float(effective_number(self.sizes())),
            "class_clusters": [
                int(np.count_nonzero(self.sizes(label))) for label in range(self.num_classes)
            ],
        }

    def sizes(self, label: int | None = None) -> np.ndarray:
        """Returns the weighted number of images of each cluster, of one label or of all, [g]."""
        chosen = slice(None) if label is None else self.labels == label
        return np.bincount(self.cluster[chosen], minlength=len(self.scale)) * self.scale


def sample(
    labels: np.ndarray, cluster: np.ndarray, num_classes: int, *, equal_clusters: bool = False
) -> Sample:
    """Returns a `Sample` of images by the names of their clusters, of equal weight if asked."""
    names, numbers = np.unique(cluster, return_inverse=True)
    sizes = np.bincount(numbers, minlength=len(names))
    scale = 1 / sizes if equal_clusters else np.ones(len(names))
    digests = (hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in names)
    keys = np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
    return Sample(labels, numbers, num_classes, keys, scale)


def common_classes(samples: Sequence[Sample]) -> list[int]:
    """Returns the classes that all samples have."""
    return sorted(set.intersection(*(set(one.labels.tolist()) for one in samples)))


def sample_table(table: dict[str, np.ndarray], num_classes: int) -> Sample:
    """Returns the labelled images of a predictions table as a `Sample`."""
    cluster, kind = clusters(table)
    return dataclasses.replace(sample(table["label"], cluster, num_classes), kind=kind)


class Ranked(NamedTuple):
    """One class against the rest: sparse [t, g], a row per score of positives, highest first."""

    positive: Any  # positives of each cluster at this score
    passed: Any  # negatives at this score or between it and the row above
    tied: Any  # negatives at exactly this score; None where there are none at all


class Prepared(NamedTuple):
    """A predictor's sums by cluster, from which every draw is computed."""

    # sparse [k * k + 2 + (1 + k) * bins, g]: confusion cells, loss, Brier score, calibration gaps
    # of the highest probability and of every class's
    sums: Any
    ranked: Sequence[Ranked]  # one per class; empty without areas
    num_classes: int


def clusters(table: dict[str, np.ndarray]) -> tuple[np.ndarray, str]:
    """Groups the images of a predictions table by subject, else by clip, else by near-duplicates.

    Returns a name of each image's cluster, str [n], and "subject", "clip", "near-duplicate group"
    or, where these are not known, "image", or several of them joined by "+" where images differ in
    what is known of them.
    """
    columns = (table["subject_id"], table["clip_id"], table.get(GROUP, np.full(1, "")))
    known = [column != "" for column in columns]
    kinds = ("subject", "clip", "near-duplicate group", "image")
    kind = np.select(known, kinds[:-1], kinds[-1])
    name = np.select(known, columns, table["record_id"])
    keys = np.char.add(np.char.add(kind, "/"), name)
    return keys, "+".join(one for one in kinds if (kind == one).any())


def effective_number(sizes: np.ndarray) -> np.ndarray:
    """Returns the number of equal clusters with the same information.

    That is (sum of sizes)^2 / sum of squared sizes along the last axis; 0 where all sizes are 0.
    """
    total = sizes.sum(axis=-1, dtype=np.float64)
    return np.nan_to_num(metrics.ratio(total**2, np.square(sizes, dtype=np.float64).sum(axis=-1)))


def prepare(of: Sample, probabilities: np.ndarray, *, areas: bool = True) -> Prepared:
    """Sums by cluster and, for the areas under curves, sorts every class's images by score."""
    n, k = probabilities.shape
    labels, cluster, num_clusters = of.labels, of.cluster, len(of.scale)
    bins, confidence, correct = metrics.confidence_bins(labels, probabilities)
    cells = metrics.confusion_cells(labels, probabilities)
    of_class, gaps = metrics.class_gaps(labels, probabilities)
    rows = np.concatenate(
        [
            *(cells, np.full(n, k * k), np.full(n, k * k + 1), k * k + 2 + bins),
            *(k * k + 2 + metrics.NUM_BINS + of_class).T,
        ]
    )
    errors = (metrics.losses(labels, probabilities), metrics.squared_errors(labels, probabilities))
    values = np.concatenate([np.ones(n), *errors, correct - confidence, *gaps.T])
    shape = (k * k + 2 + (1 + k) * metrics.NUM_BINS, num_clusters)
    sums = sparse.csr_array((values, (rows, np.tile(cluster, 4 + k))), shape=shape)
    ranked = [
        _rank(labels == c, probabilities[:, c], cluster, num_clusters) for c in range(k) if areas
    ]
    return Prepared(sums, ranked, k)


def _rank(
    positive: np.ndarray, scores: np.ndarray, cluster: np.ndarray, num_clusters: int
) -> Ranked:
    # A curve gains area only at the score of a positive: other scores need no row.
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
    """Computes the metrics of `metrics.score` for many weightings of the clusters.

    Returns for float64 [g, draws] the `SCALARS`, float64 [draws], `BY_CLASS` and `prevalence`,
    float64 [draws, k]; without the areas where they were not prepared.
    """
    k = prepared.num_classes
    sums = prepared.sums @ weights
    confusion = sums[: k * k].T.reshape(-1, k, k)
    total = confusion.sum(axis=(1, 2))
    scored = metrics.from_confusion(confusion)
    scored["loss"] = metrics.ratio(sums[k * k], total)
    scored["brier"] = metrics.ratio(sums[k * k + 1], total)
    gaps = np.abs(sums[k * k + 2 :])
    scored["ece"] = metrics.ratio(gaps[: metrics.NUM_BINS].sum(axis=0), total)
    scored["class_ece"] = metrics.ratio(gaps[metrics.NUM_BINS :].sum(axis=0), k * total)
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
    """Computes `metrics.binary_areas` for every draw: (PR-AUC, ROC-AUC), float64 [draws] each."""
    gained = ranked.positive @ weights
    true, false = np.cumsum(gained, axis=0), np.cumsum(ranked.passed @ weights, axis=0)
    pairs = positives * negatives
    reached = true + false
    precision = np.divide(true, reached, out=true, where=reached > 0)
    pr_auc = metrics.ratio(np.einsum("td,td->d", gained, precision), positives)
    if ranked.tied is not None:
        false -= (ranked.tied @ weights) / 2
    return pr_auc, metrics.ratio(pairs - np.einsum("td,td->d", gained, false), pairs)


def draw(keys: np.ndarray, first: int, stop: int, seed: int = 0) -> np.ndarray:
    """Draws the weights of clusters, standard exponential: float64 [g, stop - first].

    The bits are those of SplitMix64 (Steele, Lea and Flood 2014), started at a cluster's key.
    """
    step = (np.arange(first + 1, stop + 1, dtype=np.uint64) + (seed << 32)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    bits = keys[:, None] + step
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    bits >>= np.uint64(11)
    uniform = bits.astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-53
    return np.negative(np.log(uniform, out=uniform), out=uniform)


@dataclasses.dataclass(frozen=True)
class Resampled:
    """Predictors of the same images, scored in the same draws.

    `draws` have what `score_draws` returns, `left_out` likewise without each cluster in turn; the
    latter are empty from one cluster, and from more than `JACKKNIFE_CLUSTERS`.
    """

    of: Sample
    scored: Sequence[dict[str, Any]]  # from `metrics.score`, one per predictor
    draws: Sequence[dict[str, np.ndarray]]
    left_out: Sequence[dict[str, np.ndarray]]


def resample(
    of: Sample,
    predictors: Sequence[np.ndarray],
    *,
    areas: bool = True,
    num_draws: int = DRAWS,
    seed: int = 0,
) -> Resampled:
    """Scores predictors, float64 [n, k] each, of the same images in the same draws of clusters.

    Without `areas` the draws lack PR-AUC and ROC-AUC. The same seed gives the same draws.
    """
    prepared = [prepare(of, probabilities, areas=areas) for probabilities in predictors]
    draws, left_out = _weighted(
        of, lambda weights: [score_draws(one, weights) for one in prepared], num_draws, seed
    )
    scored = [metrics.score(of.labels, p, of.scale[of.cluster]) for p in predictors]
    return Resampled(of, scored, draws, left_out)


def resample_ratios(of: Sample, terms: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Resampled:
    """Computes ratios of sums over the images by name, with the draws of `resample`.

    `terms` are a numerator and a denominator each, [n]; a ratio without a denominator is NaN.
    """
    size = len(of.scale)
    sums = {
        name: [np.bincount(of.cluster, part, minlength=size) for part in parts]
        for name, parts in terms.items()
    }

    def ratios(weights: np.ndarray) -> list[dict[str, np.ndarray]]:
        return [
            {name: metrics.ratio(*(one @ weights for one in own)) for name, own in sums.items()}
        ]

    (scored,) = ratios(of.scale)
    return Resampled(of, [scored], *_weighted(of, ratios, DRAWS, seed=0))


def _weighted(
    of: Sample,
    scores: Callable[[np.ndarray], list[dict[str, np.ndarray]]],
    num_draws: int,
    seed: int,
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """Returns the `draws` and `left_out` of `Resampled`.

    `scores` returns a dict per predictor from the weights of the clusters, float64 [g, draws].
    """
    num_clusters = len(of.scale)
    block = max(1, BLOCK_VALUES // max(len(of.labels), num_clusters))

    def in_blocks(number: int, weights: Callable[[int, int], np.ndarray]) -> list[dict[str, Any]]:
        blocks = [
            scores(weights(first, min(first + block, number)) * of.scale[:, None])
            for first in range(0, max(number, 1), block)
        ]
        return [
            {name: np.concatenate([one[name] for one in own]) for name in own[0]}
            for own in zip(*blocks, strict=True)
        ]

    draws = in_blocks(num_draws, lambda first, stop: draw(of.keys, first, stop, seed))
    left_out = in_blocks(
        num_clusters if 1 < num_clusters <= JACKKNIFE_CLUSTERS else 0,
        lambda first, stop: 1.0 - (np.arange(num_clusters)[:, None] == np.arange(first, stop)),
    )
    return draws, left_out


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A statistic with the two sources of its error, from which sums of statistics have theirs.

    It is a sum over models, each trained with one seed or with several.
    """

    by_seed: dict[str, np.ndarray]  # float64 [seeds] of each model; the value sums their means
    # float64 [seeds, draws] of each model: draws less the value, their mean square the variance
    deviations: dict[str, np.ndarray]
    keys: np.ndarray  # uint64 [g], of the clusters
    shares: np.ndarray  # float64 [g], of each cluster in the variance; they sum to 1

    @property
    def value(self) -> float:
        """The statistic, where a model has several seeds their mean."""
        return float(sum(values.mean() for values in self.by_seed.values()))

    @property
    def draws(self) -> np.ndarray:
        """Deviations of the value, float64 [draws], from the choice of clusters."""
        return np.sum([one.mean(axis=0) for one in self.deviations.values()], axis=0)

    def error(self) -> tuple[float, float]:
        """Returns (the standard error, degrees of freedom of t); NaN from a single cluster."""
        of_clusters = float(np.mean(np.square(self.draws)))
        variances, degrees = [of_clusters], [float(effective_number(self.shares)) - 1]
        for model, values in self.by_seed.items():
            if len(values) > 1:
                # Seeds of the same variance differ on few images, too: by what deviations that
                # the seeds do not share give their mean.
                own = self.deviations[model]
                shared = np.mean(np.square(own.mean(axis=0)))
                apart = max(float(np.mean(np.square(own)) - shared), 0.0) / (len(values) - 1)
                variances.append(max(float(values.var(ddof=1)) / len(values) - apart, 0.0))
                degrees.append(len(values) - 1)
        return float(np.sqrt(sum(variances))), satterthwaite(variances, degrees)


def satterthwaite(variances: Sequence[float], degrees: Sequence[float]) -> float:
    """Returns the degrees of freedom of a sum of variances, from those of each."""
    known = [(v, d) for v, d in zip(variances, degrees, strict=True) if v > 0]
    if len(known) < 2:
        return known[0][1] if known else degrees[0]
    return sum(v for v, _ in known) ** 2 / sum(v**2 / d for v, d in known)


def estimate(
    resampled: Resampled, name: str, numbers: Sequence[int] = (0,), model: str = ""
) -> Estimate:
    """Estimates one of `SCALARS` of a model, whose seeds are the predictors of these numbers."""
    if name not in MEAN_OF:
        return _estimate(resampled, name, numbers, model)
    return estimate_mean(resampled, name, None, numbers, model)


def estimate_mean(
    resampled: Resampled,
    name: str,
    classes: Sequence[int] | None = None,
    numbers: Sequence[int] = (0,),
    model: str = "",
) -> Estimate:
    """Estimates a mean over classes, one of `MEAN_OF`; None: over all that it is defined for."""
    of_class = MEAN_OF[name]
    if classes is None:
        values = np.asarray([resampled.scored[number][of_class] for number in numbers])
        classes = np.flatnonzero(np.isfinite(values).all(axis=0)).tolist()
    if not classes:
        return combine([(_estimate(resampled, name, numbers, model), np.nan)])
    terms = {label: _estimate(resampled, of_class, numbers, model, label) for label in classes}
    sizes = {label: int(np.count_nonzero(resampled.of.sizes(label))) for label in classes}
    known = [(sizes[label], terms[label]) for label in classes if sizes[label] > 1]
    for label in [label for label in classes if sizes[label] < 2]:
        terms[label] = _borrow_error(terms[label], known, label)
    return average(list(terms.values()))


def _borrow_error(alone: Estimate, known: Sequence[tuple[int, Estimate]], label: int) -> Estimate:
    """Gives the estimate of a class of one cluster the mean error of one cluster of the others.

    It is made of their draws, in another order each, so that two models still have in common what
    they have in common in the other classes.
    """
    if not known:
        return alone
    (model,) = alone.by_seed
    own = [
        np.sqrt(size / len(known)) * np.roll(one.deviations[model], 1 + label + 10 * place, axis=1)
        for place, (size, one) in enumerate(known)
    ]
    shares = np.mean([one.shares for _, one in known], axis=0)
    return dataclasses.replace(alone, deviations={model: np.sum(own, axis=0)}, shares=shares)


def _estimate(
    resampled: Resampled, name: str, numbers: Sequence[int], model: str, label: int | None = None
) -> Estimate:
    of = resampled.of
    at = (..., label) if label is not None else ...
    values = np.asarray([resampled.scored[number][name] for number in numbers])[at]
    g = len(of.scale)
    unbiased = np.sqrt((g + 1) / (g - 1)) if g > 1 else np.nan
    deviations = []
    for number, value in zip(numbers, values, strict=True):
        own = (resampled.draws[number][name][at] - value) * unbiased
        error = float(np.sqrt(np.mean(np.square(own))))
        larger = jackknife_error(value, resampled.left_out[number][name][at])
        deviations.append(own * (larger / error if larger > error > ROUNDING else 1.0))
    sizes = of.sizes(label)
    if np.count_nonzero(sizes) < 2:
        # How much a class differs between clusters is not known from one.
        deviations = [np.full_like(own, np.nan) for own in deviations]
    shares = sizes / max(sizes.sum(), ROUNDING)
    return Estimate({model: values}, {model: np.stack(deviations)}, of.keys, shares)


def combine(terms: Sequence[tuple[Estimate, float]]) -> Estimate:
    """Sums (estimate, factor) pairs, with the clusters and the models that they have in common."""
    by_seed: dict[str, Any] = {}
    deviations: dict[str, Any] = {}
    for one, factor in terms:
        for model, values in one.by_seed.items():
            by_seed[model] = by_seed.get(model, 0.0) + factor * values
            deviations[model] = deviations.get(model, 0.0) + factor * one.deviations[model]
    draws = np.sum([one.mean(axis=0) for one in deviations.values()], axis=0)
    parts = np.asarray([factor * np.mean(one.draws * draws) for one, factor in terms])
    parts = np.maximum(np.nan_to_num(parts), 0.0)
    parts = parts / parts.sum() if parts.sum() > 0 else np.full(len(terms), 1 / len(terms))
    if all(one.keys is terms[0][0].keys for one, _ in terms):
        keys, at = terms[0][0].keys, np.tile(np.arange(len(terms[0][0].keys)), len(terms))
    else:
        keys, at = np.unique(np.concatenate([one.keys for one, _ in terms]), return_inverse=True)
    weighted = [part * one.shares for part, (one, _) in zip(parts, terms, strict=True)]
    shares = np.bincount(at, np.concatenate(weighted), minlength=len(keys))
    return Estimate(by_seed, deviations, keys, shares)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Averages estimates with equal weights."""
    return combine([(one, 1 / len(estimates)) for one in estimates])


def subtract(one: Estimate, other: Estimate) -> Estimate:
    """Returns one estimate less another."""
    return combine([(one, 1.0), (other, -1.0)])


def jackknife_error(estimate: float, left_out: np.ndarray) -> float:
    """Returns Tukey's standard error, sqrt((m - 1) / m * sum of squares), of m defined values."""
    defined = left_out[np.isfinite(left_out)]
    if not len(defined):
        return np.nan
    return float(np.sqrt((len(defined) - 1) * np.mean(np.square(defined - estimate))))


def quantile_of_t(degrees: float, level: float = LEVEL) -> float:
    """Returns the half width of an interval in standard errors; NaN below one degree of freedom."""
    return float(special.stdtrit(degrees, (1 + level) / 2)) if degrees >= 1 else float("nan")


def interval(name: str, of: Estimate) -> list[float]:
    """Returns the confidence interval [low, high] of a metric.

    It is [NaN, NaN] where the error or `quantile_of_t` is NaN, and where the error is 0: a score
    that all clusters have in common does not show how much others may differ.

    The metric's name decides the scale on which the interval is symmetric.
    """
    value = of.value
    error, degrees = of.error()
    reach = quantile_of_t(degrees) * error
    if not np.isfinite(reach) or error <= ROUNDING:
        return [float("nan")] * 2
    if name in ("ece", "class_ece"):  # the draws lie above the estimate, and are not symmetric
        # A few images in each bin make the error of each class's probability too large, and that
        # of resampled images more so.
        bias = max(0.0, float(of.draws.mean())) if name == "class_ece" else 0.0
        return [max(0.0, value - reach - bias), min(1.0, value + reach)]
    if name in ("loss", "brier"):
        factor = np.exp(reach / value)
        return [float(value / factor), float(value * factor)]
    # What lies between -1 and 1 is brought to 0 to 1; the logit is then Fisher's z.
    low, width = (-1.0, 2.0) if name in ("kappa", "mcc") else (0.0, 1.0)
    share = (value - low) / width
    # The derivative of the logit brings the standard error to its scale (delta method).
    reach /= width * share * (1 - share)
    ends = special.expit(special.logit(share) + np.asarray([-reach, reach]))
    return (low + width * ends).tolist()


def difference(of: Estimate, *, num_compared: int = 1) -> dict[str, Any]:
    """Returns {"difference", "interval": [low, high], "p": two-sided} of an estimate.

    If it was chosen among several, the interval is that of `num_compared` simultaneous ones
    (Bonferroni). Of one, the interval excludes 0 exactly where p < 1 - LEVEL. No difference in any
    draw is p = 1; NaN where `interval` would be.
    """
    value = of.value
    error, degrees = of.error()
    reach, p = float("nan"), float("nan")
    if abs(value) <= ROUNDING and error <= ROUNDING:
        reach, p = 0.0, 1.0
    elif degrees >= 1 and error > ROUNDING:
        reach = quantile_of_t(degrees, 1 - (1 - LEVEL) / num_compared) * error
        p = float(2 * special.stdtr(degrees, -abs(value) / error))
    return {"difference": value, "interval": [value - reach, value + reach], "p": p}


def detectable(of: Estimate) -> float:
    """Returns the smallest difference that p < 1 - LEVEL would show with a probability of POWER."""
    error, degrees = of.error()
    power = float(special.stdtrit(degrees, POWER)) if degrees >= 1 else float("nan")
    return (quantile_of_t(degrees) + power) * error


def correct(differences: Sequence[Estimate]) -> list[float]:
    """Corrects the p-values of differences for their number; NaN stays and is not counted.

    The step-down maximum of normal variables that are correlated as the differences' draws are
    (Hothorn, Bretz and Westfall, "Simultaneous Inference in General Parametric Models", 2008): how
    often the smallest p of as many differences that are all 0 is as small. The draws themselves
    have heavier tails with few clusters, and would find fewer of the differences that exist.
    """
    p = np.asarray([difference(one)["p"] for one in differences])
    corrected = np.full(len(p), np.nan)
    # The largest p first: the others are corrected for themselves and those before.
    order = np.argsort(-p, kind="stable")[: np.count_nonzero(np.isfinite(p))]
    if not len(order):
        return corrected.tolist()
    draws = np.stack([differences[number].draws for number in order])
    errors = np.linalg.norm(draws, axis=1, keepdims=True)
    draws = np.where(errors > ROUNDING, draws / np.maximum(errors, ROUNDING), 0.0)
    values, vectors = np.linalg.eigh(draws @ draws.T)
    normal = np.random.default_rng(0).standard_normal((CORRECTION_DRAWS, len(order)))
    normal = np.abs(normal * np.sqrt(np.maximum(values, 0)) @ vectors.T)
    largest = np.maximum.accumulate(normal, axis=1)
    for column, number in enumerate(order):
        exceeded = np.count_nonzero(largest[:, column] >= -special.ndtri(p[number] / 2))
        as_small = (1 + exceeded) / (1 + CORRECTION_DRAWS)
        # Holm's correction is never smaller, but for the limited number of draws.
        corrected[number] = min(max(as_small, p[number]), (column + 1) * p[number], 1.0)
    corrected[order[::-1]] = np.maximum.accumulate(corrected[order[::-1]])
    return corrected.tolist()


def score(resampled: Resampled) -> list[dict[str, Any]]:
    """Adds intervals to the scores of resampled predictors.

    Returns per predictor what `metrics.score` returns and "intervals": {metric: [low, high], or a
    list of these for each class}, "n", and of `Sample.describe`.
    """
    scores = []
    for number, scored in enumerate(resampled.scored):
        intervals: dict[str, Any] = {
            name: interval(name, estimate(resampled, name, [number]))
            for name in SCALARS
            if name in resampled.draws[number]
        }
        for name in BY_CLASS:
            if name in resampled.draws[number]:
                intervals[name] = [
                    interval(name, _estimate(resampled, name, [number], "", label))
                    for label in range(resampled.of.num_classes)
                ]
        about = {"n": float(len(resampled.of.labels)), "intervals": intervals}
        scores.append(scored | resampled.of.describe() | about)
    return scores
