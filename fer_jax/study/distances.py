"""How far from what it learned a model is tested, and what the distance costs.

Everything is read off the records' own columns (`source`, `content`, `subject_id`), never off the
names of datasets.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fer_jax.data.records import Records, labelled_rows
from fer_jax.evaluation import bootstrap, compare, predictions

METRIC = "balanced_accuracy"
DISTANCES = {
    "within_domain": "within",
    "cross_domain": "cross_domain",
    "cross_content": "cross_content",
}
RELATIONS = tuple(DISTANCES.values())
KNOWN_PEOPLE = "known_people"
# Random halves of people and images settle to a thousandth in so many.
THINNINGS = 200


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a scenario learned from.

    Attributes:
      sources: of the training records.
      places: (source, content) of the training records.
      chosen_on: (source, content) of the validation records.
      subjects: who is in the training records, where people are named.
      records: record_id of everything that was trained or selected on.
    """

    sources: frozenset[str]
    places: frozenset[tuple[str, str]]
    chosen_on: frozenset[tuple[str, str]]
    subjects: frozenset[str]
    records: frozenset[str]


def learned(train: Sequence[Records], validation: Sequence[Records], task: str) -> Learned:
    """What opened training and validation parts are about; unlabelled records do not count."""

    def values(parts: Iterable[Records], *columns: str) -> set[Any]:
        found = set()
        for part in parts:
            rows = labelled_rows(part, task)
            found |= set(zip(*(part.columns[name][rows].tolist() for name in columns), strict=True))
        return found

    places = values(train, "source", "content")
    return Learned(
        sources=frozenset(source for source, _ in places),
        places=frozenset(places),
        chosen_on=frozenset(values(validation, "source", "content")),
        subjects=frozenset(who for (who,) in values(train, "subject_id") if who),
        records=frozenset(one for (one,) in values([*train, *validation], "record_id")),
    )


def relation(of: Learned, table: predictions.Table) -> str | None:
    """How a test set relates to what was learned.

    Returns:
      "within": held-out people of the same sources and content groups; "cross_content": people
      of the same sources with content groups that are all new; "cross_domain": other sources
      alone, whatever their content; "known_people": everybody in it was trained on (a leak that
      was allowed); None where it is partly one and partly another.
    """
    tested = set(zip(table["source"].tolist(), table["content"].tolist(), strict=True))
    sources = {source for source, _ in tested}
    people = set(table["subject_id"].tolist()) - {""}
    if people & of.subjects:
        return KNOWN_PEOPLE if people <= of.subjects and (table["subject_id"] != "").all() else None
    if not sources & of.sources:
        return "cross_domain"
    if not sources <= of.sources:
        return None
    if tested <= of.places:
        return "within"
    new = not tested & of.places and all(content for _, content in tested)
    return "cross_content" if new else None


def is_oracle(of: Learned, table: predictions.Table) -> bool:
    """Whether a model had its choices made for it by data of the test set's kind.

    That is: images of the test set itself were trained or selected on, or the checkpoint was
    selected on a source and content of the test set's that the training had not.
    """
    tested = set(zip(table["source"].tolist(), table["content"].tolist(), strict=True))
    return bool(
        tested & (of.chosen_on - of.places) or set(table["record_id"].tolist()) & of.records
    )


