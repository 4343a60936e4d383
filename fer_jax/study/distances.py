"""What new people, new content and other sources cost a scenario."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_jax.evaluation import bootstrap
from fer_jax.evaluation.bootstrap import Estimate
from fer_jax.evaluation.predictions import Table, take
from fer_jax.evaluation.relations import KNOWN_PEOPLE

METRIC = "balanced_accuracy"
DISTANCES = {
    "within_domain": "within",
    "cross_domain": "cross_domain",
    "cross_content": "cross_content",
}
# The mean over so many random halves of people and images varies by a thousandth.
THINNINGS = 200


@dataclasses.dataclass(frozen=True)
class SeedPredictions:
    """A scenario's predictions of the scored images of a test set, by seed."""

    table: Table  # columns of the images; labels are numbers of classes
    probabilities: Sequence[np.ndarray]  # float64 [n, k], one for each seed


def measure_distances(
    cells: Sequence[tuple[str | None, Estimate, SeedPredictions]], num_classes: int
) -> dict[str, Any]:
    """Computes the three distances of one scenario, and what new people and new content cost.

    Returns each name with {"value", "interval", "n_sets"}; where it does not exist these are NaN,
    two NaN and 0, and "why" gives the reason.
    """
    by_relation: dict[str | None, list[tuple[Estimate, SeedPredictions]]] = {}
    for related, of_set, tested in cells:
        by_relation.setdefault(related, []).append((of_set, tested))
    found = {}
    for name, related in DISTANCES.items():
        own = [of_set for of_set, _ in by_relation.get(related, [])]
        if not own:
            found[name] = _absent(f"no test set is {related.replace('_', ' ')} for it")
            continue
        mean = bootstrap.average(own)
        bounds = bootstrap.interval(METRIC, mean)
        found[name] = {"value": mean.value, "interval": bounds, "n_sets": len(own)}
    within = [tested for _, tested in by_relation.get("within", [])]
    known = [tested for _, tested in by_relation.get(KNOWN_PEOPLE, [])]
    beyond_in = "cross_content" if "cross_content" in by_relation else "cross_domain"
    beyond = [tested for _, tested in by_relation.get(beyond_in, [])]
    if not within:
        why = "no test set has unseen people of the training data's sources"
        return found | {"new_people": _absent(why), "new_content": _absent(why)}
    found["new_people"] = _absent("no test set has people that were trained on")
    if known:
        found["new_people"] = _matched_difference(known, pool(within), num_classes, sign=-1.0)
    found["new_content"] = _absent("no test set has other content or another source")
    if beyond:
        difference = _matched_difference(beyond, pool(within), num_classes)
        found["new_content"] = difference | {"of": beyond_in}
    return found


def _absent(why: str) -> dict[str, Any]:
    return {"value": float("nan"), "interval": [float("nan")] * 2, "n_sets": 0, "why": why}


def _matched_difference(
    sets: Sequence[SeedPredictions], within: SeedPredictions, num_classes: int, sign: float = 1.0
) -> dict[str, Any]:
    """Computes `sign` times the difference of `within` from the mean over the sets, matched."""
    pairs = [match_sizes(within, one, num_classes) for one in sets]
    pairs = [pair for pair in pairs if pair is not None]
    if not pairs:
        return _absent("the two groups have no class in common")
    terms = [(own, sign / len(pairs)) for own, _ in pairs]
    terms += [(other, -sign / len(pairs)) for _, other in pairs]
    found = bootstrap.difference(bootstrap.combine(terms))
    people = [set(group.table["subject_id"].tolist()) - {""} for group in (pool(sets), within)]
    return {
        "value": found["difference"],
        "interval": found["interval"],
        "n_sets": len(pairs),
        "n_shared": len(set.intersection(*people)),
        "p": found["p"],
    }


def pool(sets: Sequence[SeedPredictions]) -> SeedPredictions:
    """Returns several test sets as one."""
    by_seed = zip(*(one.probabilities for one in sets), strict=True)
    return SeedPredictions(
        {name: np.concatenate([one.table[name] for one in sets]) for name in sets[0].table},
        [np.concatenate(of_seed) for of_seed in by_seed],
    )


def match_sizes(
    a: SeedPredictions, b: SeedPredictions, num_classes: int
) -> tuple[Estimate, Estimate] | None:
    """Estimates both balanced accuracies, matched in size; None without a common class."""
    classes = np.intersect1d(a.table["label"], b.table["label"])
    if not len(classes):
        return None
    sides = []
    for one in (a, b):
        rows = np.isin(one.table["label"], classes)
        sides.append(SeedPredictions(take(one.table, rows), [p[rows] for p in one.probabilities]))
    samples = [bootstrap.sample_table(one.table, num_classes) for one in sides]
    counts = [np.bincount(one.table["label"], minlength=num_classes) for one in sides]
    per_class = np.minimum(*counts)
    found = []
    for number, (one, of) in enumerate(zip(sides, samples, strict=True)):
        own, other = len(of.scale), samples[1 - number]
        num_clusters = min(own, len(other.scale)) if of.kind == other.kind else own
        resampled = bootstrap.resample(of, one.probabilities, areas=False)
        full = bootstrap.estimate(resampled, METRIC, range(len(one.probabilities)), "scenario")
        if num_clusters == own and (counts[number] == per_class).all():
            found.append(full)
            continue
        thinned = _thinned(one, of.cluster, num_clusters, per_class)
        found.append(dataclasses.replace(full, by_seed={"scenario": thinned}))
    return found[0], found[1]


def _thinned(
    one: SeedPredictions,
    cluster: np.ndarray,
    num_clusters: int,
    per_class: np.ndarray,
) -> np.ndarray:
    """Averages balanced accuracy over draws of so many clusters and images: float64 [seeds]."""
    rng = np.random.default_rng(0)
    labels = one.table["label"]
    correct = np.stack([p.argmax(axis=1) == labels for p in one.probabilities], axis=1)
    total = np.zeros((len(one.probabilities),))
    for _ in range(THINNINGS):
        kept = np.zeros(cluster.max() + 1, bool)
        kept[rng.permutation(len(kept))[:num_clusters]] = True
        order = rng.permutation(len(labels))
        order = order[kept[cluster[order]]]
        recalls = [
            correct[order[labels[order] == c][:most]].mean(axis=0)
            for c, most in enumerate(per_class)
            if most and (labels[order] == c).any()
        ]
        total += np.mean(recalls, axis=0)
    return total / THINNINGS
