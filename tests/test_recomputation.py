"""Every score and interval of a results file, computed a second time in another way.

Nothing of the package's arithmetic is used: points come from scikit-learn or from loops, areas from
comparisons of all pairs, weights from SplitMix64 in Python's integers, quantiles from scipy.stats.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from fer_jax import schema
from fer_jax.config import default_config, to_json
from fer_jax.evaluation import predictions, run_scores

K, DRAWS, BINS = 7, 2000, 15
MEANS = {
    "balanced_accuracy": "recall",
    "macro_f1": "f1",
    "pr_auc": "class_pr_auc",
    "roc_auc": "class_roc_auc",
}
PLAIN = ("accuracy", "weighted_f1", "kappa", "mcc", "ece", "class_ece", "loss", "brier")
SETS = (
    ("lab", "test", 200, "lab"),
    ("web", "test", 160, "lab"),  # with people of the first
    ("web", "train", 140, "web"),
    ("lab", "validation", 120, "other"),
)
CROSS = ("cross_domain", "cross_domain")  # of the sets of web
Values = dict[str, np.ndarray]  # [draws], or [k, draws] of each class
Shares = dict[str, float]  # of each cluster, by its name
Estimate = tuple[float, np.ndarray, Shares]  # (value, deviations of the draws, shares)


def occurrences(content: str) -> list[int]:
    """How often each label occurred in training, of one content."""
    return [1 + (label + len(content)) % 5 for label in range(K)]


def pixel_free(content: str) -> np.ndarray:
    """P(label | content), smoothed by an image that is spread as the labels of all are."""
    own = np.asarray(occurrences(content))
    total = np.asarray(occurrences("car")) + np.asarray(occurrences("food"))
    share = (total + 1 / K) / (total.sum() + 1)
    of_source, of_content = (total + share) / (total.sum() + 1), (own + share) / (own.sum() + 1)
    spread = of_source * of_content / share
    return (own + spread / spread.sum()) / (own.sum() + 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with tables of 24 people each, of whom both sexes, several ages and contents."""
    run = tmp_path_factory.mktemp("run")
    config = default_config()
    config.sources, config.test_sets = ("lab",), ("lab", "web")
    (run / "config.json").write_text(to_json(config))
    (run / "environment.json").write_text("{}")
    counts = "source,content,label,images\n"
    for content in ("car", "food"):
        for name, count in zip(schema.EMOTIONS, occurrences(content), strict=True):
            counts += f"lab,{content},{name},{count}\n"
    (run / "training_labels.csv").write_text(counts)
    related = dict(zip(("lab.test", "web.test", "web.train"), ("within", *CROSS), strict=True))
    about = {
        f"{name}.csv": {"relation": of, "near_duplicates": None} for name, of in related.items()
    }
    (run / "test_sets.json").write_text(json.dumps(about))
    for seed, (dataset, split, n, people) in enumerate(SETS):
        rng = np.random.default_rng(seed)
        person, labels = rng.integers(0, 24, n), rng.integers(0, K, n)
        chances = rng.dirichlet(np.full(K, 0.7), n) + 0.25 * np.eye(K)[labels]
        chances[:, 2] = np.round(chances[:, 2], 1)  # ties
        text = {name: np.full(n, "") for name in predictions.TEXT}
        table = text | {
            "dataset": np.full(n, dataset),
            "split": np.full(n, split),
            "source": np.full(n, "lab"),
            "content": np.where(rng.random(n) < 0.5, "car", "food"),
            "record_id": np.asarray([f"{dataset}/{split}/{i}" for i in range(n)]),
            "subject_id": np.asarray([f"{people}/{one}" for one in person]),
            "clip_id": np.asarray([f"{dataset}/{i // 3}" for i in range(n)]),
            "gender": np.where(person < 13, "female", "male"),
            "age": 16.0 + 2 * person,
            "frame_index": np.zeros(n, int),
            "label": labels,
            "probabilities": chances / chances.sum(axis=1, keepdims=True),
        }
        file = run / "predictions" / predictions.file_name(dataset, split)
        file.parent.mkdir(exist_ok=True)
        predictions.write(file, table, schema.EMOTIONS)
    return run


