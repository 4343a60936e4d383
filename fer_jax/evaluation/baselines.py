"""What a model is worth beside those that never look at a picture.

`train` writes how often each label occurred for each source and content; the no-pixels model
knows nothing else.
"""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
    """The scores of always answering the commonest class of these very labels.

    Its PR-AUC is the mean prevalence of the classes: what chance gives.
    """
    commonest = np.bincount(labels, minlength=num_classes).argmax()
    answers = np.tile(np.eye(num_classes)[commonest], (len(labels), 1))
    scored = metrics.score(labels, answers)
    return {name: scored[name] for name in COMPARABLE}


def write(workdir: Path, trained_on: Sequence[Records], task: str) -> None:
    """Writes workdir/training_labels.csv: a row per source, content and label that occurs.

    Args:
      workdir: of the run.
      trained_on: its training parts.
      task: images without a label for it do not count.
    """
    counts = Counter(
        (source, content, label)
        for records in trained_on
        for source, content, label in zip(
            records.columns["source"].tolist(),
            records.columns["content"].tolist(),
            records.labels(task).tolist(),
            strict=True,
        )
        if label != UNKNOWN
    )
    with (workdir / FILE).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for (source, content, label), images in sorted(counts.items()):
            writer.writerow([source, content, TASKS[task][label], images])


def read(workdir: Path, classes: Sequence[str]) -> LabelCounts | None:
    """What `write` wrote; None where the run has no such file.

    Raises:
      InputError: the file is about other classes, or does not make sense.
    """
    path = workdir / FILE
    if not path.is_file():
        return None
    index = {name: number for number, name in enumerate(classes)}
    counts: LabelCounts = {}
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                pair = (row["source"], row["content"])
                of_pair = counts.setdefault(pair, np.zeros(len(classes)))
                of_pair[index[row["label"]]] += int(row["images"])
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(
                    f"{path}, line {number}: not a source, content, label and number of images"
                ) from error
    if not counts:
        raise InputError(f"{path} holds no labels; train writes it")
    return counts


def no_pixels(counts: LabelCounts, sources: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """P(label | source, content), from the training labels alone.

    A pair's shares are its counts and one more image, dealt as P(label | source) P(label |
    content) / P(label) says; those are made in the same way from the shares of all labels. So
    a pair that training had not gets what its source and its content say, and a stranger the
    shares of all.

    Args:
      counts: from `read`.
      sources: str [n], of the images that are asked about.
      contents: str [n].

    Returns:
      float64 [n, k], rows sum to 1.
    """

    def shares(matching: Sequence[np.ndarray], expected: np.ndarray) -> np.ndarray:
        pooled = np.sum([*matching, expected], axis=0)
        return pooled / pooled.sum()

    num_classes = len(next(iter(counts.values())))
    overall = shares(list(counts.values()), np.full(num_classes, 1 / num_classes))
    known = {}
    for source, content in {(str(s), str(c)) for s, c in zip(sources, contents, strict=True)}:
        of_source = shares([row for pair, row in counts.items() if pair[0] == source], overall)
        of_content = shares([row for pair, row in counts.items() if pair[1] == content], overall)
        both = of_source * of_content / overall
        own = [row for pair, row in counts.items() if pair == (source, content)]
        known[source, content] = shares(own, both / both.sum())
    return np.stack([known[str(s), str(c)] for s, c in zip(sources, contents, strict=True)])
