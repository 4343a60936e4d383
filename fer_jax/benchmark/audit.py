"""Duplicates among 100,000 pictures: how long the audit's search takes, and what it finds."""

import argparse
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from fer_jax.benchmark.benchmark import Row, cpu_seconds, single
from fer_jax.data.audit import duplicates
from fer_jax.errors import InputError
from fer_jax.media import images

COPIES = 0.01  # of the pictures are saved again, a little brighter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags."""
    parser.add_argument("--pictures", type=int, default=100_000)


def run(options: argparse.Namespace) -> list[Row]:
    """Hashes drawn pictures, searches all pairs, and counts the copies that are found."""
    if options.pictures < 200:
        raise InputError(f"--pictures must be at least 200, not {options.pictures}")
    thumbnails, copies = _pictures(options.pictures)
    is_copy = np.arange(len(thumbnails)) >= len(thumbnails) - len(copies)
    started, used = time.perf_counter(), cpu_seconds()
    duplicates.perceptual_hashes(thumbnails)
    hashing, hashing_cpu = time.perf_counter() - started, cpu_seconds() - used
    started, used = time.perf_counter(), cpu_seconds()
    same = duplicates.same_pictures(thumbnails, lambda i, j, _: is_copy[i] != is_copy[j])
    searching, searching_cpu = time.perf_counter() - started, cpu_seconds() - used
    found = {(i, j) for i, j, _ in same.pairs}
    wanted = {(one, len(thumbnails) - len(copies) + n) for n, one in enumerate(copies.tolist())}
    what = f"of {options.pictures} pictures"
    return [
        single(f"hashes {what}", hashing, "s"),
        single(f"hashes {what}", hashing_cpu, "CPU-seconds"),
        single(f"hashes and all pairs {what}", searching, "s"),
        single(f"hashes and all pairs {what}", searching_cpu, "CPU-seconds"),
        single("candidates that were looked at", same.num_candidates, "pairs"),
        single("copies found", len(found & wanted) / len(wanted), "of all", bar="1"),
        single("other pairs called copies", len(found - wanted), "pairs", bar="0"),
        single("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MB"),
    ]


def _pictures(number: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [number, 48, 48], what the last ones are copies of).

    Like faces these have a common coarse shape and details of their own.
    """
    rng = np.random.default_rng(0)
    size = duplicates.THUMBNAIL_SIZE
    shape = cv2.resize(rng.normal(size=(5, 5)).astype(np.float32), (size, size)) * 40 + 128
    copies = rng.choice(number // 2, max(1, round(number * COPIES)), replace=False)
    own = rng.integers(0, 2**31, number - len(copies))

    def draw(seed: int) -> np.ndarray:
        noise = np.random.default_rng(seed)
        coarse = cv2.resize(noise.normal(size=(8, 8)).astype(np.float32), (size, size)) * 20
        fine = cv2.resize(noise.normal(size=(24, 24)).astype(np.float32), (size, size)) * 15
        return np.clip(shape + coarse + fine, 0, 255).astype(np.uint8)

    def save_again(picture: np.ndarray) -> np.ndarray:
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 70])[1]
        again = images.decode(data.tobytes())
        return cv2.convertScaleAbs(again[..., 0], beta=6)

    with ThreadPoolExecutor() as pool:
        pictures = list(pool.map(draw, own.tolist()))
        pictures += list(pool.map(save_again, [pictures[i] for i in copies]))
    return np.stack(pictures), copies
