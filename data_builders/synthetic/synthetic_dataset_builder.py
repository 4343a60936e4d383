"""A folder that `synthesize` filled, as records: a seed's faces stay on one side of a split."""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax import schema
from fer_jax.data import splits, synthetic
from fer_jax.data.plan import Plan, check_name
from fer_jax.errors import InputError
from fer_jax.media import clips, images
from fer_jax.media.clips import Extraction, Found

CONFIGS = ("grouped", "folds")
BUILD_ALL = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The builder's own flags."""
    parser.add_argument("--source", type=Path, required=True, help="the folder of `synthesize`")
    parser.add_argument("--name", default="synthetic", help="of the dataset")
    splits.add_arguments(parser)
    clips.add_arguments(parser, clips=False, detector="yunet")


def plan(config: str, options: argparse.Namespace) -> Plan:
    """Reads records.csv and assigns splits; decodes nothing yet."""
    check_name(options.name)
    source = Path(options.source)
    settings = _settings(source)
    task = settings["request"]["task"]
    table = synthetic.read(source / synthetic.RECORDS, synthetic.record_columns(task))
    extraction = clips.from_arguments(options)
    # The people of one network are the same in every folder that was made with it.
    namespace = f"stylegan/{settings['made_by']['network'][:16]}"
    rows, refused = [], []
    for entry in table:
        try:
            rows.append(_row(entry, task, options.name, namespace))
        except InputError as error:
            refused.append((entry["file"], str(error)))
    rows, outside = splits.assign(rows, config, namespace, options)
    recorded = {
        "source": source.name,
        "made_by": settings["made_by"],
        "teacher": settings.get("teacher", {}),
        "generator": settings.get("generator", {}),
        "faces": clips.recorded(extraction),
    } | splits.recorded(config, options)
    read = functools.partial(_face, source=source, extraction=extraction)
    return Plan(options.name, config, rows, refused + outside, recorded, read=read)


def _settings(source: Path) -> dict[str, Any]:
    file = source / synthetic.SETTINGS
    if not file.is_file() or not (source / synthetic.RECORDS).is_file():
        raise InputError(
            f"--source '{source}' has no {synthetic.SETTINGS} and {synthetic.RECORDS}; make faces "
            f"with `fer-jax synthesize --out={source}`"
        )
    try:
        settings = json.loads(file.read_text())
        if settings["request"]["task"] not in schema.TASKS:
            raise ValueError("no such task")
        str(settings["made_by"]["network"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{file}' is damaged") from error
    return settings


def _row(entry: synthetic.Row, task: str, name: str, namespace: str) -> dict[str, Any]:
    path = Path(entry["file"])
    if path.is_absolute() or ".." in path.parts:
        raise InputError("the file is outside the folder")
    if not entry["label"]:
        raise InputError("no label")
    classes = schema.TASKS[task]
    if entry["label"] not in classes:
        raise InputError(f"'{entry['label']}' is no {task}")
    seed = entry["seed"]
    if not seed.isdecimal():
        raise InputError(f"'{seed}' is not a seed")
    row: dict[str, Any] = {
        "_path": entry["file"],
        "record_id": f"{name}/{path.with_suffix('').relative_to(path.parts[0])}",
        "source": "synthetic",
        # A seed is a person: its edits and truncations show the same face.
        "subject_id": f"{namespace}/seed_{int(seed)}",
        task: classes.index(entry["label"]),
        "label_source": synthetic.label_source(entry["label_source"]),
        "seed": int(seed),
        "truncation_psi": synthetic.number(entry["psi"], "a truncation"),
    }
    if entry["confidence"]:
        row["label_confidence"] = synthetic.number(entry["confidence"], "a confidence")
    chances = synthetic.probabilities(entry, task)
    # Only where the teacher gave the label is its doubt the label's.
    if chances is not None and task == "emotion" and entry["label_source"] == "teacher":
        row["emotion_probabilities"] = np.asarray(chances, np.float32)
    return row


def _face(row: dict[str, Any], source: Path, extraction: Extraction) -> list[Found]:
    file = source / row["_path"]
    if not file.is_file():
        raise InputError("no such file")
    if file.stat().st_size > images.MAX_FILE_BYTES:
        raise InputError(f"file over {images.MAX_FILE_BYTES // 2**20} MiB")
    image = images.decode(file.read_bytes())
    return [clips.faces_in_photo(image, row["record_id"], row["_path"], extraction)]
