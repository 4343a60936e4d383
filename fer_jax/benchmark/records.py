"""Records for the benchmarks that read some: the demo's people as larger, noisy images."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_builders.demo import demo_dataset_builder as demo
from fer_jax.data import build as builds
from fer_jax.data.builder import Inputs
from fer_jax.data.splits import position
from fer_jax.media.extraction import Found
from fer_jax.media.images import decode, encode_jpeg, resized

DATASET = "photographed"
NOISE = 4.0  # standard deviation of a grey value, so that a JPEG is as large as a camera's
# Images of each split; validation is no part of what is measured.
IMAGES = {"train": 1024, "validation": 16}


class Photographed(demo.Builder, skip_registration=True):
    """The first images of each split of the demo, larger and with noise."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds --size."""
        super().add_arguments(parser)
        parser.add_argument("--size", type=int, help="pixels a side")

    def list_inputs(self) -> Inputs:
        """The first `IMAGES` rows of each split."""
        rows, seen = [], Counter()
        for row in demo.list_rows(self.protocol):
            seen[row["split"]] += 1
            if seen[row["split"]] <= IMAGES.get(row["split"], 0):
                rows.append(row)
        return Inputs(rows, [], {})

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Any:
        return self.examples(rows, self._photograph)

    def _photograph(self, row: dict[str, Any]) -> list[Found]:
        (found,) = demo.render(row)
        face = resized(decode(found.faces[0]["image"]), self.options.size).astype(np.float32)
        rng = np.random.default_rng(int(position(row["record_id"]) * 2**32))
        face += rng.normal(scale=NOISE, size=face.shape)
        jpeg = encode_jpeg(np.clip(face, 0, 255).astype(np.uint8))
        return [Found(found.item, [{"image": jpeg}])]


def build(data_dir: Path, size: int) -> str:
    """Builds the dataset of faces of `size` pixels a side, unless it is there; returns its name."""
    name = f"{DATASET}_{size}"
    parser = argparse.ArgumentParser()
    Photographed.add_arguments(parser)
    options = parser.parse_args([f"--name={name}", f"--size={size}"])
    builds.write(Photographed, "controlled", data_dir, options=options)
    return f"{name}/controlled"
