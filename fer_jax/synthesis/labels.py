"""Labels of synthetic faces: classes' mean w, calibrated teachers, and directions in w.

The label of a face is a class of a conditional network, the prediction of a teacher (a trained
run of this project, calibrated), or a direction in w that raises an emotion. A teacher can also
confirm labels of the first and the last kind.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fer_jax.data import provenance
from fer_jax.data.experiment import as_source, training_data_dir
from fer_jax.data.records import Records, labelled_rows, open_records
from fer_jax.errors import InputError, did_you_mean
from fer_jax.evaluation import calibration, metrics
from fer_jax.inference.network import Network, load
from fer_jax.media import images
from fer_jax.schema import TASKS
from fer_jax.storage import write_atomically
from fer_jax.synthesis.generator import Generator

MEAN_SAMPLES = 4000  # w per class mean
MEAN_BATCH = 500
TEMPERATURES = 0.05, 20.0  # a network that needs a temperature outside is not a good teacher
SMALLEST_PROBABILITY = 1e-38  # what float32 rounded to 0 was below
MIN_FIT_FACES = 100
COLOUR_SAMPLES = 50  # records of each part that are examined for colour
MAX_GREY_RANGE = 12  # levels between the channels that JPEG may leave in a grey image
MAX_FILE_BYTES = 256 * 2**20
# Of the distance between two faces in w; a larger edit changes the person.
MAX_EDIT = 0.5


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A run that labels faces."""

    model: Network
    temperature: float  # its logits are divided by it
    grey: bool  # whether it was trained on grey images only; then it is given grey images only
    # What is recorded: where it came from, what it saw, how well it is calibrated.
    about: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Identifies the network and its temperature."""
        return f"{self.about['fingerprint'][:32]}/{self.temperature:.4g}"

    def probabilities(self, faces: Sequence[np.ndarray]) -> np.ndarray:
        """Returns calibrated probabilities, float64 [n, classes], of aligned crops."""
        inputs = map(to_grey, faces) if self.grey else faces
        return with_temperature(self.model.probabilities(inputs), self.temperature)


def load_teacher(
    workdir: Path, task: str, data_dir: Path | None, test_sets: Sequence[tuple[str, str]]
) -> Teacher:
    """Loads a run as a teacher, calibrates it on its validation parts, and checks what it saw.

    Its datasets are built in `data_dir`; None: where it was trained from. `test_sets` are (dataset,
    split) to test on, besides the run's own. Raises InputError if it is not a run of this task, its
    datasets are missing, or it saw people of a test set in training or validation.
    """
    model = load(workdir)
    if model.config.task != task:
        raise InputError(
            f"the teacher '{workdir}' predicts {model.config.task}, not {task}; name a run that "
            f"was trained with --config.task={task}"
        )
    data_dir = data_dir or training_data_dir(workdir)
    sources = [as_source(entry) for entry in model.config.sources]
    validation = [open_records(source.name, source.validation, data_dir) for source in sources]
    saw = [open_records(source.name, source.train, data_dir) for source in sources] + validation
    own = [as_source(entry) for entry in model.config.test_sets]
    tested = list(dict.fromkeys([*((source.name, source.test) for source in own), *test_sets]))
    known, opened = provenance.of_training(saw, data_dir), provenance.opener(data_dir)
    for name, split in tested:
        if what := provenance.shared(known, open_records(name, split, data_dir), opened):
            raise InputError(f"the teacher '{workdir}' saw {what}; train a teacher without them")
    # A network that was trained on grey images takes colour for an expression: of the portraits of
    # synth_sd such a teacher predicted happiness for 54 % in colour and 34 % in grey (27 % are).
    grey = is_grey(saw)
    labels, probabilities = _validation_predictions(model, validation)
    temperature = fit_temperature(labels, probabilities)
    before = metrics.score(labels, probabilities)
    after = metrics.score(labels, with_temperature(probabilities, temperature))
    about = {
        "run": workdir.resolve().name,
        "step": model.step,
        "fingerprint": model.fingerprint(),
        "task": task,
        "temperature": temperature,
        "grey": grey,
        "validation": {
            "images": len(labels),
            "accuracy": after["accuracy"],
            "ece": {"before": before["ece"], "after": after["ece"]},
            "loss": {"before": before["loss"], "after": after["loss"]},
        },
        **known,
        "test_sets": [f"{name}:{split}" for name, split in tested],
    }
    return Teacher(model, temperature, grey, about)


def to_grey(face: np.ndarray) -> np.ndarray:
    """Removes the colour of a face, uint8 [s, s, 3]."""
    return cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def is_grey(parts: Sequence[Records]) -> bool:
    """Whether the first records of every part are grey."""
    for records in parts:
        for row in range(min(len(records), COLOUR_SAMPLES)):
            if not images.is_grey(records.image(row), MAX_GREY_RANGE):
                return False
    return True


def _validation_predictions(
    model: Network, parts: Sequence[Records]
) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = [], []
    for records in parts:
        rows = labelled_rows(records, model.config.task)
        labels.append(records.labels(model.config.task)[rows])
        images = (records.images([row], model.image_size)[0] for row in rows)
        probabilities.append(model.probabilities(images))
    return np.concatenate(labels), np.concatenate(probabilities)


# As in `calibration`, for a teacher's float64 [n, k] probabilities.
fit_temperature = functools.partial(
    calibration.fit_temperature, bounds=TEMPERATURES, smallest=SMALLEST_PROBABILITY
)
with_temperature = functools.partial(calibration.with_temperature, smallest=SMALLEST_PROBABILITY)


def class_means(generator: Generator) -> np.ndarray:
    """Returns the mean w of each class, float32 [classes, w_dim], for truncation.

    Truncated towards the mean of all classes, every face nears the average expression. The same
    `MEAN_SAMPLES` latents (numpy.random.RandomState(0)) are used for each class.
    """
    rng = np.random.RandomState(0)
    totals = np.zeros((generator.c_dim, generator.w_dim))
    for _ in range(0, MEAN_SAMPLES, MEAN_BATCH):
        z = rng.randn(MEAN_BATCH, generator.z_dim)
        for number in range(generator.c_dim):
            totals[number] += np.asarray(generator.map(z, number)[:, 0], np.float64).sum(axis=0)
    return (totals / MEAN_SAMPLES).astype(np.float32)


def write_class_means(path: Path, means: np.ndarray, network: str) -> None:
    """Writes the means of all classes, float32 [classes, w_dim]."""
    data = save({"means": np.ascontiguousarray(means)}, metadata={"network": network})
    write_atomically(path, data)


def read_class_means(path: Path, generator: Generator, network: str) -> np.ndarray | None:
    """Reads what `write_class_means` wrote; None if it is damaged or of another network."""
    try:
        with safe_open(path, framework="numpy") as file:
            means = np.asarray(file.get_tensor("means"), np.float32)
            same = (file.metadata() or {}).get("network") == network
    except SafetensorError:
        return None
    return means if same and means.shape == (generator.c_dim, generator.w_dim) else None


class Directions(NamedTuple):
    """One direction in w for each class."""

    classes: tuple[str, ...]  # their names
    vectors: np.ndarray  # float32 [classes, w_dim], of length 1
    # float32 [classes], the standard deviation of w along them: the unit of a strength.
    scales: np.ndarray
    # float32 [classes], correlation of the fit with the teacher's log-odds on faces that were not
    # fitted to.
    fits: np.ndarray
    apart: float  # the distance between two faces in w (root mean square)
    network: str  # fingerprint of the generator

    def edit(self, index: int, strength: float) -> np.ndarray:
        """Returns what to add to w: float32 [w_dim]."""
        return self.vectors[index] * (self.scales[index] * strength)

    def moved(self, index: int, strength: float) -> float:
        """Returns the length of an edit as a share of the distance between two faces."""
        return float(abs(strength) * self.scales[index] / self.apart)


def fit_directions(
    w: np.ndarray, log_probabilities: np.ndarray, classes: Sequence[str], network: str
) -> Directions:
    """Fits linear directions in w that raise each class's log-odds by a teacher.

    Ridge regression of the centred log-probabilities [n, classes] on w [n, w_dim]; the penalty has
    the least generalized cross-validation error (Golub, Heath and Wahba 1979). Rows that are not
    finite (no face found) are left out. `network` is the generator's fingerprint. InputError if
    there are too few faces.
    """
    usable = np.isfinite(log_probabilities).all(axis=1)
    if usable.sum() < MIN_FIT_FACES:
        raise InputError(
            f"only {usable.sum()} of {len(w)} sampled images show a face that passes the gates; "
            f"{MIN_FIT_FACES} are needed to fit directions: raise --fit_samples"
        )
    w = np.asarray(w, np.float64)[usable]
    odds = log_probabilities[usable] - log_probabilities[usable].mean(axis=1, keepdims=True)
    num_fitted = len(w) * 4 // 5
    part = _ridge(w[:num_fitted], odds[:num_fitted])
    fits = [
        _correlation((w[num_fitted:] - w.mean(axis=0)) @ part[:, index], odds[num_fitted:, index])
        for index in range(len(classes))
    ]
    slopes = _ridge(w, odds).T
    vectors = slopes / np.maximum(np.linalg.norm(slopes, axis=1, keepdims=True), 1e-30)
    return Directions(
        tuple(classes),
        vectors.astype(np.float32),
        (w @ vectors.T).std(axis=0).astype(np.float32),
        np.asarray(fits, np.float32),
        float(np.sqrt(2 * w.var(axis=0).sum())),
        network,
    )


def _ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns coefficients [d, k] of y [n, k] on x [n, d], with one penalty for all columns."""
    centred, targets = x - x.mean(axis=0), y - y.mean(axis=0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    rotated = left.T @ targets
    outside = np.square(targets).sum() - np.square(rotated).sum()
    best, chosen = np.inf, None
    for penalty in sizes[0] ** 2 * np.logspace(-8, 2, 41):
        shrinkage = sizes**2 / (sizes**2 + penalty)
        residual = outside + np.square((1 - shrinkage)[:, None] * rotated).sum()
        freedom = shrinkage.sum() + 1  # one degree for the mean
        error = residual / (1 - freedom / len(x)) ** 2 if freedom < len(x) else np.inf
        if error < best:
            best, chosen = error, shrinkage / np.maximum(sizes, 1e-30)
    assert chosen is not None  # the largest penalty always leaves degrees of freedom
    return right.T @ (chosen[:, None] * rotated)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float((a * b).sum() / norm) if norm > 0 else float("nan")


def check_strength(directions: Directions, indices: Sequence[int], strength: float) -> None:
    """Refuses edits that would change the person."""
    for index in indices:
        moved = directions.moved(index, strength)
        if moved > MAX_EDIT:
            largest = abs(strength) * MAX_EDIT / moved
            raise InputError(
                f"--strength={strength:g} moves a face towards {directions.classes[index]} by "
                f"{moved:.2f} of the distance between two people; at most {largest:.3g} keeps "
                "the person"
            )


def write_directions(path: Path, directions: Directions) -> None:
    """Writes directions as safetensors, with the network that they are for."""
    arrays = {name: getattr(directions, name) for name in ("vectors", "scales", "fits")}
    # safetensors writes an array's memory, whatever its strides are.
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    about = {
        "network": directions.network,
        "classes": json.dumps(directions.classes),
        "apart": repr(directions.apart),
    }
    write_atomically(path, save(tensors, metadata=about))


def read_directions(path: Path, generator: Generator, network: str, task: str) -> Directions:
    """Reads what `write_directions` wrote for a network and a task, or raises InputError."""
    if not path.is_file():
        raise InputError(f"--directions '{path}' does not exist; --directions=fit fits them")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"--directions '{path}' is over {MAX_FILE_BYTES // 2**20} MiB")
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            vectors, scales, fits = (
                np.asarray(file.get_tensor(name), np.float32)
                for name in ("vectors", "scales", "fits")
            )
        classes = tuple(map(str, json.loads(about["classes"])))
        found = Directions(classes, vectors, scales, fits, float(about["apart"]), about["network"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"--directions '{path}' is not a file of directions") from error
    if found.network != network:
        raise InputError(
            f"--directions '{path}' is for another network ({found.network[:12]}, not "
            f"{network[:12]}); fit them anew with --directions=fit"
        )
    count = len(found.classes)
    shapes = vectors.shape, scales.shape, fits.shape
    if (
        not count
        or shapes != ((count, generator.w_dim), (count,), (count,))
        or not (np.isfinite(vectors).all() and np.isfinite(scales).all() and found.apart > 0)
    ):
        raise InputError(f"--directions '{path}' does not have a direction in w for each class")
    for name in found.classes:
        if name not in TASKS[task]:
            raise InputError(
                f"--directions '{path}' names an unknown {task} '{name}'"
                f"{did_you_mean(name, TASKS[task])}"
            )
    return found
