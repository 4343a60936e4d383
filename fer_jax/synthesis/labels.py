"""Where the label of a generated face comes from, so that it can be told afterwards.

Three ways: the class of a conditional network, a teacher (a trained run of this project whose
confidence is calibrated), or a direction in w along which a face takes on an emotion. A label
of the first or the last kind can be put before a teacher, too.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fer_jax.data.experiment import as_source, training_data_dir
from fer_jax.data.records import Records, labelled_rows, open_records
from fer_jax.data.synthetic import identities, write_whole
from fer_jax.errors import InputError, did_you_mean
from fer_jax.evaluation import metrics
from fer_jax.inference.load import Network, load
from fer_jax.schema import TASKS
from fer_jax.synthesis.generator import Generator

MEAN_SAMPLES = 4000  # w that a class's mean is taken over
MEAN_BATCH = 500
# Of the temperature; a network that needs more is not one to learn from.
SHARPEST, FLATTEST = 0.05, 20.0
MIN_FIT_FACES = 100
COLOUR_SAMPLES = 50  # records of each part that are looked at for colour
COLOURLESS = 12  # levels between the channels that JPEG may leave in a grey picture
MAX_FILE_BYTES = 256 * 2**20
# An edit that goes this far of the way from one face to another makes another person of it.
MAX_MOVED = 0.5


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A run that labels faces.

    Attributes:
      model: the run.
      temperature: its logits are divided by it.
      grey: whether it has only ever seen grey pictures, and is shown nothing else.
      about: what is recorded of it: where it came from, what it saw, how well it is calibrated.
    """

    model: Network
    temperature: float
    grey: bool
    about: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Which network with which temperature this is."""
        return f"{self.about['fingerprint'][:32]}/{self.temperature:.4g}"

    def probabilities(self, faces: Sequence[np.ndarray]) -> np.ndarray:
        """Calibrated class probabilities, float64 [n, classes], of aligned crops."""
        shown = map(greyed, faces) if self.grey else faces
        return tempered(self.model.probabilities(shown), self.temperature)


def load_teacher(
    workdir: Path, task: str, data_dir: Path | None, test_sets: Sequence[tuple[str, str]]
) -> Teacher:
    """Loads a teacher, calibrates it on its validation parts, and checks what it saw.

    Args:
      workdir: of the run.
      task: whose labels are wanted.
      data_dir: where the run's datasets are built; None: where it was trained from.
      test_sets: (dataset, split) that a network trained on the labels will be tested on, beside
        the run's own test sets.

    Raises:
      InputError: not a run of this task, its datasets are not there, or it saw somebody of a
        test set in training or validation.
    """
    model = load(workdir)
    if model.config.task != task:
        raise InputError(
            f"the teacher '{workdir}' tells {model.config.task}, not {task}; name a run that was "
            f"trained with --config.task={task}"
        )
    data_dir = data_dir or training_data_dir(workdir)
    sources = [as_source(entry) for entry in model.config.sources]
    validation = [open_records(source.name, source.validation, data_dir) for source in sources]
    seen = [open_records(source.name, source.train, data_dir) for source in sources] + validation
    own = [as_source(entry) for entry in model.config.test_sets]
    tested = [*((source.name, source.test) for source in own), *test_sets]
    for name, split in dict.fromkeys(tested):
        check_unseen(workdir, seen, open_records(name, split, data_dir))
    # Colour, where there never was any, is taken for an expression: of the portraits of synth_sd
    # a teacher of grey collections called 54 % happy, and 34 % once they were grey (27 % are
    # meant to be).
    grey = is_grey(seen)
    labels, probabilities = _scored(model, validation)
    temperature = fit_temperature(labels, probabilities)
    before = metrics.score(labels, probabilities)
    after = metrics.score(labels, tempered(probabilities, temperature))
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
        "saw": [{"dataset": part.name, "split": part.split, "images": len(part)} for part in seen],
        "subjects": sorted(
            {str(who) for part in seen for who in part.columns["subject_id"] if who}
        ),
        "test_sets": [f"{name}:{split}" for name, split in dict.fromkeys(tested)],
    }
    return Teacher(model, temperature, grey, about)


def greyed(face: np.ndarray) -> np.ndarray:
    """A face without its colour, uint8 [s, s, 3] to the same."""
    return cv2.cvtColor(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def is_grey(parts: Sequence[Records]) -> bool:
    """Whether there is no colour in the first records of any part."""
    for records in parts:
        for row in range(min(len(records), COLOUR_SAMPLES)):
            face = records.image(row).astype(np.int16)
            if np.ptp(face, axis=2).max() > COLOURLESS:
                return False
    return True


def _scored(model: Network, parts: Sequence[Records]) -> tuple[np.ndarray, np.ndarray]:
    """Labels int64 [n] and probabilities [n, k] of all labelled records of the parts."""
    labels, probabilities = [], []
    for records in parts:
        rows = labelled_rows(records, model.config.task)
        labels.append(records.labels(model.config.task)[rows])
        images = (records.images([row], model.image_size)[0] for row in rows)
        probabilities.append(model.probabilities(images))
    return np.concatenate(labels), np.concatenate(probabilities)


def check_unseen(teacher: Path, seen: Sequence[Records], test: Records) -> None:
    """Refuses a teacher that saw somebody of a test set: its labels would carry them over.

    Args:
      teacher: the run, for the message.
      seen: what it was trained on and validated with.
      test: the test set.

    Raises:
      InputError: says how many, and names one.
    """
    tested = identities(test)
    for part in seen:
        shared = sorted(identities(part) & tested)
        if shared:
            kind, _, name = shared[0].removeprefix("/").partition("/")
            raise InputError(
                f"the teacher '{teacher}' saw {len(shared)} of the {kind}s of the test set "
                f"{test.name} {test.split} (such as '{name}', in {part.name} {part.split}); train "
                "a teacher without them"
            )


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The softmax of the logits divided by a temperature, from the softmax of the logits.

    Args:
      probabilities: float [n, k], rows sum to 1.
      temperature: above 1 flattens.

    Returns:
      float64 [n, k].
    """
    logits = _logits(probabilities) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _logits(probabilities: np.ndarray) -> np.ndarray:
    # Up to a constant per row. What float32 rounded to 0 was below 1e-38.
    return np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-38))


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The temperature with the least loss (Guo et al. 2017).

    The loss is convex in 1 / temperature, so its slope is followed to 0 by halving.

    Args:
      labels: int [n].
      probabilities: float [n, k], uncalibrated.

    Returns:
      The temperature, within `SHARPEST` and `FLATTEST`.
    """
    logits = _logits(probabilities)
    given = logits[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        expected = (tempered(probabilities, 1 / inverse) * logits).sum(axis=1)
        return float((expected - given).mean())

    low, high = 1 / FLATTEST, 1 / SHARPEST
    if slope(low) >= 0:
        return FLATTEST
    if slope(high) <= 0:
        return SHARPEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 2 / (low + high)


def class_means(generator: Generator) -> np.ndarray:
    """The mean w of each class of a conditional network, which truncation goes towards.

    Truncated towards the mean of all classes, every face nears the average expression.

    Returns:
      float32 [classes, w_dim], over the same `MEAN_SAMPLES` latents for each class
      (numpy.random.RandomState(0)).
    """
    rng = np.random.RandomState(0)
    totals = np.zeros((generator.c_dim, generator.w_dim))
    for _ in range(0, MEAN_SAMPLES, MEAN_BATCH):
        z = rng.randn(MEAN_BATCH, generator.z_dim)
        for number in range(generator.c_dim):
            totals[number] += np.asarray(generator.map(z, number)[:, 0], np.float64).sum(axis=0)
    return (totals / MEAN_SAMPLES).astype(np.float32)


def write_class_means(path: Path, means: np.ndarray, network: str) -> None:
    """Keeps the means of all classes, float32 [classes, w_dim], for the next run."""
    write_whole(path, save({"means": np.ascontiguousarray(means)}, metadata={"network": network}))


def read_class_means(path: Path, generator: Generator, network: str) -> np.ndarray | None:
    """What `write_class_means` kept; None if it is damaged or of another network."""
    try:
        with safe_open(path, framework="numpy") as file:
            means = np.asarray(file.get_tensor("means"), np.float32)
            same = (file.metadata() or {}).get("network") == network
    except SafetensorError:
        return None
    return means if same and means.shape == (generator.c_dim, generator.w_dim) else None


class Directions(NamedTuple):
    """One direction in w for each class.

    Attributes:
      classes: their names.
      vectors: float32 [classes, w_dim], of length 1.
      scales: float32 [classes], the standard deviation of w along them: the unit of a strength.
      fits: float32 [classes], correlation of the fit with the teacher's log-odds on faces that
        the fit did not see.
      apart: the distance between two faces in w (root mean square).
      network: fingerprint of the generator.
    """

    classes: tuple[str, ...]
    vectors: np.ndarray
    scales: np.ndarray
    fits: np.ndarray
    apart: float
    network: str

    def edit(self, index: int, strength: float) -> np.ndarray:
        """What is added to w: float32 [w_dim]."""
        return self.vectors[index] * (self.scales[index] * strength)

    def moved(self, index: int, strength: float) -> float:
        """How far the edit goes, as a share of the distance between two faces."""
        return float(abs(strength) * self.scales[index] / self.apart)


def fit_directions(
    w: np.ndarray, log_probabilities: np.ndarray, classes: Sequence[str], network: str
) -> Directions:
    """Linear directions in w that raise a class's log-odds in a teacher's eyes.

    Ridge regression of the centred log-probabilities on w; its strength is the one with the
    least generalized cross-validation error (Golub, Heath and Wahba 1979).

    Args:
      w: float [n, w_dim], sampled, as the faces were made from it.
      log_probabilities: float [n, classes] of the faces made from them; rows that are not
        finite showed no face and are left out.
      classes: names.
      network: fingerprint of the generator.

    Raises:
      InputError: too few faces to fit anything.
    """
    usable = np.isfinite(log_probabilities).all(axis=1)
    if usable.sum() < MIN_FIT_FACES:
        raise InputError(
            f"only {usable.sum()} of {len(w)} sampled pictures show a face that passes the gates; "
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
    """Coefficients [d, k] of a regression of y [n, k] on x [n, d], one penalty for all columns."""
    centred, targets = x - x.mean(axis=0), y - y.mean(axis=0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    turned = left.T @ targets
    outside = np.square(targets).sum() - np.square(turned).sum()
    best, chosen = np.inf, None
    for penalty in sizes[0] ** 2 * np.logspace(-8, 2, 41):
        kept = sizes**2 / (sizes**2 + penalty)
        rest = outside + np.square((1 - kept)[:, None] * turned).sum()
        # One degree of freedom went into the mean.
        error = rest / (1 - (kept.sum() + 1) / len(x)) ** 2 if kept.sum() + 1 < len(x) else np.inf
        if error < best:
            best, chosen = error, kept / np.maximum(sizes, 1e-30)
    assert chosen is not None  # the largest penalty always leaves degrees of freedom
    return right.T @ (chosen[:, None] * turned)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float((a * b).sum() / norm) if norm > 0 else float("nan")


def check_strength(directions: Directions, wanted: Sequence[int], strength: float) -> None:
    """Refuses an edit that would make another person of a face.

    Raises:
      InputError: names the class and the largest strength that it bears.
    """
    if not np.isfinite(strength):
        raise InputError(f"--strength must be a finite number, not {strength}")
    for index in wanted:
        moved = directions.moved(index, strength)
        if moved > MAX_MOVED:
            bearable = abs(strength) * MAX_MOVED / moved
            raise InputError(
                f"--strength={strength:g} moves a face towards {directions.classes[index]} by "
                f"{moved:.2f} of the distance between two people; at most {bearable:.3g} keeps "
                "the person"
            )


def write_directions(path: Path, directions: Directions) -> None:
    """Writes directions as safetensors, with the network that they are for."""
    # safetensors writes an array's memory, whatever its strides are.
    tensors = {
        name: np.ascontiguousarray(getattr(directions, name))
        for name in ("vectors", "scales", "fits")
    }
    about = {
        "network": directions.network,
        "classes": json.dumps(directions.classes),
        "apart": repr(directions.apart),
    }
    write_whole(path, save(tensors, metadata=about))


def read_directions(path: Path, generator: Generator, network: str, task: str) -> Directions:
    """Reads what `write_directions` wrote.

    Args:
      path: of the file.
      generator: that it must be for.
      network: the generator's fingerprint.
      task: whose classes it may name.

    Raises:
      InputError: no such file, for another network, or not sound.
    """
    if not path.is_file():
        raise InputError(f"--directions '{path}' does not exist; 'fit' makes them")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"--directions '{path}' is over {MAX_FILE_BYTES // 2**20} MiB")
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            vectors, scales, fits = (file.get_tensor(n) for n in ("vectors", "scales", "fits"))
        found = Directions(
            tuple(map(str, json.loads(about["classes"]))),
            np.asarray(vectors, np.float32),
            np.asarray(scales, np.float32),
            np.asarray(fits, np.float32),
            float(about["apart"]),
            about["network"],
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"--directions '{path}' is not a file of directions") from error
    if found.network != network:
        raise InputError(
            f"--directions '{path}' is for another network ({found.network[:12]}, not "
            f"{network[:12]}); fit them anew with --directions=fit"
        )
    count = len(found.classes)
    sound = (
        found.vectors.shape == (count, generator.w_dim)
        and found.scales.shape == found.fits.shape == (count,)
        and np.isfinite(found.vectors).all()
        and np.isfinite(found.scales).all()
        and found.apart > 0
    )
    if not sound or not count:
        raise InputError(f"--directions '{path}' does not hold a direction of w for each class")
    for name in found.classes:
        if name not in TASKS[task]:
            raise InputError(
                f"--directions '{path}' names '{name}', no {task}{did_you_mean(name, TASKS[task])}"
            )
    return found
