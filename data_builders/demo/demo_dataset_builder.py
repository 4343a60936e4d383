"""The embedded datasets: rendered faces, so that everything runs without data.

`controlled` and `social` are sixty drawn people each, for a first run. `fresh_PLATFORM` has one
frame each of thousands of filmed people (`world.py`) who are in no clip of the demo: a network's
score on them is its true score on the platform, but for a small error.
"""

import argparse
import concurrent.futures
import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from data_builders.demo import draw, film, world
from fer_jax import schema
from fer_jax.data import splits
from fer_jax.data.builder import Inputs, RecordBuilder
from fer_jax.errors import InputError
from fer_jax.media import extraction
from fer_jax.media.extraction import Extraction, Found
from fer_jax.media.images import encode_jpeg
from fer_jax.media.video import Video

SOURCES = ("controlled", "social")
SEED = 0
NUM_SUBJECTS = 60  # per source; no person is in both
TAKES = 3  # images of each person and emotion
# Share of takes that show interest, by content: as in the published laboratory videos.
INTERESTED = {"food_market": 0.55, "cosmetics_fashion": 0.65, "car_tech": 0.83}
# Of the expression; participants in a laboratory are asked to show it clearly.
INTENSITY = {"controlled": (0.55, 1.1), "social": (0.4, 1.0)}
FIRST_FRESH = 10_000  # number of the first fresh person of a platform
FRAMES = (2, 6, 10)  # of a reaction, which `--frames=3` takes from its clip
FEW = 100  # people, for whom processes take longer to start than to film
HAAR = Extraction(detector="haar")


class Builder(RecordBuilder):
    """Faces that a program renders from parameters; needs no data."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="controlled", description="Frontal, evenly lit, expressive."),
        tfds.core.BuilderConfig(name="social", description="Cluttered, tinted, off-centre."),
        *(
            tfds.core.BuilderConfig(name=f"fresh_{name}", description="A frame each of new people.")
            for name in film.PLATFORMS
        ),
    ]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the builder's options."""
        super().add_arguments(parser)
        group = parser.add_argument_group("fresh people")
        group.add_argument("--people", type=int, default=2000, help="of fresh_PLATFORM")
        group.add_argument("--seed", type=int, default=SEED, help="of the world they are from")
        group.add_argument("--null", action="store_true", help="of a null world")

    def _info(self) -> tfds.core.DatasetInfo:
        return self.record_info(
            "Rendered faces of 60 people with seven emotions and two levels of interest.",
            license="Apache-2.0",
            citation="@software{fer_jax, title = {fer_jax: facial emotion recognition in JAX}}",
        )

    def list_inputs(self) -> Inputs:
        """All images of one source."""
        if platform := _platform(self.protocol):
            options = self.options
            if not 1 <= options.people <= world.MAX_PEOPLE - FIRST_FRESH:
                most = world.MAX_PEOPLE - FIRST_FRESH
                raise InputError(f"--people must be 1 to {most}, got {options.people}")
            people = range(FIRST_FRESH, FIRST_FRESH + options.people)
            where = world.World(options.seed, options.null)
            rows = [_fresh_row(where, platform, number) for number in people]
            return Inputs(rows, [], {"people": options.people, **where._asdict()})
        return Inputs(list_rows(self.protocol), [], {"seed": SEED, "takes": TAKES})

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # nothing is downloaded
        return self.splits_of_inputs()

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[Any]:
        if not _platform(self.protocol):
            yield from self.examples(rows, render)
            return
        if len(rows) < FEW:
            yield from self.examples(rows, lambda row: [filmed(row)])
            return
        # Drawing holds the interpreter, so the threads of `examples` wait for processes.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            self.options.processes, context, cv2.setNumThreads, (1,)
        ) as pool:
            yield from self.examples(rows, lambda row: [pool.submit(filmed, row).result()])


def _platform(config: str) -> str:
    """The platform whose fresh people a config has, or "" for the drawn sources."""
    return config.removeprefix("fresh_") if config.startswith("fresh_") else ""


def _fresh_row(where: world.World, platform: str, number: int) -> dict[str, Any]:
    one = world.viewer(where, platform, number)
    rng = world.rng_of(where.seed, platform, str(number), "fresh")
    shown = one.reactions[int(rng.integers(len(one.reactions)))]
    frame = FRAMES[int(rng.integers(len(FRAMES)))]
    subject = f"demo/{platform}_{one.id}"
    return {
        "record_id": f"{subject}/{shown.emotion}_{frame}",
        "source": platform,
        "content": one.content,
        "subject_id": subject,
        "emotion": schema.emotion_index(shown.emotion),
        "interest": int(shown.interested),
        "label_source": "annotated",
        "gender": one.who.gender,
        "age": float(one.who.age),
        "split": "test",
        "_filmed": (where, platform, number, shown, frame),
    }


def filmed(row: dict[str, Any]) -> Found:
    """Films the frame of a fresh person's row, and takes the face out of it as a build does."""
    where, platform, number, shown, frame = row["_filmed"]
    one = world.viewer(where, platform, number)
    (taken,) = one.film(shown, one.where(), [frame])
    with tempfile.TemporaryDirectory() as folder:  # through the codec, as a clip's frames
        file = Path(folder, "frame.mp4")
        world.write_video(file, [taken])
        with Video(file) as video:
            (image,) = (one.image for one in video.frames(count=1))
    assert image is not None  # it was written here
    name = row["record_id"]
    return extraction.faces_in_image(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), name, name, HAAR)


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