def points(labels: np.ndarray, p: np.ndarray, w: np.ndarray) -> dict[str, Any]:
    """The scores of one set by scikit-learn and loops."""
    given, present = p.argmax(axis=1), sorted(set(labels.tolist()))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, given, labels=range(K), sample_weight=w, zero_division=cast(Any, np.nan)
    )
    support = np.asarray([w[labels == c].sum() for c in range(K)])
    f1 = np.where(support > 0, np.nan_to_num(f1), np.nan)

    areas = np.full((2, K), np.nan)
    for c in present:
        areas[0, c] = sk.average_precision_score(labels == c, p[:, c], sample_weight=w)
        if len(present) > 1:
            areas[1, c] = sk.roc_auc_score(labels == c, p[:, c], sample_weight=w)
    own = p[np.arange(len(p)), labels]
    gaps, class_gaps = np.zeros(BINS), np.zeros((K, BINS))
    for i in range(len(p)):
        gaps[int(np.ceil(p[i].max() * BINS)) - 1] += w[i] * ((given[i] == labels[i]) - p[i].max())
        for c in range(K):
            place = max(int(np.ceil(p[i, c] * BINS)) - 1, 0)
            class_gaps[c, place] += w[i] * ((labels[i] == c) - p[i, c])
    return {
        "accuracy": sk.accuracy_score(labels, given, sample_weight=w),
        "recall": np.where(support > 0, recall, np.nan),
        "precision": precision,
        "f1": f1,
        "weighted_f1": np.nansum(f1 * support) / w.sum(),
        "kappa": sk.cohen_kappa_score(labels, given, sample_weight=w),
        "mcc": sk.matthews_corrcoef(labels, given, sample_weight=w),
        "class_pr_auc": areas[0],
        "class_roc_auc": areas[1],
        "balanced_accuracy": np.nanmean(np.where(support > 0, recall, np.nan)),
        "macro_f1": np.nanmean(f1),
        "pr_auc": np.nanmean(areas[0]),
        "roc_auc": np.nanmean(areas[1]) if len(present) > 1 else np.nan,
        "loss": np.average(-np.log(np.maximum(own, 1e-12)), weights=w),
        "brier": np.average(((p - np.eye(K)[labels]) ** 2).sum(axis=1), weights=w),
        "ece": np.abs(gaps).sum() / w.sum(),
        "class_ece": np.abs(class_gaps).sum() / w.sum() / K,
        "confusion": sk.confusion_matrix(labels, given, labels=range(K), sample_weight=w),
        "prevalence": support / w.sum(),
    }


