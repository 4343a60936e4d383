"""Bootstrap intervals and tests where the truth is known.

The truth is known because predictions are simulated: people with unequal numbers of images who
differ in how readable they are and which emotions they resemble, clips of a few similar frames,
and an overconfident model.
"""

import argparse
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from fer_jax.benchmark.benchmark import Row, single
from fer_jax.evaluation import bootstrap, certainty, metrics
from fer_jax.evaluation.compare import compare_predictors
from fer_jax.inference.promises import sets

PREVALENCE = np.asarray([0.06, 0.05, 0.06, 0.33, 0.25, 0.13, 0.12])
NUM_CLUSTERS = (10, 20, 50, 200)
POPULATION = 20_000  # clusters, whose score is the truth
SIMULATED_DRAWS = 200  # gives a standard error to 5 %
ADVANTAGE = 0.4  # what the better of two predictors adds to the true class's logit
FRAMES = 4  # of a clip
RARE = np.asarray([0.005, 0.01, 0.02, 0.04, 0.225, 0.3, 0.4])
PEOPLE_IN_GROUP = 20
SHIFT = 1.5  # standard deviation between groups of what is added to the true class's logit
SIMILARITY = 0.6  # share of the error that predictors of the same images have in common

Scores = dict[str, np.ndarray]  # a value of each simulation, for each of `bootstrap.SCALARS`


def measure_statistics(options: argparse.Namespace) -> Iterator[Row]:
    """Measures in % how often intervals hold the truth and tests find what is not there."""
    simulations = options.simulations
    for number in NUM_CLUSTERS:
        ours, naive = covered(number, simulations)
        for name in bootstrap.SCALARS:
            what = f"truth in the 95 % interval, {name}, {number} clusters"
            yield single(what, 100 * ours[name].mean(), "%")
            yield single(f"{what}, every image a cluster", 100 * naive[name].mean(), "%")
    for number in NUM_CLUSTERS[1:]:
        equal = p_values(number, simulations)
        better = p_values(number, simulations, advantage=ADVANTAGE)
        for name in bootstrap.SCALARS:
            what = f"p < 0.05, {name}, {number} clusters"
            yield single(f"{what}, equal", 100 * (equal[name] < 0.05).mean(), "%")
            yield single(f"{what}, A better", 100 * (better[name] < 0.05).mean(), "%")
    for num_sets in (2, 4):
        for share in (0.0, 0.5, 1.0):
            found = over_sets(num_sets, share, simulations)
            for what, values in found.items():
                where = f"{num_sets} sets of 20 people, {share:.0%} in all of them"
                yield single(f"{what}, {where}", 100 * values.mean(), "%")
    for number in (3, 8):
        for what, values in studies(number, simulations).items():
            yield single(f"{what}, {number} equal scenarios", 100 * values.mean(), "%")
    for seeds, luck in ((2, 0.0), (3, 0.0), (3, 0.3), (5, 0.3)):
        rejected = recipes(seeds, luck, simulations)
        what = f"p < 0.05, equal recipes of {seeds} seeds, spread {luck}, 10 clusters"
        yield single(what, 100 * rejected.mean(), "%")
    for number in (20, 50):
        for name, values in rare_classes(number, simulations).items():
            what = f"truth in the 95 % interval, {name}, classes of 0.5 to 4 %, {number} clusters"
            yield single(what, 100 * values.mean(), "%")
    for groups, promise in ((3, 0.75), (6, 0.8), (20, 0.8), (20, 0.9)):
        for shift in (0.0, SHIFT):
            found = promises(groups, promise, shift, simulations)
            where = f"a new group of {PEOPLE_IN_GROUP} people, {groups} groups, spread {shift}"
            for what, values in found.items():
                value = 100 * float(metrics.mean_defined(values))
                yield single(f"{what}, promise {promise}, {where}", value, "%")


