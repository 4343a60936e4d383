"""The embedded default: drawn faces of two sources, so that everything runs without data."""

import argparse
from typing import Any

import numpy as np

from data_builders.demo import draw
from fer_jax import schema
from fer_jax.data import splits
from fer_jax.data.plan import Plan
from fer_jax.media.clips import Found
from fer_jax.media.images import encode_jpeg

CONFIGS = ("controlled", "social")
BUILD_ALL = True

SEED = 0
NUM_SUBJECTS = 60  # per source; no person is in two
TAKES = 3  # pictures of each person's emotion
# How many takes show interest, by content: as in the published laboratory videos.
INTERESTED = {"food_market": 0.55, "cosmetics_fashion": 0.65, "car_tech": 0.83}
# Laboratory participants are asked to show it clearly; others are caught in passing.
INTENSITY = {"controlled": (0.55, 1.1), "social": (0.4, 1.0)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo has no flags of its own."""


def plan(config: str, options: argparse.Namespace) -> Plan:
    """All pictures of one source; `read` draws them."""
    del options
    rows = [row for number in range(NUM_SUBJECTS) for row in _subject_rows(config, number)]
    parts = {row["subject_id"]: row["split"] for row in rows}
    splits.check_parts(parts.values(), splits.PARTS)
    return Plan("demo", config, rows, [], {"seed": SEED, "takes": TAKES}, read=_draw)


def _key(*words: int | str) -> np.random.Generator:
    """A generator that depends on the words alone."""
    return np.random.default_rng([SEED, *(int(splits.position(str(w)) * 2**32) for w in words)])


def _subject_rows(source: str, number: int) -> list[dict[str, Any]]:
    subject = f"demo/{source}_{number:03}"
    who = draw.identity(_key(subject))
    content = draw.CONTENTS[number % len(draw.CONTENTS)]
    rng = _key(subject, "takes")
    rows = []
    for emotion, word in enumerate(schema.EMOTIONS):
        for take in range(TAKES):
            rows.append(
                {
                    "record_id": f"{subject}/{word}_{take}",
                    "source": source,
                    "content": content,
                    "subject_id": subject,
                    "clip_id": f"{subject}/{word}",
                    "frame_index": take,
                    "timestamp": take / 10,
                    "stimulus_id": f"{content}/{word}",
                    "emotion": emotion,
                    "interest": int(rng.random() < INTERESTED[content]),
                    "label_source": "annotated",
                    "gender": who.gender,
                    "age": float(who.age),
                    "split": _split(number),
                }
            )
    return rows


def _split(number: int) -> str:
    """80/10/10 of the people of each content group, dealt so that no part lacks a group."""
    turn = number // len(draw.CONTENTS) % 10
    return {8: "validation", 9: "test"}.get(turn, "train")


def _draw(row: dict[str, Any]) -> list[Found]:
    rng = _key(row["record_id"])
    face = draw.expression(
        schema.EMOTIONS[row["emotion"]],
        row["interest"] == 1,
        rng.uniform(*INTENSITY[row["source"]]),
        rng,
    )
    who = draw.identity(_key(row["subject_id"]))
    image = draw.draw_face(who, face, row["source"], row["content"], rng)
    return [Found(row["record_id"], [{"image": encode_jpeg(image)}])]
