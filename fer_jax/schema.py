"""The vocabulary: emotions, interest, and the record that every dataset consists of.

A record is one aligned face with everything that is known about it. All builders write the same
features, so that datasets can be mixed freely.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fer_jax.errors import InputError, did_you_mean

EMOTIONS = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
INTERESTS = ("not_interested", "interested")
TASKS: dict[str, tuple[str, ...]] = {"emotion": EMOTIONS, "interest": INTERESTS}
UNKNOWN = -1

# A record's `source` is one of these or the name of its collection.
SOURCES = ("controlled", "social", "synthetic")
LABEL_SOURCES = ("annotated", "prompt", "class", "teacher", "direction")
GENDERS = ("", "female", "male", "other")

# Other spellings in published datasets.
EMOTION_ALIASES = {
    "angry": "anger",
    "ang": "anger",
    "disgusted": "disgust",
    "dis": "disgust",
    "afraid": "fear",
    "fearful": "fear",
    "fea": "fear",
    "happy": "happiness",
    "joy": "happiness",
    "hap": "happiness",
    "neu": "neutral",
    "sad": "sadness",
    "surprised": "surprise",
    "sur": "surprise",
}
INTEREST_ALIASES = {
    "not interested": "not_interested",
    "uninterested": "not_interested",
    "no": "not_interested",
    "yes": "interested",
}

JPEG_QUALITY = 95
MAX_IMAGE_SIZE = 256  # records hold faces of at most this many pixels a side


def emotion_index(word: str) -> int:
    """Returns the index of an emotion in `EMOTIONS`; accepts `EMOTION_ALIASES`.

    Raises:
      InputError: the word is not one of the seven emotions (contempt is not).
    """
    return _index(word, EMOTIONS, EMOTION_ALIASES, "emotion")


def interest_index(word: str) -> int:
    """Returns the index of an interest label in `INTERESTS`; accepts `INTEREST_ALIASES`.

    Raises:
      InputError: unknown word.
    """
    return _index(word, INTERESTS, INTEREST_ALIASES, "interest")


def gender(word: str) -> str:
    """Returns one of `GENDERS` for "f", "Female", "man" and the like; "" stays unknown.

    Raises:
      InputError: unknown word.
    """
    normal = word.strip().lower()
    normal = {"f": "female", "w": "female", "woman": "female", "m": "male", "man": "male"}.get(
        normal, normal
    )
    if normal not in GENDERS:
        raise InputError(f"unknown gender '{word}'{did_you_mean(normal, GENDERS[1:])}")
    return normal


def _index(word: str, classes: tuple[str, ...], aliases: Mapping[str, str], kind: str) -> int:
    normal = word.strip().lower()
    normal = aliases.get(normal, normal)
    if normal not in classes:
        raise InputError(f"'{word}' is not an {kind}{did_you_mean(normal, classes)}")
    return classes.index(normal)


def one_hot(index: int, num_classes: int) -> np.ndarray:
    """Returns float32 [num_classes], 1 at `index`; all zeros for an unknown label."""
    return (np.arange(num_classes) == index).astype(np.float32)


def features():
    """Returns the features of a record, as TFDS describes them."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "emotion": tfds.features.ClassLabel(names=EMOTIONS),
            "interest": tfds.features.ClassLabel(names=INTERESTS),
            "source": tfds.features.Text(),
            "content": tfds.features.Text(),
            "subject_id": tfds.features.Text(),
            "clip_id": tfds.features.Text(),
            "frame_index": np.int32,
            "timestamp": np.float32,
            "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
            "detection_score": np.float32,
            "label_source": tfds.features.Text(),
            "label_confidence": np.float32,
            "emotion_probabilities": tfds.features.Tensor(shape=(len(EMOTIONS),), dtype=np.float32),
            "seed": np.int64,
            "truncation_psi": np.float32,
            "record_id": tfds.features.Text(),
            "stimulus_id": tfds.features.Text(),
            "url": tfds.features.Text(),
            "gender": tfds.features.Text(),
            "age": np.float32,
        }
    )


def record(*, record_id: str, source: str, image: bytes, **known: Any) -> dict[str, Any]:
    """Returns a record with every feature; those that are not given get their unknown value.

    Args:
      record_id: unique in its dataset and the same at every rebuild.
      source: one of `SOURCES`, or the name of the collection.
      image: the face as JPEG bytes, 3 channels, at most `MAX_IMAGE_SIZE` px a side.
      **known: any other of `features`. `box` is (x, y, width, height) in pixels of the original
        frame, `timestamp` in seconds, `age` in years.

    Raises:
      InputError: a key or a label outside the vocabulary.
    """
    row: dict[str, Any] = {
        "image": image,
        "emotion": UNKNOWN,
        "interest": UNKNOWN,
        "source": source,
        "content": "",
        "subject_id": "",
        "clip_id": "",
        "frame_index": 0,
        "timestamp": 0.0,
        "box": np.zeros(4, np.float32),
        "detection_score": 1.0,
        "label_source": "annotated",
        "label_confidence": 1.0,
        "emotion_probabilities": None,
        "seed": UNKNOWN,
        "truncation_psi": float("nan"),
        "record_id": record_id,
        "stimulus_id": "",
        "url": "",
        "gender": "",
        "age": float(UNKNOWN),
    }
    for key, value in known.items():
        if key not in row:
            raise InputError(f"a record has no field '{key}'{did_you_mean(key, row)}")
        row[key] = value
    if row["emotion_probabilities"] is None:
        row["emotion_probabilities"] = one_hot(row["emotion"], len(EMOTIONS))
    for task, classes in TASKS.items():
        if not UNKNOWN <= row[task] < len(classes):
            raise InputError(f"{record_id}: {task} {row[task]} is outside -1..{len(classes) - 1}")
    for key, accepted in (("label_source", LABEL_SOURCES), ("gender", GENDERS)):
        if row[key] not in accepted:
            raise InputError(f"{record_id}: {key} '{row[key]}'{did_you_mean(row[key], accepted)}")
    return row
