"""Intervals: how long they take, how often they cover the truth, and how often chance wins.

The truth is known because the data are drawn: people of unequal numbers of images who differ in
how readable they are and in which emotions they resemble, clips of a few alike frames, and a
model that is too sure of itself.
"""

import argparse
import functools
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from tqdm import tqdm

from fer_jax.benchmark.benchmark import Row, compare, cpu_seconds, single, skipped
from fer_jax.errors import InputError
from fer_jax.evaluation import bootstrap, metrics
from fer_jax.evaluation.compare import compare_predictors

PREVALENCE = np.asarray([0.06, 0.05, 0.06, 0.33, 0.25, 0.13, 0.12])
NUM_CLUSTERS = (10, 20, 50, 200)
POPULATION = 20_000  # clusters, whose score is the truth
SIMULATED_DRAWS = 200  # a standard error from so many is good to 5 %
CLUSTERS = 500  # of the table that is timed
PEER_IMAGES, PEER_DRAWS = 10_000, 10
ADVANTAGE = 0.4  # what the better of two predictors adds to the true class's logit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags."""
    parser.add_argument("--images", type=int, default=100_000, help="of the table that is timed")
    parser.add_argument("--simulations", type=int, default=300, help="data sets drawn; 0: none")


def run(options: argparse.Namespace) -> list[Row]:
    """Time and memory of the draws; coverage and false alarms where the truth is known."""
    if options.images < 1000 or options.simulations < 0:
        raise InputError("--images must be at least 1000 and --simulations at least 0")
    rows = []
    for clusters in (CLUSTERS, options.images):
        # In a process of its own, whose memory is that of the draws.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seconds, used, peak = pool.submit(_time, options.images, clusters).result()
        what = f"{options.images} images, {clusters} clusters, {bootstrap.DRAWS} draws"
        rows += [
            single(what, seconds, "s", bar="at most 60"),
            single(what, used, "CPU-seconds"),
            single(what, peak, "MB", bar="at most 2048"),
        ]
    rows.append(_beside_scikit_learn(options.repeats))
    if options.simulations:
        for number in NUM_CLUSTERS:
            rows += _coverage(number, options.simulations)
        for number in NUM_CLUSTERS[1:]:
            rows += _false_alarms(number, options.simulations)
    return rows


