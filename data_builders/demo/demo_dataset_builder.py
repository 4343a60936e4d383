"""The embedded dataset: rendered faces of two sources, so that everything runs without data."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_builders.demo import draw
from fer_jax import schema
from fer_jax.data import splits
from fer_jax.data.builder import Inputs, RecordBuilder
from fer_jax.media.extraction import Found
from fer_jax.media.images import encode_jpeg

SOURCES = ("controlled", "social")
SEED = 0
NUM_SUBJECTS = 60  # per source; no person is in both
TAKES = 3  # images of each person and emotion
# Share of takes that show interest, by content: as in the published laboratory videos.
INTERESTED = {"food_market": 0.55, "cosmetics_fashion": 0.65, "car_tech": 0.83}
# Of the expression; participants in a laboratory are asked to show it clearly.
INTENSITY = {"controlled": (0.55, 1.1), "social": (0.4, 1.0)}


class Builder(RecordBuilder):
    """Faces that a program renders from parameters; needs no data."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="controlled", description="Frontal, evenly lit, expressive."),
        tfds.core.BuilderConfig(name="social", description="Cluttered, tinted, off-centre."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.record_info(
            "Rendered faces of 60 people with seven emotions and two levels of interest.",
            license="Apache-2.0",
            citation="@software{fer_jax, title = {fer_jax: facial emotion recognition in JAX}}",
        )

    def list_inputs(self) -> Inputs:
        """All images of one source."""
        return Inputs(list_rows(self.protocol), [], {"seed": SEED, "takes": TAKES})

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # nothing is downloaded
        return self.splits_of_inputs()

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[Any]:
        return self.examples(rows, render)


def list_rows(source: str) -> list[dict[str, Any]]:
    """The rows of one of `SOURCES`, with their splits."""
    rows = [row for number in range(NUM_SUBJECTS) for row in _subject_rows(source, number)]
    splits.check_parts([row["split"] for row in rows], splits.PARTS)
    return rows


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


def render(row: dict[str, Any]) -> list[Found]:
    """Renders the face of a row."""
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
