"""The embedded dataset: rendered faces of two sources, so that everything runs without data."""

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
NUM_SUBJECTS = 60  # per source; no person is in both
TAKES = 3  # images of each person and emotion
# Share of takes that show interest, by content: as in the published laboratory videos.
INTERESTED = {"food_market": 0.55, "cosmetics_fashion": 0.65, "car_tech": 0.83}
# Of the expression; participants in a laboratory are asked to show it clearly.
INTENSITY = {"controlled": (0.55, 1.1), "social": (0.4, 1.0)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: this dataset has no options."""


def plan(config: str, options: argparse.Namespace) -> Plan:
    """Returns all rows of one source; reading a row renders its image."""
    del options
    rows = [row for number in range(NUM_SUBJECTS) for row in _subject_rows(config, number)]
    parts = {row["subject_id"]: row["split"] for row in rows}
    splits.check_parts(parts.values(), splits.PARTS)
    return Plan("demo", config, rows, [], {"seed": SEED, "takes": TAKES}, read=_render)


def _generator(*names: str) -> np.random.Generator:
    """Returns a generator that is seeded by the names."""
    return np.random.default_rng([SEED, *(int(splits.position(n) * 2**32) for n in names)])


def _subject_rows(source: str, number: int) -> list[dict[str, Any]]:
    subject = f"demo/{source}_{number:03}"
    who = draw.identity(_generator(subject))
    content = draw.CONTENTS[number % len(draw.CONTENTS)]
    rng = _generator(subject, "takes")
    rows = []
    for emotion, name in enumerate(schema.EMOTIONS):
        for take in range(TAKES):
            rows.append(
                {
                    "record_id": f"{subject}/{name}_{take}",
                    "source": source,
                    "content": content,
                    "subject_id": subject,
                    "clip_id": f"{subject}/{name}",
                    "frame_index": take,
                    "timestamp": take / 10,
                    "stimulus_id": f"{content}/{name}",
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
    """Splits the people of each content group 80/10/10, so that every part has all groups."""
    turn = number // len(draw.CONTENTS) % 10
    return {8: "validation", 9: "test"}.get(turn, "train")


def _render(row: dict[str, Any]) -> list[Found]:
    rng = _generator(row["record_id"])
    face = draw.expression(
        schema.EMOTIONS[row["emotion"]],
        row["interest"] == 1,
        rng.uniform(*INTENSITY[row["source"]]),
        rng,
    )
    who = draw.identity(_generator(row["subject_id"]))
    image = draw.draw_face(who, face, row["source"], row["content"], rng)
    return [Found(row["record_id"], [{"image": encode_jpeg(image)}])]
