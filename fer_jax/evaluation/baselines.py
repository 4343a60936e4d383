"""What scores are compared with: the majority class, a pixel-free baseline, and annotators.

`train` writes how often each label occurred for each source and content; the pixel-free baseline
knows nothing else.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import storage
from fer_jax.data.records import Records
from fer_jax.errors import InputError
from fer_jax.evaluation import metrics
from fer_jax.schema import TASKS, UNKNOWN

FILE = "training_labels.csv"
COLUMNS = ("source", "content", "label", "images")
COMPARABLE = ("accuracy", "balanced_accuracy", "macro_f1", "pr_auc", "roc_auc")

# (source, content) -> float64 [k], images of each class
LabelCounts = dict[tuple[str, str], np.ndarray]


def majority(labels: np.ndarray, num_classes: int) -> dict[str, float]:
    """Scores a model that always predicts the most frequent class of these very labels.

    Its PR-AUC is the mean prevalence of the classes, the chance level.
    """
    most_frequent = np.bincount(labels, minlength=num_classes).argmax()
    predicted = np.tile(np.eye(num_classes)[most_frequent], (len(labels), 1))
    scored = metrics.score(labels, predicted)
    return {name: scored[name] for name in COMPARABLE}


def annotators(records: Records, task: str) -> dict[str, float] | None:
    """Computes how often an annotator agrees with the label: the share of the votes for it.

    Returns {"n": labelled images, "accuracy": the mean share, "balanced_accuracy": its mean over
    the classes that occur}; None where there are no votes. Synthetic images have a teacher's
    probabilities instead, and do not count.
    """
    labels = records.labels(task)
    rows = np.flatnonzero((labels != UNKNOWN) & (records.columns["seed"] < 0))
    votes = records.columns["emotion_probabilities"][rows].astype(np.float64)
    # Without votes they are one-hot.
    if task != "emotion" or not (votes.max(axis=1, initial=0) < 1).any():
        return None
    labels = labels[rows]
    agreed = votes[np.arange(len(rows)), labels]
    of_class = [agreed[labels == label].mean() for label in np.unique(labels)]
    found = {"n": len(rows), "accuracy": agreed.mean(), "balanced_accuracy": np.mean(of_class)}
    return {name: float(value) for name, value in found.items()}


def write(workdir: Path, trained_on: Sequence[Records], task: str) -> None:
    """Writes workdir/training_labels.csv: a row per source, content and label that occurs."""
    counts = Counter(
        row
        for records in trained_on
        for row in zip(
            records.columns["source"].tolist(),
            records.columns["content"].tolist(),
            records.labels(task).tolist(),
            strict=True,
        )
        if row[-1] != UNKNOWN
    )
    rows: list[dict[str, Any]] = [
        {"source": source, "content": content, "label": TASKS[task][label], "images": images}
        for (source, content, label), images in sorted(counts.items())
    ]
    storage.write_table(workdir / FILE, COLUMNS, rows)


def read(workdir: Path, classes: Sequence[str]) -> LabelCounts | None:
    """Reads what `write` wrote; None without the file, InputError if it does not make sense."""
    path = workdir / FILE
    if not path.is_file():
        return None
    index = {name: number for number, name in enumerate(classes)}
    counts: LabelCounts = {}
    for number, row in enumerate(storage.read_table(path, COLUMNS, appended=False), 2):
        try:
            of_pair = counts.setdefault((row["source"], row["content"]), np.zeros(len(classes)))
            of_pair[index[row["label"]]] += int(row["images"])
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}, line {number}: not a source, content, label and number of images"
            ) from error
    if not counts:
        raise InputError(f"{path} has no labels; train writes it")
    return counts


def pixel_free(counts: LabelCounts, sources: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """Computes P(label | source, content), float64 [n, k], from the training labels alone.

    The shares of a pair are those of its counts and one more image, which is spread over the
    classes as P(label | source) P(label | content) / P(label); these are smoothed likewise by one
    image with the shares of all labels, and those by one that is spread evenly. An unseen pair gets
    what its source and its content suggest, and one with an unseen source and content the shares of
    all labels. `sources` and `contents` are str [n].
    """

    def shares(matching: Sequence[np.ndarray], expected: np.ndarray) -> np.ndarray:
        pooled = np.sum([*matching, expected], axis=0)
        return pooled / pooled.sum()

    num_classes = len(next(iter(counts.values())))
    overall = shares(list(counts.values()), np.full(num_classes, 1 / num_classes))
    pairs = list(zip(map(str, sources), map(str, contents), strict=True))
    known = {}
    for source, content in set(pairs):
        of_source = shares([row for pair, row in counts.items() if pair[0] == source], overall)
        of_content = shares([row for pair, row in counts.items() if pair[1] == content], overall)
        both = of_source * of_content / overall
        own = [counts[source, content]] if (source, content) in counts else []
        known[source, content] = shares(own, both / both.sum())
    return np.stack([known[pair] for pair in pairs])
