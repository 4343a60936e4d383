"""One frame each of thousands of rendered people, on whom a network's score is its true score.

The people are of a world of the demo (`data_builders/demo/world.py`), on one of its platforms, and
in none of the demo's clips.
"""

import argparse
import concurrent.futures
import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import tensorflow_datasets as tfds

from data_builders.demo import film, world
from fer_jax import schema
from fer_jax.data.builder import Inputs, RecordBuilder
from fer_jax.errors import InputError
from fer_jax.media import extraction
from fer_jax.media.clips import start_worker
from fer_jax.media.extraction import Extraction, Found
from fer_jax.media.video import Video

FIRST = 10_000  # number of the first person; those of clips have smaller ones
FRAMES = (2, 6, 10)  # of a reaction, which `--frames=3` takes from its clip
HAAR = Extraction(detector="haar", min_size=64)  # as the demo's clips
FEW = 100  # people, for whom processes take longer to start than to film


class Builder(RecordBuilder):
    """A frame each of thousands of rendered people; needs no data."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=f"People on the platform '{name}'.")
        for name in film.PLATFORMS
    ]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the builder's options."""
        super().add_arguments(parser)
        parser.add_argument("--people", type=int, default=2000, help="number of people")
        parser.add_argument("--seed", type=int, default=0, help="of the world they are from")
        parser.add_argument(
            "--null", action="store_true", help="of a world in which all platforms look alike"
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.record_info("A frame each of rendered people.", license="Apache-2.0")

    def list_inputs(self) -> Inputs:
        """One frame of one reaction of everybody."""
        options, most = self.options, world.MAX_PEOPLE - FIRST
        if not 1 <= options.people <= most:
            raise InputError(f"--people must be 1 to {most}, got {options.people}")
        if options.seed < 0:
            raise InputError(f"--seed must be at least 0, got {options.seed}")
        where = world.World(options.seed, options.null)
        people = range(FIRST, FIRST + options.people)
        rows = [_row(where, self.protocol, number) for number in people]
        return Inputs(rows, [], {"people": options.people, **where._asdict()})

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        del dl_manager  # nothing is downloaded
        return self.splits_of_inputs()

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[Any]:
        if len(rows) < FEW:
            yield from self.examples(rows, lambda row: [filmed(row)])
            return
        # Drawing holds the interpreter, so the threads of `examples` wait for processes.
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            self.options.processes, context, start_worker
        ) as pool:
            yield from self.examples(rows, lambda row: [pool.submit(filmed, row).result()])


def _row(where: world.World, platform: str, number: int) -> dict[str, Any]:
    one = world.viewer(where, platform, number)
    rng = world.rng_of(where.seed, platform, str(number), "fresh")
    shown = one.reactions[int(rng.integers(len(one.reactions)))]
    frame = FRAMES[int(rng.integers(len(FRAMES)))]
    subject = f"rendered/{platform}_{one.id}"
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
        "_filmed": (one, shown, frame),
    }


def filmed(row: dict[str, Any]) -> Found:
    """Films the frame of a row, and takes the face out of it as a build does."""
    one, shown, frame = row["_filmed"]
    (taken,) = one.film(shown, one.where(), [frame])
    with tempfile.TemporaryDirectory() as folder:  # through the codec, as a clip's frames
        file = Path(folder, "frame.mp4")
        world.write_video(file, [taken])
        with Video(file) as video:
            (image,) = (each.image for each in video.frames(count=1))
    assert image is not None  # it was written here
    name = row["record_id"]
    return extraction.faces_in_image(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), name, name, HAAR)
