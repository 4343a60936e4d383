"""Measures a generator during its training, and writes a grid of the same faces each time.

The real faces are those of the training: nothing is selected by test data.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax import checkpoints
from fer_jax.config import Config
from fer_jax.data import batches
from fer_jax.inference.network import load
from fer_jax.media import images
from fer_jax.models.xception import grey
from fer_jax.schema import TASKS
from fer_jax.sharding import make_mesh
from fer_jax.storage import write_atomically
from fer_jax.synthesis import measures, sheets
from fer_jax.synthesis.generator import Generator, make_renderer

NAMES = (*measures.NAMES, "near_duplicates")
MIN_IMAGES = 100
BATCH_SIZE = 50  # faces generated at once
GRID_COLUMNS = 8
PIXELS = 16  # a side, of the features without a network
# Signs of mode collapse.
MIN_RECALL = 0.05
MAX_DUPLICATES = 0.1

Judge = Callable[[Generator], dict[str, float]]
Features = Callable[[Sequence[np.ndarray]], np.ndarray]


def generate(
    generator: Generator, seeds: Sequence[int], classes: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Generates a face for each seed (with its own noise) and class: uint8 RGB [n, s, s, 3]."""
    renderer = make_renderer(
        generator,
        make_mesh(jax.local_devices()[:1]),
        noise="random",
        classes=range(generator.c_dim) if generator.c_dim else None,
    )
    ws = renderer.map_seeds(seeds, BATCH_SIZE, classes)
    return np.stack(list(renderer.render(ws, seeds, BATCH_SIZE)))


def pixel_features(faces: Sequence[np.ndarray]) -> np.ndarray:
    """Returns uint8 RGB faces as 16 x 16 pixels in [-1, 1], float64 [n, 768]."""
    small = [images.resized(face, PIXELS) for face in faces]
    return np.stack(small).reshape(len(small), -1) / 127.5 - 1.0


def open_judge(config: Config, mixture: batches.Mixture) -> Judge:
    """Returns a function that measures a generator against the same real faces each time.

    It generates as many faces, in the same classes, as there are real ones, and returns {"kid",
    "frechet", "precision", "recall", "near_duplicates"}.
    """
    features: Features = pixel_features
    if config.measure.features != "pixels":
        features = load(Path(config.measure.features)).features
    count = min(config.measure.images, len(mixture))
    numbers = np.sort(np.random.default_rng(0).permutation(len(mixture))[:count])
    classes = mixture.targets[numbers].argmax(axis=1)
    real: list[np.ndarray] = []

    def judge(generator: Generator) -> dict[str, float]:
        if not real:
            faces = mixture.images(numbers, generator.resolution)
            if config.grayscale:
                luma = np.asarray(grey(jnp.asarray(faces, jnp.float32)))
                faces = np.broadcast_to(np.rint(luma).astype(np.uint8), faces.shape)
            real.append(features(list(faces)))
        found = features(list(generate(generator, range(count), classes)))
        near_duplicates = measures.near_duplicates(real[0], found)
        return measures.all_measures(real[0], found) | {"near_duplicates": near_duplicates}

    return judge


def write_grid(workdir: Path, step: int, generator: Generator, task: str) -> np.ndarray:
    """Writes and returns samples/STEP.png, uint8 RGB: the same seeds, a row for each class."""
    titles = TASKS[task] if generator.c_dim else ("",)
    seeds = [seed for _ in titles for seed in range(GRID_COLUMNS)]
    faces = generate(generator, seeds, np.repeat(np.arange(len(titles)), GRID_COLUMNS))
    rows = faces.reshape(len(titles), GRID_COLUMNS, *faces.shape[1:])
    cell = max(64, generator.resolution)
    grid = sheets.draw_sheet([[(face, "") for face in row] for row in rows], titles, cell)
    png = images.encode(grid, ".png")
    write_atomically(workdir / "samples" / f"{step:07}.png", png, durable=False)
    return grid


def line(step: int, history: Sequence[dict[str, float]], metric: str, features: str) -> str:
    """Formats the last measures, with a warning if they look like mode collapse."""
    row = history[-1]
    best = checkpoints.best_step(list(history), metric)
    text = f"measures at step {step} (features: {features}): "
    text += "  ".join(f"{name.replace('_', ' ')} {row[name]:.4g}" for name in NAMES)
    text += "  (best so far)" if best == step else f"  (best at step {best})"
    warning = collapse_warning(row)
    return f"{text}\n  WARNING: {warning}" if warning else text


def collapse_warning(row: dict[str, float]) -> str:
    """Says which measure looks like mode collapse; "" if none does."""
    if row["near_duplicates"] > MAX_DUPLICATES:
        return (
            f"{row['near_duplicates']:.0%} of the faces are near-duplicates of another one "
            f"(mode collapse; the limit is {MAX_DUPLICATES:.0%})"
        )
    if row["recall"] < MIN_RECALL:
        return (
            f"only {row['recall']:.1%} of the real faces have similar synthetic ones (few images "
            f"so far, or mode collapse; the limit is {MIN_RECALL:.0%})"
        )
    return ""
