"""The audit's search for near-duplicates, and the bootstrap, beside scikit-learn."""

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

import cv2
import numpy as np

from fer_jax.benchmark.benchmark import Row, compare, cpu_seconds, peak_memory, single, skipped
from fer_jax.data.audit import duplicates
from fer_jax.errors import InputError
from fer_jax.evaluation import bootstrap
from fer_jax.media import images

COPIES = 0.01  # share of the pictures that are encoded again, a little brighter
NUM_CLASSES = 7
CLUSTERS = 500  # of the table that is timed
PEER_IMAGES, PEER_DRAWS = 10_000, 10


def _timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    started, used = time.perf_counter(), cpu_seconds()
    result = work()
    return result, time.perf_counter() - started, cpu_seconds() - used


def measure_audit(options: argparse.Namespace) -> Iterator[Row]:
    """Hashes rendered pictures, searches all pairs, and counts the copies that are found."""
    thumbnails, copies = _thumbnails(options.pictures)
    num_originals = len(thumbnails) - len(copies)

    def is_candidate(i: np.ndarray, j: np.ndarray, _: np.ndarray) -> np.ndarray:
        return (i < num_originals) != (j < num_originals)

    _, hashing, hashing_cpu = _timed(lambda: duplicates.perceptual_hashes(thumbnails))
    same, searching, searching_cpu = _timed(
        lambda: duplicates.find_near_duplicates(thumbnails, is_candidate)
    )
    found = {(i, j) for i, j, _ in same.pairs()}
    planted = {(original, num_originals + n) for n, original in enumerate(copies.tolist())}
    what = f"of {options.pictures} pictures"
    yield single(f"hashes {what}", hashing, "s")
    yield single(f"hashes {what}", hashing_cpu, "CPU-seconds")
    yield single(f"hashes and all pairs {what}", searching, "s")
    yield single(f"hashes and all pairs {what}", searching_cpu, "CPU-seconds")
    yield single("candidates compared in full", len(same.i), "pairs")
    yield single("copies found", len(found & planted) / len(planted), "of all")
    yield single("other pairs called copies", len(found - planted), "pairs")
    yield single("peak memory", peak_memory(), "MB")


def _thumbnails(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns pictures, uint8 [number, 48, 48], and the indices of which the last are copies."""
    rng = np.random.default_rng(0)
    size = duplicates.THUMBNAIL_SIZE
    shape = cv2.resize(rng.normal(size=(5, 5)).astype(np.float32), (size, size)) * 40 + 128
    copies = rng.choice(number // 2, max(1, round(number * COPIES)), replace=False)
    seeds = rng.integers(0, 2**31, number - len(copies))

    def render(seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed)
        coarse = cv2.resize(noise.normal(size=(8, 8)).astype(np.float32), (size, size)) * 20
        fine = cv2.resize(noise.normal(size=(24, 24)).astype(np.float32), (size, size)) * 15
        return np.clip(shape + coarse + fine, 0, 255).astype(np.uint8)

    def copy(picture: np.ndarray) -> np.ndarray:
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 70])[1]
        return cv2.convertScaleAbs(images.decode(data.tobytes())[..., 0], beta=6)

    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(render, seeds.tolist()))
        pictures += list(pool.map(copy, [pictures[i] for i in copies]))
    return np.stack(pictures), copies


def measure_statistics(options: argparse.Namespace) -> Iterator[Row]:
    """Measures the bootstrap's time and memory."""
    if options.images < 1000:
        raise InputError(f"--images must be at least 1000, got {options.images}")
    for clusters in (CLUSTERS, options.images):
        # In a process of its own, whose peak memory is the bootstrap's.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            measured = pool.submit(_bootstrap_costs, options.images, clusters).result()
        what = f"{options.images} images, {clusters} clusters, {bootstrap.DRAWS} draws"
        for value, unit in zip(measured, ("s", "CPU-seconds", "MB"), strict=True):
            yield single(what, value, unit)
    yield _compare_scikit_learn(options.repeats)


def _table(images: int, clusters: int) -> tuple[np.ndarray, np.ndarray, bootstrap.Sample]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NUM_CLASSES, images)
    cluster = np.arange(images) if clusters == images else rng.integers(0, clusters, images)
    probabilities = rng.dirichlet(np.ones(NUM_CLASSES), images)
    return labels, probabilities, bootstrap.sample(labels, cluster, NUM_CLASSES)


def _bootstrap_costs(images: int, clusters: int) -> tuple[float, float, float]:
    _, probabilities, of = _table(images, clusters)
    _, seconds, used = _timed(lambda: bootstrap.score(bootstrap.resample(of, [probabilities])))
    return seconds, used, peak_memory()


def _compare_scikit_learn(repeats: int) -> Row:
    what = f"PR-AUC and ROC-AUC by class, {PEER_IMAGES} images"
    if find_spec("sklearn") is None:
        return skipped(what, "scikit-learn is not installed")
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, probabilities, of = _table(PEER_IMAGES, CLUSTERS)
    weights = bootstrap.draw(of.keys, 0, PEER_DRAWS)

    def ours() -> None:
        prepared = bootstrap.prepare(of, probabilities)
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