def simulate(
    num_clusters: int,
    rng: np.random.Generator,
    *,
    advantages: Sequence[float] = (0.0,),
    prevalence: np.ndarray = PREVALENCE,
    repeats: np.ndarray | int = 1,
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Simulates predictions of `num_clusters` people's images by several predictors.

    Each predictor's advantage is added to its logit of the true class, and each person has
    `repeats` times as many images. Returns labels, int [n];
    the probabilities of each predictor, float64 [n, 7]; and the clusters, int [n].
    """
    k = len(prevalence)
    sizes = np.clip(np.round(rng.lognormal(np.log(12), 0.7, num_clusters)), 2, 120).astype(int)
    sizes *= repeats
    cluster = np.repeat(np.arange(num_clusters), sizes)
    n = len(cluster)
    frame = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    clip = np.unique(cluster * 1000 + frame // FRAMES, return_inverse=True)[1]
    num_clips = int(clip.max()) + 1
    labels = rng.choice(k, num_clips, p=prevalence)[clip]
    readable = 2 * rng.lognormal(0, 0.3, num_clusters)[cluster]

    def effects() -> np.ndarray:
        people, clips = rng.normal(0, 0.7, (num_clusters, k)), rng.normal(0, 0.7, (num_clips, k))
        return people[cluster] + clips[clip] + rng.normal(0, 1, (n, k))

    common = effects()
    predictors = []
    for advantage in advantages:
        errors = np.sqrt(SIMILARITY) * common + np.sqrt(1 - SIMILARITY) * effects()
        logits = 1.6 * (np.eye(k)[labels] * (readable + advantage)[:, None] + errors)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        predictors.append(powers / powers.sum(axis=1, keepdims=True))
    return labels, predictors, cluster


def _simulations(count: int, num_clusters: int) -> tqdm:
    return tqdm(range(count), f"{num_clusters} clusters", disable=None)


def covered(num_clusters: int, simulations: int) -> tuple[Scores, Scores]:
    """Returns whether the intervals of each simulation contain the population's score.

    The second result is of intervals that take every image for a cluster of its own.
    """
    truth = _truth()
    rng = np.random.default_rng(0)
    contain = np.zeros((2, len(bootstrap.SCALARS), simulations), bool)
    for number in _simulations(simulations, num_clusters):
        labels, predictors, cluster = simulate(num_clusters, rng)
        for kind, groups in enumerate((cluster, np.arange(len(labels)))):
            of = bootstrap.sample(labels, groups, len(PREVALENCE))
            resampled = bootstrap.resample(of, predictors, num_draws=SIMULATED_DRAWS, seed=number)
            for metric, name in enumerate(bootstrap.SCALARS):
                low, high = bootstrap.interval(name, bootstrap.estimate(resampled, name))
                contain[kind, metric, number] = low <= truth[name] <= high
    ours, naive = map(_by_metric, contain)
    return ours, naive


def _by_metric(values: np.ndarray) -> Scores:
    return {name: row for name, row in zip(bootstrap.SCALARS, values, strict=True)}


@functools.cache
def _truth(rare: bool = False) -> dict[str, Any]:
    labels, (probabilities,), _ = simulate(
        POPULATION, np.random.default_rng((0, 1)), prevalence=RARE if rare else PREVALENCE
    )
    return metrics.score(labels, probabilities)


def p_values(num_clusters: int, simulations: int, *, advantage: float = 0.0) -> Scores:
    """Returns the p-values of a predictor with an advantage over another; 0: they are equal."""
    rng = np.random.default_rng(0)
    found = []
    for number in _simulations(simulations, num_clusters):
        labels, (a, b), cluster = simulate(num_clusters, rng, advantages=(advantage, 0.0))
        of = bootstrap.sample(labels, cluster, len(PREVALENCE))
        compared, _ = compare_predictors(of, [a], [b], num_draws=SIMULATED_DRAWS, seed=number)
        found.append([compared[name]["p"] for name in bootstrap.SCALARS])
    return _by_metric(np.asarray(found).T)


def over_sets(num_sets: int, share: float, simulations: int) -> dict[str, np.ndarray]:
    """Averages balanced accuracy over sets of 20 people, of whom a share is in all sets.

    Returns of each simulation whether the mean's interval holds the population's score, whether two
    equal predictors differ in the mean, and whether the first set differs from the others.
    """
    name, people, rng = "balanced_accuracy", 20, np.random.default_rng(0)
    shared = round(share * people)
    total = shared + num_sets * (people - shared)
    found = []
    for number in _simulations(simulations, total):
        repeats = np.where(np.arange(total) < shared, num_sets, 1)
        labels, predictors, cluster = simulate(total, rng, advantages=(0.0, 0.0), repeats=repeats)
        # Clips of shared people go to the sets in turn.
        place = np.arange(len(cluster)) // FRAMES % num_sets
        of_set = np.where(cluster < shared, place, (cluster - shared) // max(people - shared, 1))
        sides = []
        for rows in (of_set == n for n in range(num_sets)):
            of = bootstrap.sample(labels[rows], cluster[rows], len(PREVALENCE))
            both = [probabilities[rows] for probabilities in predictors]
            resampled = _resample(of, both, number)
            sides.append([bootstrap.estimate(resampled, name, [i], str(i)) for i in range(2)])
        a, b = (bootstrap.average(side) for side in zip(*sides, strict=True))
        low, high = bootstrap.interval(name, a)
        others = bootstrap.average([first for first, _ in sides[1:]])
        found.append(
            [low <= _truth()[name] <= high, _p(a, b) < 0.05, _p(sides[0][0], others) < 0.05]
        )
    columns = ("truth in the mean's 95 % interval", "p < 0.05, equal", "p < 0.05, no loss")
    return dict(zip(columns, np.asarray(found).T, strict=True))


def _resample(
    of: bootstrap.Sample, predictors: Sequence[np.ndarray], seed: int
) -> bootstrap.Resampled:
    return bootstrap.resample(of, predictors, areas=False, num_draws=SIMULATED_DRAWS, seed=seed)


def _p(one: bootstrap.Estimate, other: bootstrap.Estimate) -> float:
    return bootstrap.difference(bootstrap.subtract(one, other))["p"]


def studies(num_scenarios: int, simulations: int) -> dict[str, np.ndarray]:
    """Compares scenarios with a baseline that is as good, in 4 metrics on 3 sets of 20 people.

    Returns of each simulation whether any corrected p is below 0.05, and whether the corrected
    interval of the scenario with the highest mean difference excludes 0.
    """
    names, rng = ("accuracy", "balanced_accuracy", "macro_f1", "ece"), np.random.default_rng(0)
    found = []
    for number in _simulations(simulations, 60):
        family: list[bootstrap.Estimate] = []
        gains: list[list[bootstrap.Estimate]] = [[] for _ in range(num_scenarios)]
        for _ in range(3):
            labels, predictors, cluster = simulate(20, rng, advantages=(0.0,) * (num_scenarios + 1))
            people = cluster + len(family) * 1000
            of = bootstrap.sample(labels, people, len(PREVALENCE))
            resampled = _resample(of, predictors, number)
            for name in names:
                baseline, *others = (
                    bootstrap.estimate(resampled, name, [i], str(i))
                    for i in range(num_scenarios + 1)
                )
                differences = [bootstrap.subtract(other, baseline) for other in others]
                family += differences
                if name == "balanced_accuracy":
                    for own, difference in zip(gains, differences, strict=True):
                        own.append(difference)
        means = [bootstrap.average(own) for own in gains]
        best = max(means, key=lambda one: one.value)
        low, high = bootstrap.difference(best, num_compared=num_scenarios)["interval"]
        corrected = bootstrap.correct([*family, *means])
        found.append([np.nanmin(corrected) < 0.05, not low <= 0 <= high])
    columns = ("any corrected p < 0.05", "the best scenario's interval without 0")
    return dict(zip(columns, np.asarray(found).T, strict=True))


def recipes(seeds: int, spread: float, simulations: int) -> np.ndarray:
    """Returns whether equal recipes differ in accuracy, p < 0.05, on 10 people.

    `spread` is the standard deviation of the advantages of their seeds.
    """
    rng = np.random.default_rng(0)
    found = []
    for number in _simulations(simulations, 10):
        luck = rng.normal(0, spread, 2 * seeds)
        labels, predictors, cluster = simulate(10, rng, advantages=tuple(luck))
        of = bootstrap.sample(labels, cluster, len(PREVALENCE))
        resampled = _resample(of, predictors, number)
        own = [range(seeds), range(seeds, 2 * seeds)]
        sides = [bootstrap.estimate(resampled, "accuracy", n, str(n.start)) for n in own]
        found.append(_p(*sides) < 0.05)
    return np.asarray(found)


def rare_classes(num_clusters: int, simulations: int) -> Scores:
    """Returns whether the intervals of means over classes hold the truth where some are rare."""
    rng = np.random.default_rng(0)
    found: dict[str, list[bool]] = {name: [] for name in bootstrap.MEAN_OF}
    for number in _simulations(simulations, num_clusters):
        labels, predictors, cluster = simulate(num_clusters, rng, prevalence=RARE)
        of = bootstrap.sample(labels, cluster, len(RARE))
        resampled = bootstrap.resample(of, predictors, num_draws=SIMULATED_DRAWS, seed=number)
        for name, of_class in bootstrap.MEAN_OF.items():
            # Of the classes that occur.
            truth = _truth(rare=True)[of_class][np.unique(labels)].mean()
            low, high = bootstrap.interval(name, bootstrap.estimate(resampled, name))
            found[name].append(bool(low <= truth <= high))
    return {name: np.asarray(values) for name, values in found.items()}


def promises(groups: int, promise: float, shift: float, worlds: int) -> dict[str, np.ndarray]:
    """Returns of each world how often sets of a new group have the label, and answers are right.

    Groups differ in what is added to the logit of the true class, with `shift` as its standard
    deviation. The last row are sets whose threshold takes all images for independent.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in tqdm(range(worlds), f"{groups} groups", disable=None):
        simulated = []
        for advantage in rng.normal(0, shift, groups + 1):
            labels, (probabilities,), _ = simulate(
                PEOPLE_IN_GROUP, rng, advantages=(float(advantage),)
            )
            simulated.append((labels, probabilities))
        sizes = [len(labels) for labels, _ in simulated[:-1]]
        group = np.repeat(np.arange(groups), sizes)
        weights = 1 / groups / np.asarray(sizes)[group]
        labels, probabilities = map(np.concatenate, zip(*simulated[:-1], strict=True))
        new, given = simulated[-1]
        each = np.full(len(labels), 1 / len(labels))
        thresholds = (
            certainty.set_threshold(labels, probabilities, weights, groups, promise),
            certainty.set_threshold(labels, probabilities, each, len(labels), promise),
        )
        covered = []
        for threshold in thresholds:
            assert threshold is not None
            covered.append(sets(given, threshold)[np.arange(len(new)), new].mean())
        least = certainty.answer_threshold(labels, probabilities, group, promise)
        answered = given.max(axis=1) >= (np.inf if least is None else least)
        right = (given.argmax(axis=1) == new)[answered]
        accuracy = right.mean() if len(right) else np.nan
        found.append([covered[0], accuracy, answered.mean(), covered[1]])
    columns = ("label in its set", "right where answered", "answered", "images as groups")
    return dict(zip(columns, np.asarray(found).T, strict=True))
