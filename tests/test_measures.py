"""Distances of distributions against their definitions written out."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import linalg

from fer_jax.synthesis import measures


def features(n: int, shift: float = 0.0, seed: int = 0, d: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(d, d))
    return rng.normal(size=(n, d)) @ mixing + shift


@pytest.mark.parametrize(("n", "m"), [(40, 30), (5, 4), (2, 50)])
def test_kernel_distance_is_the_unbiased_estimate(n: int, m: int, monkeypatch):
    monkeypatch.setattr(measures, "BLOCK", 7)
    a, b = features(n), features(m, 0.3, seed=1)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    same_a = [kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j]
    same_b = [kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j]
    across = [kernel(x, y) for x in a for y in b]
    expected = np.mean(same_a) + np.mean(same_b) - 2 * np.mean(across)
    assert measures.kernel_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_of_the_same_distribution_is_around_zero():
    values = [
        measures.kernel_distance(features(100, seed=i), features(100, seed=i + 50))
        for i in range(20)
    ]
    spread = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * spread and min(values) < 0
    assert measures.kernel_distance(features(100), features(100, 2.0, seed=1)) > 10 * np.std(values)


@pytest.mark.parametrize(("n", "m"), [(200, 150), (4, 200), (5, 3)])
def test_frechet_distance_is_the_formula(n: int, m: int):
    a, b = features(n), features(m, 0.5, seed=1) * 1.3
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    expected = np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + np.trace(
        np.cov(a.T) + np.cov(b.T) - 2 * np.real(root)
    )
    # sqrtm loses half its digits where a covariance has no full rank.
    assert measures.frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
    assert measures.frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * a.var())
    assert measures.frechet_distance(a, a + 2) == pytest.approx(4 * a.shape[1], rel=1e-9)


def test_precision_and_recall_are_shares_of_manifolds(monkeypatch):
    monkeypatch.setattr(measures, "BLOCK", 11)
    real, generated = features(60), features(40, 0.8, seed=1)

    def share(x: np.ndarray, manifold: np.ndarray) -> float:
        inside = 0
        for point in x:
            for centre in manifold:
                others = sorted(np.linalg.norm(manifold - centre, axis=1))[1:]
                if np.linalg.norm(point - centre) <= others[measures.NEIGHBOURS - 1]:
                    inside += 1
                    break
        return inside / len(x)

    precision, recall = measures.precision_recall(real, generated)
    assert precision == pytest.approx(share(generated, real))
    assert recall == pytest.approx(share(real, generated))
    assert 0 < min(precision, recall) and max(precision, recall) < 1


def test_one_repeated_face_has_precision_and_no_recall():
    real = features(200)
    precision, recall = measures.precision_recall(real, np.repeat(real[:1], 50, axis=0))
    assert precision == 1 and recall <= 1 / 200
    assert measures.precision_recall(real, real + 1000) == (0, 0)


def test_measures_of_too_few_are_not_a_number(tmp_path: Path):
    a = features(3)
    assert np.isnan(measures.kernel_distance(a[:1], a))
    assert np.isnan(measures.frechet_distance(a, a[:0]))
    assert np.isnan(measures.precision_recall(a, a)).all()
    rows = measures.compare(a, np.zeros(3, int), a[:1], np.full(1, -1), ("x", "y"))
    text = measures.write(tmp_path / "measures.json", rows, {"real": "a"})
    assert "n/a" in text and "nan" not in text
    stored = json.loads((tmp_path / "measures.json").read_text())
    assert stored["measures"][0]["kid"] is None and "not of Inception" in stored["note"]


def test_each_class_is_compared_with_its_own():
    real, generated = features(300), features(200, seed=1)
    real_labels, synthetic_labels = np.arange(300) % 3, np.arange(200) % 3
    generated[synthetic_labels == 1] += 5
    rows = {
        r["class"]: r
        for r in measures.compare(real, real_labels, generated, synthetic_labels, ("a", "b", "c"))
    }
    assert [rows[name]["real"] for name in ("all", "a", "b", "c")] == [300, 100, 100, 100]
    assert [rows[name]["generated"] for name in ("all", "a", "b", "c")] == [200, 67, 67, 66]
    assert rows["b"]["frechet"] > 10 * max(rows["a"]["frechet"], rows["c"]["frechet"])
    assert rows["b"]["precision"] < 0.2 < rows["a"]["precision"]
    # The floor: what two halves of the real set are apart.
    assert rows["b"]["real_frechet"] < 0.2 * rows["b"]["frechet"]
    half = real[np.random.default_rng(0).permutation(300)]
    assert rows["all"]["real_kid"] == pytest.approx(measures.kernel_distance(half[::2], half[1::2]))
