"""Answers with a promise: sets of classes that hold the right one, and when to say "not known".

A set has every class whose probability is at least a threshold, and the likeliest one. The
threshold is found on images that did not train the network, from groups that share an origin: the
people of the validation parts. Groups are exchangeable, images of one
group are not independent of each other; so each group has the same weight, and a group that is yet
to come counts as one that no set covers (Lee, Barber and Willett 2023, "Distribution-free inference
with hierarchical data", who call it hierarchical conformal prediction). The promise is then kept on
average over new groups of this kind, whatever the network and the images are: no assumption is made
but that new groups are drawn as those were. From k groups no such method can promise more than
k / (k + 1) unless its sets have all classes, and more is refused here.

An image is answered where its highest probability reaches a second threshold, above which the
answers in those groups are right as often as promised, on average. This is seen to hold on them;
there is no guarantee for others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from fer_jax.evaluation import bootstrap, metrics
from fer_jax.evaluation.predictions import Table
from fer_jax.inference.promises import PROMISES, sets

PROMISE = 0.8  # of the figures in results.json
CURVE_POINTS = 50
THRESHOLDS = 1001  # that answers may have


def fit(tables: Sequence[Table]) -> dict[str, Any] | None:
    """Finds the thresholds of all `PROMISES` on predictions of images that trained no network.

    `tables` have labelled rows only. Each person of them is a group, each clip or image where
    people are not named. Returns {"groups": how many, "of": what they are, "images", "sets": the
    tables' names, "most": the largest promise that they carry, "levels": {promise, as
    "0.80": [of sets, of answers]}}; a threshold is None where sets cannot keep the promise, or
    where no images are answered. None without an image.
    """
    tables = [table for table in tables if len(table["label"])]
    if not tables:
        return None
    named = [bootstrap.clusters(table) for table in tables]
    names = np.concatenate([name for name, _ in named])
    of = "+".join(dict.fromkeys(one for _, one in named))
    labels = np.concatenate([table["label"] for table in tables])
    probabilities = np.concatenate([table["probabilities"] for table in tables])
    _, group, sizes = np.unique(names, return_inverse=True, return_counts=True)
    weights = (1 / sizes / len(sizes))[group]
    return {
        "groups": len(sizes),
        "of": of,
        "images": len(labels),
        "sets": [f"{table['dataset'][0]} {table['split'][0]}" for table in tables],
        "most": len(sizes) / (len(sizes) + 1),
        "levels": {
            f"{promise:.2f}": [
                set_threshold(labels, probabilities, weights, len(sizes), promise),
                answer_threshold(labels, probabilities, group, promise),
            ]
            for promise in PROMISES
        },
    }


def set_threshold(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, groups: int, promise: float
) -> float | None:
    """Returns the probability from which a class is in the set; None if the groups are too few.

    `labels` int [n], `probabilities` float [n, k], `weights` float [n], which sum to 1 and are the
    same for each group. It is the largest threshold at which labels of a weight of `promise` are in
    their sets, where a further group has the weight of each and no label in its sets.
    """
    if promise * (groups + 1) > groups + 1e-9:
        return None
    own = probabilities[np.arange(len(labels)), labels]
    order = np.argsort(-own, kind="stable")
    covered = np.cumsum(weights[order]) * groups / (groups + 1)
    last = min(int(np.searchsorted(covered, promise - 1e-12)), len(order) - 1)
    return float(own[order[last]])


def answer_threshold(
    labels: np.ndarray, probabilities: np.ndarray, group: np.ndarray, promise: float
) -> float | None:
    """Returns the highest probability from which an image is answered; None to answer none.

    `labels` int [n], `probabilities` float [n, k], `group` int [n], from 0. It is the smallest
    threshold at which answers are right as often as promised, on average over the groups that have
    any. That share is taken to rise with the threshold (isotonic regression, in which thresholds
    count by their answers): a few lucky answers do not decide.
    """
    top = probabilities.max(axis=1)
    grid = np.unique(np.quantile(top, np.linspace(0, 1, THRESHOLDS), method="lower"))[::-1]
    cell = group * len(grid) + np.searchsorted(-grid, -top)
    shape = (int(group.max()) + 1, len(grid))
    right, answered = (
        np.bincount(cell, counted, minlength=shape[0] * shape[1]).reshape(shape).cumsum(axis=1)
        for counted in (probabilities.argmax(axis=1) == labels, np.ones(len(labels)))
    )
    share = metrics.mean_defined(metrics.ratio(right, answered).T)
    weights = answered.sum(axis=0)
    fitted = optimize.isotonic_regression(share, weights=weights, increasing=False).x
    reached = np.flatnonzero(fitted >= promise - 1e-12)
    return float(grid[reached[-1]]) if len(reached) else None


def score(table: Table, num_classes: int, fitted: Mapping[str, Any]) -> dict[str, Any]:
    """Scores the sets and answers of a test set at `PROMISE`.

    `table` has labelled rows only. Returns {"promise", "groups", "of", "most", "coverage", "size":
    mean number of classes, "answered": share, "right": accuracy where answered, "area": under the
    risk-coverage curve (Geifman and El-Yaniv 2017), "curve": {"answered", "right"}, "intervals"};
    coverage and size are NaN where the groups cannot carry the promise.
    """
    labels, probabilities = table["label"], table["probabilities"]
    of_sets, of_answers = fitted["levels"][f"{PROMISE:.2f}"]
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    answered = top >= (np.inf if of_answers is None else of_answers)
    ones = np.ones(len(labels))
    terms = {"answered": (answered, ones), "right": (answered & right, answered)}
    if of_sets is not None:
        chosen = sets(probabilities, of_sets)
        terms["coverage"] = (chosen[np.arange(len(labels)), labels], ones)
        terms["size"] = (chosen.sum(axis=1), ones)
    of = bootstrap.sample_table(table, num_classes)
    resampled = bootstrap.resample_ratios(of, terms)
    found: dict[str, Any] = {"coverage": np.nan, "size": np.nan}
    intervals = {"coverage": [np.nan] * 2, "size": [np.nan] * 2}
    for name in terms:
        estimate = bootstrap.estimate(resampled, name)
        found[name] = estimate.value
        known = bootstrap.difference(estimate)["interval"]
        intervals[name] = known if name == "size" else bootstrap.interval(name, estimate)
    area, curve = risk_coverage(right, top)
    about = {name: fitted[name] for name in ("groups", "of", "most")}
    return (
        about
        | found
        | {"promise": PROMISE, "area": area, "curve": curve}
        | {"intervals": intervals}
    )


def risk_coverage(right: np.ndarray, top: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Returns the area under the risk-coverage curve, and points of it.

    The images of highest probability are answered first, those of the same one together; the risk
    is the share of wrong answers. The area is its mean over the number answered, 0 to 1.
    """
    order = np.argsort(-top, kind="stable")
    values, first, count = np.unique(-top[order], return_index=True, return_counts=True)
    wrong = np.cumsum(np.add.reduceat(~right[order], first, dtype=np.int64))
    answered = np.cumsum(count)
    risk = wrong / answered
    area = float((risk * count).sum() / len(top))
    chosen = np.unique(np.linspace(0, len(values) - 1, CURVE_POINTS).round().astype(int))
    return area, {"answered": answered[chosen] / len(top), "right": 1 - risk[chosen]}