@dataclasses.dataclass(frozen=True)
class Answered:
    """A scenario's answers to the scored images of a test set.

    Attributes:
      table: columns of the images; labels are numbers of classes.
      probabilities: float64 [n, k], one for each seed.
    """

    table: predictions.Table
    probabilities: Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric of a test set, apart by what its error comes from.

    Attributes:
      by_seed: float64 [seeds].
      variance: of the mean over the seeds, from the choice of people alone.
      degrees: of freedom that this variance is known with.
    """

    by_seed: np.ndarray
    variance: float
    degrees: float


def of_predictors(
    resampled: compare.Resampled, numbers: Sequence[int], name: str = METRIC
) -> Estimate:
    """A metric of some of the resampled predictors, which differ in their seeds."""
    _, error, _ = compare.estimate(resampled, name, [(numbers, 1.0)])
    by_seed = resampled.values(name)[np.asarray(numbers)]
    of_seeds = by_seed.var(ddof=1) / len(by_seed) if len(by_seed) > 1 else 0.0
    return Estimate(by_seed, max(error**2 - of_seeds, 0.0), resampled.of.degrees()[0])


def combined(terms: Sequence[tuple[Estimate, float]]) -> tuple[float, float, float]:
    """A sum of estimates of different people by the same seeds, each with its factor.

    Seeds are shared, so what they add to one term they add to the others too: they spread as
    the sum does from seed to seed.

    Returns:
      (value, standard error, degrees of freedom of t by Welch and Satterthwaite).
    """
    by_seed = np.sum([factor * term.by_seed for term, factor in terms], axis=0)
    num_seeds = len(by_seed)
    of_seeds = float(by_seed.var(ddof=1) / num_seeds) if num_seeds > 1 else 0.0
    variances = [factor**2 * term.variance for term, factor in terms]
    degrees = compare.satterthwaite(
        [*variances, of_seeds], [*(term.degrees for term, _ in terms), num_seeds - 1]
    )
    return float(by_seed.mean()), float(np.sqrt(sum(variances) + of_seeds)), degrees


def distances(
    cells: Sequence[tuple[str | None, Estimate, Answered]], num_classes: int, *, seed: int = 0
) -> dict[str, Any]:
    """The three distances of one scenario, and what new people and new content cost.

    All in balanced accuracy, as means over the test sets of each relation (see `relation`):
    - `within_domain`: held-out people of the sources and content groups that were trained on.
    - `cross_domain`: other sources. `cross_content`: other content groups of the same sources.

    A drop from what was trained on to another content group mixes two things where every person
    belongs to one group: the people are new, and so is the content. They are told apart by
    - `new_content` = (train A -> unseen people of A) - (train A -> B), where B is every
      cross_content set, or, where there is none, every cross_domain set (`of` says which). On
      both sides the people are new, so what differs is the content (or the source).
    - `new_people` = (train A -> people of A that were trained on) - (train A -> unseen people
      of A); it exists only where a test set of known people was allowed to leak.

    Both differences are matched in size. Only classes that both sides have are scored. Where
    both are clustered by the same kind of thing (people, most often), as many clusters are drawn,
    without replacement, from the larger side as the smaller one has; of each class the images
    are then thinned to the number that the smaller side has of it. The value is the mean over
    200 such draws, so a set of few people, in which a class is rare, is held against sets of as
    few people. The error is that of the unthinned sides, which the mean over draws makes use of:
    whole clusters are resampled on each side by itself, and seeds on both together, for the same
    networks answer on both. Subject-disjoint they are because nobody in A's or B's test set was
    trained on; a set in which somebody was has no relation, and is in no mean.

    Args:
      cells: (relation, estimate of the metric, answers) of each test set.
      num_classes: k.
      seed: of the draws.

    Returns:
      Each name with {"value", "interval", "n_sets"}; where it does not exist these are NaN, two
      NaN and 0, and "why" says so.
    """
    by_relation: dict[str | None, list[tuple[Estimate, Answered]]] = {}
    for related, estimated, tested in cells:
        by_relation.setdefault(related, []).append((estimated, tested))
    found = {}
    for name, related in DISTANCES.items():
        own = [estimated for estimated, _ in by_relation.get(related, [])]
        if not own:
            found[name] = _absent(f"no test set is {related.replace('_', ' ')} for it")
            continue
        value, error, degrees = combined([(one, 1 / len(own)) for one in own])
        bounds = bootstrap.interval(METRIC, value, error, degrees)
        found[name] = {"value": value, "interval": bounds, "n_sets": len(own)}
    within = [tested for _, tested in by_relation.get("within", [])]
    known = [tested for _, tested in by_relation.get(KNOWN_PEOPLE, [])]
    beyond_in = "cross_content" if "cross_content" in by_relation else "cross_domain"
    beyond = [tested for _, tested in by_relation.get(beyond_in, [])]
    if not within:
        why = "no test set has unseen people of what was trained on"
        return found | {"new_people": _absent(why), "new_content": _absent(why)}
    found["new_people"] = (
        _drop(known, pooled(within), num_classes, seed=seed, from_many=True)
        if known
        else _absent("no test set is of people that were trained on")
    )
    found["new_content"] = (
        _drop(beyond, pooled(within), num_classes, seed=seed) | {"of": beyond_in}
        if beyond
        else _absent("no test set has other content or another source")
    )
    return found


def _absent(why: str) -> dict[str, Any]:
    return {"value": float("nan"), "interval": [float("nan")] * 2, "n_sets": 0, "why": why}


def _drop(
    sets: Sequence[Answered],
    within: Answered,
    num_classes: int,
    *,
    seed: int,
    from_many: bool = False,
) -> dict[str, Any]:
    """`within` less the mean over the sets, matched; the other way round with `from_many`."""
    pairs = [matched(within, one, num_classes, seed=seed) for one in sets]
    pairs = [pair for pair in pairs if pair is not None]
    if not pairs:
        return _absent("the sides have no class in common")
    # One side is the same people in all pairs: its error does not average out.
    common = Estimate(
        np.mean([one.by_seed for one, _ in pairs], axis=0),
        max(one.variance for one, _ in pairs),
        min(one.degrees for one, _ in pairs),
    )
    sign = -1.0 if from_many else 1.0
    terms = [(common, sign), *((other, -sign / len(pairs)) for _, other in pairs)]
    dropped = bootstrap.difference(*combined(terms))
    return {
        "value": dropped["difference"],
        "interval": dropped["interval"],
        "n_sets": len(pairs),
        "p": dropped["p"],
    }


def pooled(sets: Sequence[Answered]) -> Answered:
    """Several test sets as one."""
    return Answered(
        {
            name: np.concatenate([one.table[name] for one in sets])
            for name in sets[0].table
            if name != "probabilities"
        },
        [
            np.concatenate(of_seed)
            for of_seed in zip(*(one.probabilities for one in sets), strict=True)
        ],
    )


def matched(
    a: Answered, b: Answered, num_classes: int, *, seed: int = 0
) -> tuple[Estimate, Estimate] | None:
    """Both sides' balanced accuracies, matched in size as `distances` says.

    Returns:
      None where they have no class in common.
    """
    classes = np.intersect1d(a.table["label"], b.table["label"])
    if not len(classes):
        return None
    sides = [_rows(one, np.isin(one.table["label"], classes)) for one in (a, b)]
    clustered = [bootstrap.clusters(one.table) for one in sides]
    counts = [np.bincount(one.table["label"], minlength=num_classes) for one in sides]
    per_class = np.minimum(*counts)
    found = []
    for number, (one, (cluster, kind)) in enumerate(zip(sides, clustered, strict=True)):
        own, (other, of_other) = cluster.max() + 1, clustered[1 - number]
        num_clusters = min(own, other.max() + 1) if kind == of_other else own
        of = bootstrap.sample(one.table["label"], cluster, num_classes)
        resampled = compare.resample(of, one.probabilities, areas=False)
        full = of_predictors(resampled, range(len(one.probabilities)))
        if num_clusters == own and (counts[number] == per_class).all():
            found.append(full)
            continue
        thinned = _thinned(one, cluster, num_clusters, per_class, np.random.default_rng(seed))
        found.append(dataclasses.replace(full, by_seed=thinned))
    return found[0], found[1]


def _rows(one: Answered, rows: np.ndarray) -> Answered:
    table = {name: column[rows] for name, column in one.table.items() if name != "probabilities"}
    return Answered(table, [p[rows] for p in one.probabilities])


def _thinned(
    one: Answered,
    cluster: np.ndarray,
    num_clusters: int,
    per_class: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """The mean balanced accuracy of draws of so many clusters and images: float64 [seeds]."""
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