def weighted(labels: np.ndarray, p: np.ndarray, w: np.ndarray) -> Values:
    """The scores that have intervals, for weights [n, draws], by comparing all pairs of images."""
    given, total = p.argmax(axis=1), w.sum(axis=0)
    cells = {
        (a, b): w[(labels == a) & (given == b)].sum(axis=0) for a in range(K) for b in range(K)
    }
    support = np.stack([sum(cells[c, b] for b in range(K)) for c in range(K)])
    guessed = np.stack([sum(cells[a, c] for a in range(K)) for c in range(K)])
    right = np.stack([cells[c, c] for c in range(K)])
    values = {"recall": right / support, "precision": right / guessed}
    values["f1"] = np.where(support > 0, 2 * right / (support + guessed), np.nan)
    agreed, hits = (support * guessed).sum(axis=0) / total, right.sum(axis=0)
    spread = (total - (support**2).sum(axis=0) / total) * (total - (guessed**2).sum(axis=0) / total)
    own = p[np.arange(len(p)), labels]
    correct, best = given == labels, p.max(axis=1)
    bins = np.maximum(np.ceil(best * BINS).astype(int), 1)
    gaps = [((correct - best)[bins == b, None] * w[bins == b]).sum(axis=0) for b in range(1, 16)]
    class_gaps = []
    for c in range(K):
        bins = np.maximum(np.ceil(p[:, c] * BINS).astype(int), 1)
        off = (labels == c) - p[:, c]
        class_gaps += [(off[bins == b, None] * w[bins == b]).sum(axis=0) for b in range(1, 16)]
    for name in ("class_pr_auc", "class_roc_auc"):
        values[name] = np.full((K, w.shape[1]), np.nan)
    for c in range(K):
        positive, scores = labels == c, p[:, c]
        if not positive.any():
            continue
        mine = w[positive]
        reached = (scores[None, :] >= scores[positive, None]).astype(float)
        precision = (reached[:, positive] @ mine) / (reached @ w)
        values["class_pr_auc"][c] = np.nansum(mine * precision, axis=0) / mine.sum(axis=0)
        if not positive.all():
            higher = np.sign(scores[positive, None] - scores[None, ~positive]) / 2 + 0.5
            pairs = (mine * (higher @ w[~positive])).sum(axis=0)
            values["class_roc_auc"][c] = pairs / (mine.sum(axis=0) * w[~positive].sum(axis=0))
    return values | {
        "accuracy": hits / total,
        "weighted_f1": np.nansum(values["f1"] * support, axis=0) / total,
        "kappa": (hits - agreed) / (total - agreed),
        "mcc": (hits - agreed) / np.sqrt(spread),
        "ece": np.abs(gaps).sum(axis=0) / total,
        "class_ece": np.abs(class_gaps).sum(axis=0) / total / K,
        "loss": (-np.log(np.maximum(own, 1e-12))[:, None] * w).sum(axis=0) / total,
        "brier": (((p - np.eye(K)[labels]) ** 2).sum(axis=1)[:, None] * w).sum(axis=0) / total,
    }


@functools.cache
def exponentials(name: str) -> list[float]:
    """The weights of a cluster: SplitMix64 from a hash of its name, as exponential variables."""
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    found = []
    for number in range(1, DRAWS + 1):
        bits = (key + number * 0x9E3779B97F4A7C15) % 2**64
        bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
        found.append(-np.log((((bits ^ (bits >> 31)) >> 11) + 0.5) / 2**53))
    return found


class Block:
    """One set of images with its clusters: points, draws and values without each cluster."""

    def __init__(
        self, labels: np.ndarray, p: np.ndarray, cluster: list[str], *, equal: bool = False
    ) -> None:
        self.names = sorted(set(cluster))
        member = np.asarray([[one == name for name in self.names] for one in cluster], float)
        scale = member @ (1 / member.sum(axis=0)) if equal else np.ones(len(labels))
        self.labels, self.member, self.scale = labels, member, scale
        self.points = points(labels, p, scale)
        if len(self.names) < 2:
            return
        weights = np.asarray([exponentials(name) for name in self.names])
        self.draws = weighted(labels, p, member @ weights * scale[:, None])
        self.left_out = weighted(labels, p, (1 - member) * scale[:, None])

    def estimate(self, name: str, label: int | None = None) -> Estimate:
        value, draws, left = self.points[name], self.draws[name], self.left_out[name]
        of = np.ones(len(self.labels)) if label is None else self.labels == label
        if label is not None:
            value, draws, left = value[label], draws[label], left[label]
        g = len(self.names)
        deviations = (draws - value) * np.sqrt((g + 1) / (g - 1))
        left = left[np.isfinite(left)]
        jackknife = np.sqrt((len(left) - 1) / len(left) * ((left - value) ** 2).sum())
        deviations *= max(1.0, jackknife / np.sqrt((deviations**2).mean()))
        sizes = (of * self.scale) @ self.member
        return float(value), deviations, dict(zip(self.names, sizes / sizes.sum(), strict=True))

    def mean(self, name: str, classes: list[int] | None = None) -> Estimate:
        of_class = MEANS[name]
        if classes is None:
            classes = np.flatnonzero(np.isfinite(self.points[of_class])).tolist()
        return combined([(self.estimate(of_class, c), 1 / len(classes)) for c in classes])

    def few(self) -> bool:
        """Whether a class has one cluster alone: its error is then borrowed, which is not here."""
        has = [self.member[self.labels == c].any(axis=0).sum() for c in range(K)]
        return len(self.names) < 2 or 1 in has