def simulate(
    num_clusters: int, rng: np.random.Generator, *, advantages: tuple[float, ...] = (0.0,)
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Predictions of drawn people.

    Args:
      num_clusters: people.
      rng: of everything that is drawn.
      advantages: one per predictor, added to the logit of the true class.

    Returns:
      (labels: int [n], probabilities: float64 [n, 7] of each predictor, cluster: int [n]).
    """
    k = len(PREVALENCE)
    sizes = np.clip(np.round(rng.lognormal(np.log(12), 0.7, num_clusters)), 2, 120).astype(int)
    cluster = np.repeat(np.arange(num_clusters), sizes)
    n = len(cluster)
    frame = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    clip = np.unique(cluster * 1000 + frame // 4, return_inverse=True)[1]
    num_clips = int(clip.max()) + 1
    labels = rng.choice(k, num_clips, p=PREVALENCE)[clip]
    readable = 2 * rng.lognormal(0, 0.3, num_clusters)[cluster]

    def effects() -> np.ndarray:
        people, clips = rng.normal(0, 0.7, (num_clusters, k)), rng.normal(0, 0.7, (num_clips, k))
        return people[cluster] + clips[clip] + rng.normal(0, 1, (n, k))

    # Predictors of the same images err alike to this extent.
    alike = 0.6
    common = effects()
    predictors = []
    for advantage in advantages:
        errors = np.sqrt(alike) * common + np.sqrt(1 - alike) * effects()
        logits = 1.6 * (np.eye(k)[labels] * (readable + advantage)[:, None] + errors)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        predictors.append(powers / powers.sum(axis=1, keepdims=True))
    return labels, predictors, cluster


def covered(
    num_clusters: int, simulations: int, *, seed: int = 0, progress: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """How often intervals hold the population's score.

    Args:
      num_clusters: in each drawn data set.
      simulations: data sets.
      seed: of what is drawn.
      progress: whether to show how far it is.

    Returns:
      ({metric of `bootstrap.SCALARS`: bool [simulations]}, the same where every image is taken
      for a cluster of its own).
    """
    truth = _truth()
    rng = np.random.default_rng(seed)
    found: tuple[dict[str, list[bool]], dict[str, list[bool]]] = (
        {name: [] for name in bootstrap.SCALARS},
        {name: [] for name in bootstrap.SCALARS},
    )
    for number in tqdm(range(simulations), f"{num_clusters} clusters", disable=not progress):
        labels, predictors, cluster = simulate(num_clusters, rng)
        for of_kind, groups in zip(found, (cluster, np.arange(len(labels))), strict=True):
            of = bootstrap.sample(labels, groups, len(PREVALENCE))
            (scored,), _ = bootstrap.score(of, predictors, num_draws=SIMULATED_DRAWS, seed=number)
            for name, holds in of_kind.items():
                low, high = scored["intervals"][name]
                holds.append(bool(low <= truth[name] <= high))
    ours, naive = ({name: np.asarray(h) for name, h in of_kind.items()} for of_kind in found)
    return ours, naive


@functools.cache
def _truth() -> dict[str, float]:
    """The scores of the population, from so many clusters that chance does not matter."""
    labels, (probabilities,), _ = simulate(POPULATION, np.random.default_rng((0, 1)))
    return metrics.score(labels, probabilities)


def p_values(
    num_clusters: int,
    simulations: int,
    *,
    advantage: float = 0.0,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """p-values of two predictors of equal worth, or of which the first is better.

    Returns:
      {metric of `bootstrap.SCALARS`: float64 [simulations]}.
    """
    rng = np.random.default_rng(seed)
    found = []
    for number in tqdm(range(simulations), f"{num_clusters} clusters", disable=not progress):
        labels, (a, b), cluster = simulate(num_clusters, rng, advantages=(advantage, 0.0))
        of = bootstrap.sample(labels, cluster, len(PREVALENCE))
        compared = compare_predictors(of, [a], [b], num_draws=SIMULATED_DRAWS, seed=number)
        found.append([compared[name]["p"] for name in bootstrap.SCALARS])
    return dict(zip(bootstrap.SCALARS, np.asarray(found).T, strict=True))


def _coverage(number: int, simulations: int) -> list[Row]:
    ours, naive = covered(number, simulations, progress=True)
    bar = "93 to 97" if number >= 50 else ""
    rows = []
    for name in bootstrap.SCALARS:
        what = f"truth covered, {name}, {number} clusters"
        rows.append(single(what, 100 * ours[name].mean(), "%", bar=bar))
        rows.append(single(f"{what}, images as if alone", 100 * naive[name].mean(), "%"))
    return rows


def _false_alarms(number: int, simulations: int) -> list[Row]:
    equal = p_values(number, simulations, progress=True)
    better = p_values(number, simulations, advantage=ADVANTAGE, progress=True)
    rows = []
    for name in bootstrap.SCALARS:
        what = f"p < 0.05, {name}, {number} clusters"
        rows.append(single(f"{what}, equal", 100 * (equal[name] < 0.05).mean(), "%", bar="3 to 7"))
        rows.append(single(f"{what}, A better", 100 * (better[name] < 0.05).mean(), "%"))
    return rows


def _table(images: int, clusters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and clusters of a table of a given size."""
    rng = np.random.default_rng(0)
    labels, (probabilities,), _ = simulate(images // 8, rng)
    labels, probabilities = labels[:images], probabilities[:images]
    cluster = np.arange(images) if clusters == images else rng.integers(0, clusters, images)
    return labels, probabilities, cluster


def _time(images: int, clusters: int) -> tuple[float, float, float]:
    """Seconds, CPU seconds and the peak memory in MB of all intervals of one table."""
    labels, probabilities, cluster = _table(images, clusters)
    started, used = time.perf_counter(), cpu_seconds()
    of = bootstrap.sample(labels, cluster, len(PREVALENCE))
    bootstrap.score(of, [probabilities])
    seconds, used = time.perf_counter() - started, cpu_seconds() - used
    return seconds, used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _beside_scikit_learn(repeats: int) -> Row:
    what = f"PR-AUC and ROC-AUC by class, {PEER_IMAGES} images"
    try:
        from sklearn.metrics import average_precision_score, roc_auc_score
    except ImportError:
        return skipped(what, "scikit-learn is not installed")
    labels, probabilities, cluster = _table(PEER_IMAGES, CLUSTERS)
    of = bootstrap.sample(labels, cluster, len(PREVALENCE))

    weights = bootstrap.draw(len(of.scale), PEER_DRAWS, np.random.default_rng(0))

    def ours() -> None:
        prepared = bootstrap.prepare(labels, probabilities, of.cluster, len(of.scale))
        bootstrap.score_draws(prepared, weights)

    def theirs() -> None:
        for drawn in weights[of.cluster].T:
            for c, scores in enumerate(probabilities.T):
                average_precision_score(labels == c, scores, sample_weight=drawn)
                roc_auc_score(labels == c, scores, sample_weight=drawn)

    return compare(
        what,
        ours,
        theirs,
        peer_name="scikit-learn, draw by draw",
        amount=PEER_DRAWS,
        unit="draws per CPU-second",
        repeats=repeats,
        clock=cpu_seconds,
    )
