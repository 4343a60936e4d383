"""Pictures to faces in blocks, which workers of a cluster finish: each block is one zip."""

import argparse
import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.errors import InputError
from fer_jax.media import clips, cluster, extraction
from fer_jax.media.extraction import Found

PICTURES = 256  # of a block


def tasks(
    kind: str,
    config: str,
    options: argparse.Namespace,
    rows: Sequence[dict[str, Any]],
    folder: Path,
) -> Iterator[cluster.Task]:
    """Yields the tasks of a builder's rows, `PICTURES` in each, in their order."""
    plain = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
    }
    about = {"builder": kind, "config": config, "options": plain}
    for start in range(0, len(rows), PICTURES):
        block = [
            {k: v for k, v in row.items() if k == "record_id" or k.startswith("_")}
            for row in rows[start : start + PICTURES]
        ]
        # As a worker gets it: a tuple becomes a list.
        spec = json.loads(json.dumps(about | {"rows": block}, default=np.ndarray.tolist))
        file = folder / file_name(spec)
        yield cluster.Task(block[0]["record_id"], file, __name__, spec)


def file_name(spec: Mapping[str, Any]) -> str:
    """Returns the name of a block's zip: of the files' identity, and how faces are taken out."""
    options = argparse.Namespace(**spec["options"])
    source = Path(options.source)
    identity = []
    for row in spec["rows"]:
        file = source / row.get("_path", "")
        status = os.stat(file if file.exists() else source)  # the source may be one file
        identity.append([status.st_size, status.st_mtime_ns])
    faces = sorted(extraction.recorded(extraction.from_arguments(options)).items())
    key = [clips.EXTRACTION, spec["builder"], spec["rows"], identity, faces]
    return f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.zip"


def finish(
    spec: Mapping[str, Any],
    file: Path,
    crashed: Collection[int],
    report: Callable[[int], Any],
) -> None:
    """Takes the faces out of a block's pictures, as `fer_jax.media.cluster.Task` says."""
    builder = _builder(spec["builder"], spec["config"], json.dumps(spec["options"]))
    kept: list[Any] = []
    with clips.new_zip(file) as archive:
        for number, row in enumerate(spec["rows"]):
            report(number)
            try:
                found = [Found(row["record_id"], [], clips.CRASHED)]
                if number not in crashed:
                    found = builder.find_faces(row)
            except InputError as error:
                kept.append(str(error))
                continue
            for face in (face for one in found for face in one.faces):
                name = f"{len(archive.namelist())}.jpg"
                archive.writestr(name, face["image"])
                face["image"] = name
            kept.append(found)
        archive.writestr("block.json", json.dumps(kept, default=np.ndarray.tolist))


def read(file: Path) -> list[list[Found] | str]:
    """Returns the faces of each picture of a block, or why it could not be read."""
    with zipfile.ZipFile(file) as archive:
        kept: list[Any] = json.loads(archive.read("block.json"))
        for place, pictures in enumerate(kept):
            if isinstance(pictures, str):
                continue
            kept[place] = [Found(*one) for one in pictures]
            for face in (face for one in kept[place] for face in one.faces):
                face["image"] = archive.read(face["image"])
                if "box" in face:
                    face["box"] = np.asarray(face["box"], np.float32)
    return kept


@functools.lru_cache(maxsize=4)
def _builder(kind: str, config: str, options: str) -> Any:
    from fer_jax.data.build import find_builder

    given = argparse.Namespace(**json.loads(options))
    given.source = Path(given.source)
    return find_builder(kind)(data_dir=os.devnull, config=config, options=given)