def combined(terms: list[tuple[Estimate, float]]) -> Estimate:
    deviations = np.sum([factor * one[1] for one, factor in terms], axis=0)
    parts = [max(factor * (one[1] * deviations).mean(), 0) for one, factor in terms]
    shares: Shares = {}
    for part, (one, _) in zip(parts, terms, strict=True):
        for name, share in one[2].items():
            shares[name] = shares.get(name, 0) + part / sum(parts) * share
    return sum(factor * one[0] for one, factor in terms), deviations, shares


def error(of: Estimate) -> tuple[float, float]:
    """(standard error, degrees of freedom)."""
    shares = np.asarray(list(of[2].values()))
    return float(np.sqrt((of[1] ** 2).mean())), shares.sum() ** 2 / (shares**2).sum() - 1


def bounds(name: str, of: Estimate) -> list[float]:
    value, (deviation, degrees) = of[0], error(of)
    if degrees < 1 or deviation <= 1e-12:
        return [np.nan] * 2
    reach = stats.t.ppf(0.975, degrees) * deviation
    if name in ("ece", "class_ece"):
        bias = max(0.0, of[1].mean()) if name == "class_ece" else 0.0
        return [float(max(0, value - reach - bias)), float(min(1, value + reach))]
    sides = np.asarray([-reach, reach])
    if name in ("loss", "brier"):
        return (value * np.exp(sides / value)).tolist()
    if name in ("kappa", "mcc"):
        return np.tanh(np.arctanh(value) + sides / (1 - value**2)).tolist()
    middle, sides = np.log(value / (1 - value)), sides / (value * (1 - value))
    return (1 / (1 + np.exp(-sides - middle))).tolist()


def check(found: dict[str, Any], block: Block) -> int:
    """Compares a block of a results file; returns how many numbers were compared."""
    compared = 0
    for name, value in block.points.items():
        if name in found:
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-9, err_msg=name)
            compared += np.size(value)
    for name in [*PLAIN, *MEANS] if not block.few() else []:
        of = block.mean(name) if name in MEANS else block.estimate(name)
        expected = bounds(name, of)
        np.testing.assert_allclose(
            found["intervals"][name], expected, rtol=0, atol=1e-9, err_msg=f"interval of {name}"
        )
        compared += 2
    for name in ("recall", "f1", "class_pr_auc", "class_roc_auc"):
        if not block.few() and name in found:
            expected = [bounds(name, block.estimate(name, c)) for c in range(K)]
            np.testing.assert_allclose(found["intervals"][name], expected, rtol=0, atol=1e-9)
            compared += 2 * K
    return compared


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero)")  # where a draw lacks a class
def test_every_number_of_a_results_file(run: Path):
    scored = run_scores.score_run(run)
    compared, blocks, of_age = 0, {}, (18, 30, 45, 60)
    everything = [*scored["sets"], *scored["validation"]]
    assert len(everything) == len(SETS)
    for one in everything:
        file = run / "predictions" / predictions.file_name(one["dataset"], one["split"])
        table = predictions.read(file, schema.EMOTIONS)[0]
        labels, p = table["label"], table["probabilities"]
        people = [f"subject/{name}" for name in table["subject_id"].tolist()]
        block = blocks[one["table"]] = Block(labels, p, people)
        compared += check(one, block)
        compared += check(one["by_subject"], Block(labels, p, people, equal=True))
        occurred = np.asarray([pixel_free(content) for content in table["content"].tolist()])
        compared += check(one["pixel_free"], Block(labels, occurred, people))

        right = p.argmax(axis=1) == labels
        own = np.asarray([right[np.asarray(people) == name].mean() for name in block.names])
        np.testing.assert_allclose(one["by_subject"]["accuracies"], np.sort(own), atol=1e-12)

        units: dict[tuple[str, int], list[int]] = {}
        for i, key in enumerate(zip(table["clip_id"].tolist(), labels.tolist(), strict=True)):
            units.setdefault(key, []).append(i)
        keys = sorted(units)
        means = np.stack([p[units[key]].mean(axis=0) for key in keys])
        clips = Block(
            np.asarray([label for _, label in keys]), means, [people[units[key][0]] for key in keys]
        )
        compared += check(one["by_clip"], clips)

        bands = ("under 18", "18-29", "30-44", "45-59", "60 and over")
        values = {
            "gender": table["gender"].tolist(),
            "content": table["content"].tolist(),
            "age": [bands[sum(age >= edge for edge in of_age)] for age in table["age"].tolist()],
        }
        for column, given in values.items():
            groups = {}
            for part in one["slices"][column]:
                rows = np.asarray([value == part["value"] for value in given])
                chosen = [name for name, row in zip(people, rows, strict=True) if row]
                groups[part["value"]] = Block(labels[rows], p[rows], chosen)
                compared += check(part, groups[part["value"]])
            compared += check_gap(one["gaps"][column], groups)

        temperature = one["calibrated"] and one["calibrated"]["temperature"]
        if temperature:
            scaled = p ** (1 / temperature)
            scaled /= scaled.sum(axis=1, keepdims=True)
            calibrated = Block(labels, scaled, people)
            for name in ("ece", "loss"):
                assert one["calibrated"][name] == pytest.approx(calibrated.points[name], abs=1e-9)
                expected = bounds(name, calibrated.estimate(name))
                np.testing.assert_allclose(
                    one["calibrated"]["intervals"][name], expected, atol=1e-9
                )
                compared += 3
    compared += check_means(scored, blocks)
    assert compared > 2000


