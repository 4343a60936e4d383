"""The vocabulary: emotions, interest, and the features of a record.

A record is one aligned face with all that is known about it. All builders write the same features,
so that datasets can be mixed.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fer_jax.errors import InputError, did_you_mean

EMOTIONS = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
INTERESTS = ("not_interested", "interested")
TASKS: dict[str, tuple[str, ...]] = {"emotion": EMOTIONS, "interest": INTERESTS}
UNKNOWN = -1

# The forms of one YouTube video's URL; a time or a list in it does not matter.
YOUTUBE = re.compile(
    r"https?://(?:youtu\.be/"
    r"|(?:(?:www|m|music|gaming)\.)?youtube(?:-nocookie)?\.com(?::443|:80)?/"
    r"(?:(?:shorts|embed|live|v|e|watch)/|(?:watch|watch_popup|movie)/?\?(?:[^#]*&)?v=))"
    r"([\w-]{11})(?![\w-])",
    re.ASCII | re.IGNORECASE,
)

# A record's `source` is one of these or the name of its collection.
SOURCES = ("controlled", "social", "synthetic")
LABEL_SOURCES = ("annotated", "prompt", "class", "teacher", "direction")
GENDERS = ("", "female", "male", "other")

# Spellings in published datasets.
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
GENDER_ALIASES = {"f": "female", "w": "female", "woman": "female", "m": "male", "man": "male"}

# The features of a record but its image, with the values of those that are not known. They are
# stored as text where the default is one, else as float32, unless `features` says otherwise.
DEFAULTS: dict[str, Any] = {
    **{"emotion": UNKNOWN, "interest": UNKNOWN, "source": "", "content": "", "subject_id": ""},
    **{"clip_id": "", "frame_index": 0, "timestamp": 0.0, "box": None, "detection_score": 1.0},
    **{"label_source": "annotated", "label_confidence": 1.0, "emotion_probabilities": None},
    **{"seed": UNKNOWN, "truncation_psi": float("nan"), "record_id": "", "stimulus_id": ""},
    **{"url": "", "gender": "", "age": float(UNKNOWN)},
}

JPEG_QUALITY = 95
MAX_IMAGE_SIZE = 256  # records hold faces of at most this many pixels a side


def emotion_index(word: str) -> int:
    """Returns the index of an emotion in `EMOTIONS`; InputError if it is not one of the seven.

    A number may stand before the word, as in the folder "1_anger".
    """
    bare = re.sub(r"^\s*\d+[ _.-]+(?=[^\W\d])", "", word)
    return EMOTIONS.index(_known(bare, EMOTIONS, EMOTION_ALIASES, "emotion"))


def interest_index(word: str) -> int:
    """Returns the index of an interest label in `INTERESTS`; InputError if it is unknown."""
    return INTERESTS.index(_known(word, INTERESTS, INTEREST_ALIASES, "interest"))


def is_interest(word: str) -> bool:
    """Whether `interest_index` knows a word; faster than catching its error."""
    return _usual(word, INTEREST_ALIASES) in INTERESTS


def gender(word: str) -> str:
    """Returns one of `GENDERS` for "f", "Female", "man", ...; InputError if it is unknown."""
    return _known(word, GENDERS, GENDER_ALIASES, "gender")


def _known(word: str, accepted: tuple[str, ...], aliases: Mapping[str, str], kind: str) -> str:
    normal = _usual(word, aliases)
    if normal not in accepted:
        hint = did_you_mean(normal, [name for name in accepted if name])
        raise InputError(f"unknown {kind} '{word}'{hint}")
    return normal


def _usual(word: str, aliases: Mapping[str, str]) -> str:
    normal = word.strip().lower()
    return aliases.get(normal, normal)


def one_hot(index: int, num_classes: int) -> np.ndarray:
    """Returns float32 [num_classes], 1 at `index`; all zeros for an unknown label."""
    return (np.arange(num_classes) == index).astype(np.float32)


def features():
    """Returns the features of a record as TFDS's FeaturesDict."""
    import tensorflow_datasets as tfds

    stored = {
        "emotion": tfds.features.ClassLabel(names=EMOTIONS),
        "interest": tfds.features.ClassLabel(names=INTERESTS),
        "frame_index": np.int32,
        "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
        "emotion_probabilities": tfds.features.Tensor(shape=(len(EMOTIONS),), dtype=np.float32),
        "seed": np.int64,
    }
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
    others = {
        name: stored.get(name) or (tfds.features.Text() if isinstance(default, str) else np.float32)
        for name, default in DEFAULTS.items()
    }
    return tfds.features.FeaturesDict({"image": image} | others)


def canonical_url(url: str) -> str:
    """Returns the same URL for all forms of a YouTube video's; of others without "#t=SECONDS"."""
    video = YOUTUBE.match(url)
    if video:
        return f"https://www.youtube.com/watch?v={video[1]}"
    return re.sub(r"#t=[\d.,:hms]*$", "", url)


def record(*, record_id: str, source: str, image: bytes, **known: Any) -> dict[str, Any]:
    """Returns a record with every feature; those not given are unknown.

    `record_id` is unique in its dataset and the same at every rebuild; `source` is one of
    `SOURCES`, or the name of the collection; `image` is the face as JPEG bytes, 3 channels, at most
    `MAX_IMAGE_SIZE` px a side; `known` has any other of `features`: `box` is (x, y, width, height)
    in pixels of the original frame, `timestamp` in seconds, `age` in years. InputError for an
    unknown field or label.
    """
    row: dict[str, Any] = {"image": image} | DEFAULTS | {"source": source, "record_id": record_id}
    row["box"] = np.zeros(4, np.float32)
    for key, value in known.items():
        if key not in row:
            raise InputError(f"a record has no field '{key}'{did_you_mean(key, row)}")
        row[key] = value
    if row["emotion_probabilities"] is None:
        row["emotion_probabilities"] = one_hot(row["emotion"], len(EMOTIONS))
    for task, classes in TASKS.items():
        if not UNKNOWN <= row[task] < len(classes):
            limit = len(classes) - 1
            raise InputError(f"{record_id}: {task} must be -1 to {limit}, got {row[task]}")
    for key, accepted in (("label_source", LABEL_SOURCES), ("gender", GENDERS)):
        if row[key] not in accepted:
            hint = did_you_mean(row[key], accepted)
            raise InputError(f"{record_id}: unknown {key} '{row[key]}'{hint}")
    return row
