"""What a generator is worth while it is trained: a grid of the same faces, and measures.

Nothing here chooses by test data: the real faces are those that are trained on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from fer_jax import checkpoints
from fer_jax.config import Config
from fer_jax.data import batches
from fer_jax.data.synthetic import write_whole
from fer_jax.inference.load import load
from fer_jax.media import images
from fer_jax.models.xception import grey
from fer_jax.schema import TASKS
from fer_jax.synthesis import measures, sheets
from fer_jax.synthesis.generator import Generator, latents
from fer_jax.synthesis.render import to_uint8

NAMES = (*measures.NAMES, "near_duplicates")
MIN_IMAGES = 100
BATCH_SIZE = 50  # faces made at once
GRID_COLUMNS = 8
PIXELS = 16  # a side, of the features of which no network is asked
# What looks like collapse: most real faces have nothing like them, or many made ones are the same.
LEAST_RECALL = 0.05
MOST_DUPLICATES = 0.1

Judge = Callable[[Generator], dict[str, float]]
Features = Callable[[Sequence[np.ndarray]], np.ndarray]


def made(
    generator: Generator, seeds: Sequence[int], classes: Sequence[int] | np.ndarray
) -> np.ndarray:
    """The faces of seeds, each with its own noise.

    Args:
      generator: from `load_generator`.
      seeds: [n].
      classes: [n], of a conditional generator.

    Returns:
      uint8 RGB [n, resolution, resolution, 3].
    """
    found = []
    for first in range(0, len(seeds), BATCH_SIZE):
        # The last batch is filled up: another size would be another program.
        last = min(first + BATCH_SIZE, len(seeds))
        chosen = np.resize(np.arange(first, last), BATCH_SIZE).tolist()
        z = latents([seeds[i] for i in chosen], generator.z_dim)
        ws = generator.map(z, np.asarray(classes)[chosen] if generator.c_dim else None)
        numbers = np.asarray([seeds[i] for i in chosen], np.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), numbers)
        found.append(np.asarray(to_uint8(generator.synthesize(ws, "random", keys))))
    return np.concatenate(found)[: len(seeds)]


def pixel_features(faces: Sequence[np.ndarray]) -> np.ndarray:
    """Faces as 16 x 16 pixels in [-1, 1]: features that need no network.

    Args:
      faces: uint8 RGB [s, s, 3] each.

    Returns:
      float64 [n, 768].
    """
    small = [images.resized(face, PIXELS) for face in faces]
    return np.stack(small).reshape(len(small), -1) / 127.5 - 1.0


def features_of(name: str) -> Features:
    """What config.measure.features names.

    Args:
      name: "pixels", or the workdir of a run of the classifier.

    Raises:
      InputError: no such run.
    """
    if name == "pixels":
        return pixel_features
    model = load(Path(name))
    return lambda faces: model.features(images.resized(face, model.image_size) for face in faces)


def open_judge(config: Config, mixture: batches.Mixture) -> Judge:
    """What measures a generator against real faces, the same ones each time.

    Args:
      config: of the training.
      mixture: what is trained on.

    Returns:
      A generator to {"kid", "frechet", "precision", "recall", "near_duplicates"}; of as many
      made faces, in the same classes, as there are real ones.

    Raises:
      InputError: config.measure.features is no run.
    """
    features = features_of(config.measure.features)
    count = min(config.measure.images, len(mixture))
    numbers = np.sort(np.random.default_rng(0).permutation(len(mixture))[:count])
    classes = mixture.targets[numbers].argmax(axis=1)
    real: list[np.ndarray] = []

    def judge(generator: Generator) -> dict[str, float]:
        if not real:
            faces = batches.decode(mixture, numbers, generator.resolution)
            if config.grayscale:
                luma = np.asarray(grey(jnp.asarray(faces, jnp.float32)))
                faces = np.broadcast_to(np.rint(luma).astype(np.uint8), faces.shape)
            real.append(features(list(faces)))
        faces = made(generator, range(count), classes)
        found = features(list(faces))
        precision, recall = measures.precision_recall(real[0], found)
        return {
            "kid": measures.kernel_distance(real[0], found),
            "frechet": measures.frechet_distance(real[0], found),
            "precision": precision,
            "recall": recall,
            "near_duplicates": measures.near_duplicates(real[0], found),
        }

    return judge


def write_grid(workdir: Path, step: int, generator: Generator, task: str) -> np.ndarray:
    """Writes workdir/samples/STEP.png: the same seeds at every step, a row for each class.

    Returns:
      uint8 RGB [height, width, 3], the same.
    """
    titles = TASKS[task] if generator.c_dim else ("",)
    seeds = [seed for _ in titles for seed in range(GRID_COLUMNS)]
    classes = np.repeat(np.arange(len(titles)), GRID_COLUMNS)
    faces = made(generator, seeds, classes)
    rows = faces.reshape(len(titles), GRID_COLUMNS, *faces.shape[1:])
    cell = max(64, generator.resolution)
    grid = sheets.sheet([[(face, "") for face in row] for row in rows], titles, cell)
    _, png = cv2.imencode(".png", cv2.cvtColor(grid, cv2.COLOR_RGB2BGR))
    write_whole(workdir / "samples" / f"{step:07}.png", png.tobytes())
    return grid


def line(step: int, history: Sequence[dict[str, float]], metric: str, features: str) -> str:
    """The last measures for the person watching, and whether they look like collapse."""
    row = history[-1]
    best = checkpoints.best_step(list(history), metric)
    text = f"measures at step {step} (features: {features}): "
    text += "  ".join(f"{name.replace('_', ' ')} {row[name]:.4g}" for name in NAMES)
    text += "  (best so far)" if best == step else f"  (best at step {best})"
    warning = collapse(row)
    return f"{text}\n  WARNING: {warning}" if warning else text


def collapse(row: dict[str, float]) -> str:
    """What in the measures looks like collapse; "" where nothing does."""
    if row["near_duplicates"] > MOST_DUPLICATES:
        return (
            f"{row['near_duplicates']:.0%} of the faces are nearly the same as another one "
            f"(collapse; from {MOST_DUPLICATES:.0%} on this is said)"
        )
    if row["recall"] < LEAST_RECALL:
        return (
            f"only {row['recall']:.1%} of the real faces have made ones about them (few images so "
            f"far, or collapse; below {LEAST_RECALL:.0%} this is said)"
        )
    return ""
