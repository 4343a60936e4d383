"""How close synthetic faces are to real ones, on features of this project's own Xception.

The features are not Inception's and depend on the run, so no number here can be compared with a
published FID or KID, only with others of the same run. The same distances between the halves of
the real faces are reported for reference.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.results import align, number, plain
from fer_jax.storage import write_atomically

NEIGHBOURS = 3  # of Kynkaanniemi et al.
SAME = 0.25  # of the median distance to the nearest neighbour
BLOCK = 1024  # rows of a distance matrix in memory at once
NAMES = ("kid", "frechet", "precision", "recall")


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the kernel distance KID (Binkowski et al. 2018) of float [n, d] and [m, d].

    The unbiased estimate of the squared maximum mean discrepancy under (x.y / d + 1)^3, over
    all pairs; it can be below 0. NaN with fewer than two rows of either.
    """
    if min(len(a), len(b)) < 2:
        return float("nan")
    return _mean_kernel(a, a) + _mean_kernel(b, b) - 2 * _mean_kernel(a, b)


def _mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
    """Averages the kernel over pairs; over pairs of different rows if both are the same array."""
    total = 0.0
    for first in range(0, len(a), BLOCK):
        kernel = (a[first : first + BLOCK] @ b.T / a.shape[1] + 1) ** 3
        total += kernel.sum()
    if a is not b:
        return float(total / (len(a) * len(b)))
    own = ((np.square(a).sum(axis=1) / a.shape[1] + 1) ** 3).sum()
    return float((total - own) / (len(a) * (len(a) - 1)))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Computes the Frechet distance of normal distributions fitted to float [n, d] and [m, d].

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Dowson and Landau 1982; Heusel et al. 2017).
    It is biased upwards, more so with fewer rows. NaN with fewer than two rows of either.
    """
    if min(len(a), len(b)) < 2:
        return float("nan")
    # (A B)^(1/2) has the trace of the symmetric (A^(1/2) B A^(1/2))^(1/2), and that is the sum
    # of the singular values of the product of two square roots.
    roots = [_covariance_root(a), _covariance_root(b)]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(np.square(root).sum() for root in roots)
    means = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(means + spread - 2 * shared)


def _covariance_root(x: np.ndarray) -> np.ndarray:
    """Returns a matrix R of at most d rows whose R.T @ R is the covariance."""
    centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(x) > x.shape[1] else centred


def precision_recall(real: np.ndarray, synthetic: np.ndarray) -> tuple[float, float]:
    """Computes precision and recall of manifolds (Kynkaanniemi et al. 2019).

    A set's manifold is the union of balls about its rows that reach to the k-th nearest other
    row, k = `NEIGHBOURS`. Precision is the share of synthetic rows [m, d] in the real manifold,
    recall the share of real rows [n, d] in the synthetic one. NaN if a set has at most k rows.
    """
    if min(len(real), len(synthetic)) <= NEIGHBOURS:
        return float("nan"), float("nan")
    return _share_inside(synthetic, real), _share_inside(real, synthetic)


def near_duplicates(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Returns the share of synthetic rows [m, d] that have a near-duplicate among the others.

    Near-duplicates are closer than `SAME` of the median distance from a real row [n, d] to its
    nearest real neighbour. NaN with fewer than two rows of either.
    """
    if min(len(real), len(synthetic)) < 2:
        return float("nan")
    median = np.median(_reach(real, 1))
    return float(np.mean(_reach(synthetic, 1) < SAME**2 * median))


def _reach(x: np.ndarray, neighbours: int) -> np.ndarray:
    """Returns the squared distance of each row to its k-th nearest other row, float [n]."""
    # The nearest row of a row is itself.
    blocks = (_squared_distances(x[i : i + BLOCK], x) for i in range(0, len(x), BLOCK))
    return np.concatenate([np.partition(b, neighbours)[:, neighbours] for b in blocks])


def _share_inside(x: np.ndarray, manifold: np.ndarray) -> float:
    reach = _reach(manifold, NEIGHBOURS)
    inside = [
        (_squared_distances(x[i : i + BLOCK], manifold) <= reach).any(axis=1)
        for i in range(0, len(x), BLOCK)
    ]
    return float(np.concatenate(inside).mean())


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.maximum(squares, 0)


def all_measures(real: np.ndarray, synthetic: np.ndarray) -> dict[str, float]:
    """Returns `NAMES` with the measures between float [n, d] and [m, d]."""
    distances = kernel_distance(real, synthetic), frechet_distance(real, synthetic)
    return dict(zip(NAMES, (*distances, *precision_recall(real, synthetic)), strict=True))


def compare(
    real: np.ndarray,
    real_labels: np.ndarray,
    synthetic: np.ndarray,
    synthetic_labels: np.ndarray,
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Computes all measures over all rows and for each class.

    Features are float [n, d] and [m, d], labels int [n] and [m] (-1 unknown).

    Returns rows {"class", "real", "generated" (numbers of rows), `NAMES`, and "real_" + each of
    them between the halves of the real rows}. NaN where there are too few rows.
    """
    # The halves are the same at every call, and do not depend on a meaning of the rows' order.
    order = np.random.default_rng(0).permutation(len(real))
    real, real_labels = real[order], real_labels[order]
    rows = []
    for label, name in [(None, "all"), *enumerate(classes)]:
        a = real if label is None else real[real_labels == label]
        b = synthetic if label is None else synthetic[synthetic_labels == label]
        halves = {f"real_{key}": value for key, value in all_measures(a[::2], a[1::2]).items()}
        counts = {"class": name, "real": len(a), "generated": len(b)}
        rows.append(counts | all_measures(a, b) | halves)
    return rows


def write(path: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Writes measures.json with rows of `compare`; returns them as a table for a terminal."""
    note = "features of this project's Xception, not of Inception: comparable within a run only"
    content = {"note": note, **about, "measures": plain(rows)}
    write_atomically(path, json.dumps(content, indent=2) + "\n")
    lines = [["", "real", "generated", *NAMES, *(f"real halves: {name}" for name in NAMES[:2])]]
    for row in rows:
        figures = [number(row[name]) for name in (*NAMES, "real_kid", "real_frechet")]
        lines.append([row["class"], str(row["real"]), str(row["generated"]), *figures])
    return align(lines)
