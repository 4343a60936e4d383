"""How close generated faces come to real ones, on features of this project's own Xception.

These are distances of distributions of features. The features are not Inception's, and they
change with the run that is used: no number here can be compared with a published FID or KID,
only with another one of the same run. How far the halves of the real set are from each other
is reported beside each of them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.data.records import Records, labelled_rows
from fer_jax.data.synthetic import write_whole
from fer_jax.evaluation.results import number, plain
from fer_jax.inference.load import Network
from fer_jax.synthesis.quality import aligned

NEIGHBOURS = 3  # of Kynkaanniemi et al.
SAME = 0.25  # of the usual distance to the nearest neighbour
BLOCK = 1024  # rows of a distance matrix in memory at once
NAMES = ("kid", "frechet", "precision", "recall")


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The kernel distance KID (Binkowski et al. 2018).

    The unbiased estimate of the squared maximum mean discrepancy under (x.y / d + 1)^3, over
    all pairs; it can be below 0.

    Args:
      a: float [n, d].
      b: float [m, d].

    Returns:
      The distance; NaN with fewer than two of either.
    """
    if min(len(a), len(b)) < 2:
        return float("nan")
    return _mean_kernel(a, a) + _mean_kernel(b, b) - 2 * _mean_kernel(a, b)


def _mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
    """Mean kernel over pairs; over pairs of different rows if both are the same array."""
    total = 0.0
    for first in range(0, len(a), BLOCK):
        kernel = (a[first : first + BLOCK] @ b.T / a.shape[1] + 1) ** 3
        total += kernel.sum()
    if a is not b:
        return float(total / (len(a) * len(b)))
    own = ((np.square(a).sum(axis=1) / a.shape[1] + 1) ** 3).sum()
    return float((total - own) / (len(a) * (len(a) - 1)))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance of two normal distributions fitted to the features.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Dowson and Landau 1982; Heusel et al. 2017).
    It is biased upwards, the more the fewer rows there are.

    Args:
      a: float [n, d].
      b: float [m, d].

    Returns:
      The distance; NaN with fewer than two of either.
    """
    if min(len(a), len(b)) < 2:
        return float("nan")
    # (A B)^(1/2) has the trace of the symmetric (A^(1/2) B A^(1/2))^(1/2), and that is the sum
    # of the singular values of the product of two square roots.
    roots = [_centred(a), _centred(b)]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(np.square(root).sum() for root in roots)
    means = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(means + spread - 2 * shared)


def _centred(x: np.ndarray) -> np.ndarray:
    """A matrix R of at most d rows whose R.T @ R is the covariance."""
    centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r")) if len(x) > x.shape[1] else centred


def precision_recall(
    real: np.ndarray, generated: np.ndarray, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Precision and recall of manifolds (Kynkaanniemi et al. 2019).

    A set's manifold is the union of balls about its rows that reach to the k-th nearest other
    one. Precision is the share of the generated in the real manifold, recall that of the real
    in the generated one.

    Args:
      real: float [n, d].
      generated: float [m, d].
      neighbours: k.

    Returns:
      (precision, recall); NaN where a set has no more than k rows.
    """
    if min(len(real), len(generated)) <= neighbours:
        return float("nan"), float("nan")
    return (
        _share_inside(generated, real, neighbours),
        _share_inside(real, generated, neighbours),
    )


def near_duplicates(real: np.ndarray, generated: np.ndarray) -> float:
    """The share of generated rows that another one is nearly the same as.

    Nearly the same: nearer than `SAME` of the median distance between a real row and the real one
    nearest to it.

    Args:
      real: float [n, d].
      generated: float [m, d].

    Returns:
      The share; NaN with fewer than two of either.
    """
    if min(len(real), len(generated)) < 2:
        return float("nan")
    usual = np.median(_reach(real, 1))
    return float(np.mean(_reach(generated, 1) < SAME**2 * usual))


def _reach(x: np.ndarray, neighbours: int) -> np.ndarray:
    """The squared distance of each row to the k-th nearest other one, float [n]."""
    # The nearest of a row is itself.
    blocks = (_squared_distances(x[i : i + BLOCK], x) for i in range(0, len(x), BLOCK))
    return np.concatenate([np.partition(b, neighbours)[:, neighbours] for b in blocks])


def _share_inside(x: np.ndarray, manifold: np.ndarray, neighbours: int) -> float:
    reach = _reach(manifold, neighbours)
    inside = [
        (_squared_distances(x[i : i + BLOCK], manifold) <= reach).any(axis=1)
        for i in range(0, len(x), BLOCK)
    ]
    return float(np.concatenate(inside).mean())


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    return np.maximum(squares, 0)


def compare(
    real: np.ndarray,
    real_labels: np.ndarray,
    generated: np.ndarray,
    generated_labels: np.ndarray,
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """All measures, over everything and for each class.

    Args:
      real: float [n, d], features.
      real_labels: int [n], -1 unknown.
      generated: float [m, d].
      generated_labels: int [m], -1 unknown.
      classes: names of the labels.

    Returns:
      Rows {"class", "real", "generated" (numbers of rows), `NAMES`, and "real_" + each of them:
      the same between the halves of the real rows}. NaN where there are too few.
    """
    # The halves are the same at every call, whatever the order of the rows means.
    order = np.random.default_rng(0).permutation(len(real))
    real, real_labels = real[order], real_labels[order]
    rows = []
    for label, name in [(None, "all"), *enumerate(classes)]:
        a = real if label is None else real[real_labels == label]
        b = generated if label is None else generated[generated_labels == label]
        own = {f"real_{key}": value for key, value in _measured(a[::2], a[1::2]).items()}
        counts = {"class": name, "real": len(a), "generated": len(b)}
        rows.append(counts | _measured(a, b) | own)
    return rows


def _measured(real: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    precision, recall = precision_recall(real, generated)
    return {
        "kid": kernel_distance(real, generated),
        "frechet": frechet_distance(real, generated),
        "precision": precision,
        "recall": recall,
    }


def record_features(model: Network, records: Records, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of a split's labelled faces.

    Returns:
      (float64 [n, d], int64 [n]).

    Raises:
      InputError: no face has a label, or one cannot be read.
    """
    rows = labelled_rows(records, task)
    # One at a time: `features` makes the batches, and never holds more than a few of them.
    faces = (records.images([row], model.image_size)[0] for row in rows)
    return model.features(faces), records.labels(task)[rows]


def write(path: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Writes measures.json and returns the measures as a table for a terminal.

    Args:
      path: of the file.
      rows: from `compare`.
      about: what was compared, with which features.

    Raises:
      InputError: it could not be written.
    """
    note = "features of this project's Xception, not of Inception: comparable within a run only"
    content = {"note": note, **about, "measures": plain(rows)}
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
    header = ["", "real", "generated", *NAMES, *(f"real halves: {name}" for name in NAMES[:2])]
    lines = [header]
    for row in rows:
        figures = [number(row[name]) for name in (*NAMES, "real_kid", "real_frechet")]
        lines.append([row["class"], str(row["real"]), str(row["generated"]), *figures])
    return aligned(lines)