def check_gap(found: dict[str, Any] | None, groups: dict[str, Block]) -> int:
    names = [name for name, block in groups.items() if len(block.names) >= 10]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    if found is None:
        assert not pairs
        return 0
    gaps = {}
    for pair in pairs:
        sides = [groups[name] for name in pair]
        common = [c for c in range(K) if all((side.labels == c).any() for side in sides)]
        if any(side.few() for side in sides):
            return 0
        first, second = (side.mean("balanced_accuracy", common) for side in sides)
        gaps[pair] = combined([(first, 1.0), (second, -1.0)])
    pair, largest = max(gaps.items(), key=lambda entry: abs(entry[1][0]))
    deviation, degrees = error(largest)
    reach = stats.t.ppf(1 - 0.025 / len(pairs), degrees) * deviation
    value = abs(largest[0])
    assert {found["high"], found["low"]} == set(pair)
    assert found["difference"] == pytest.approx(value, abs=1e-9)
    np.testing.assert_allclose(found["interval"], [value - reach, value + reach], atol=1e-9)
    assert found["p"] == pytest.approx(2 * stats.t.sf(value / deviation, degrees), abs=1e-9)
    return 4


def check_means(scored: dict[str, Any], blocks: dict[str, Block]) -> int:
    """The means within and across datasets, and the loss, over people that sets share."""
    averaged = [one for one in scored["sets"] if not one["not_in_means"]]
    for relation in ("within", "cross_domain"):
        for name in (*PLAIN[:1], *MEANS):
            own = [one[name] for one in averaged if one["relation"] == relation]
            assert own
            assert scored["means"][relation][name] == pytest.approx(np.mean(own), abs=1e-9)
    estimates: list[tuple[Estimate, float]] = []
    for relation, sign in (("within", 1.0), ("cross_domain", -1.0)):
        own = [
            blocks[one["table"]].mean("balanced_accuracy", list(range(K)))
            for one in averaged
            if one["relation"] == relation
        ]
        mean = combined([(one, 1 / len(own)) for one in own])
        found = scored["generalization"][relation]
        assert found["value"] == pytest.approx(mean[0], abs=1e-9)
        np.testing.assert_allclose(found["interval"], bounds("balanced_accuracy", mean), atol=1e-9)
        estimates.append((mean, sign))
    loss = combined(estimates)
    deviation, degrees = error(loss)
    reach = stats.t.ppf(0.975, degrees) * deviation
    found = scored["generalization"]["cross_domain"]["loss"]
    assert found["value"] == pytest.approx(loss[0], abs=1e-9)
    np.testing.assert_allclose(found["interval"], [loss[0] - reach, loss[0] + reach], atol=1e-9)
    return 20
