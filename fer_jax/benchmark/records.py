"""Records for the benchmarks that read some: the demo's people, photographed larger."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_builders.demo import demo_dataset_builder
from fer_jax.data.build import write
from fer_jax.data.splits import position
from fer_jax.media.clips import Found
from fer_jax.media.images import decode, encode_jpeg, resized

DATASET = "photographed"
NOISE = 4.0  # standard deviation of a grey value, so that a JPEG is as large as a camera's
# Images of each split; validation is no part of what is measured.
IMAGES = {"train": 1024, "validation": 16}


def build(data_dir: Path, size: int) -> str:
    """Builds the dataset, unless it is there, and returns its name.

    Args:
      data_dir: receives it.
      size: of the faces, pixels a side.
    """
    plan = demo_dataset_builder.plan("controlled", None)  # pyright: ignore[reportArgumentType] (the demo has no options)
    rows, seen = [], Counter()
    for row in plan.rows:
        seen[row["split"]] += 1
        if seen[row["split"]] <= IMAGES.get(row["split"], 0):
            rows.append(row)

    def read(row: dict[str, Any]) -> list[Found]:
        assert plan.read is not None  # the demo draws
        (found,) = plan.read(row)
        face = resized(decode(found.faces[0]["image"]), size).astype(np.float32)
        rng = np.random.default_rng(int(position(row["record_id"]) * 2**32))
        face += rng.normal(scale=NOISE, size=face.shape)
        jpeg = encode_jpeg(np.clip(face, 0, 255).astype(np.uint8))
        return [Found(found.item, [{"image": jpeg}])]

    name = f"{DATASET}_{size}"
    write(dataclasses.replace(plan, name=name, rows=rows, read=read), data_dir)
    return f"{name}/{plan.config}"
