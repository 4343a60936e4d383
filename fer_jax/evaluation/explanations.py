"""Writes the faces of a run's most confident errors with heatmaps, to workdir/explanations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fer_jax import storage
from fer_jax.data.records import open_records
from fer_jax.errors import InputError
from fer_jax.inference.recognizer import overlay
from fer_jax.media.images import resized

FOLDER = "explanations"
JPEG_QUALITY = 80
# A larger difference means that the table is of another checkpoint, or of another image.
SAME_PROBABILITY = 0.02

Explain = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def write(
    workdir: Path,
    scored: dict[str, Any],
    data_dir: Path,
    explain: Explain,
    image_size: int,
    step: int,
) -> None:
    """Explains the errors of each test set and adds the names of the pictures to `scored`.

    For the error of rank R in predictions/NAME.csv it writes NAME.R.face.jpg and, with a heatmap
    of the regions that support the wrong class (Grad-CAM), NAME.R.jpg; NAME.json has the heatmaps
    as numbers. These become the error's "face" and "heatmap"; the set's "no_pictures" says why
    one is missing. Variants have no pictures.

    `scored` is from `score_run`; `explain` is that of a `Network` with this image size and step.
    """
    plain = [one for one in scored["sets"] if not one["variant"]]
    found = [(one, error, face) for one in plain for error, face in _faces(one, data_dir)]
    if not found:
        return
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    given = np.asarray([scored["classes"].index(error["given"]) for _, error, _ in found])
    faces = np.stack([resized(face, image_size) for _, _, face in found])
    maps, probabilities = explain(faces, given)
    kept: dict[str, list[dict[str, Any]]] = {one["table"]: [] for one, _, _ in found}
    for name in kept:
        # Pictures of an earlier evaluation may be of images that are no longer errors.
        for file in folder.glob(f"{Path(name).stem}.[0-9]*.jpg"):
            file.unlink()
    for (one, error, face), heat, row, index in zip(found, maps, probabilities, given, strict=True):
        stem = f"{Path(one['table']).stem}.{one['errors'].index(error) + 1}"
        error["face"] = _write_jpeg(folder / f"{stem}.face.jpg", face)
        if abs(row[index] - error["probability"]) > SAME_PROBABILITY:
            one["no_pictures"] = (
                f"the checkpoint of step {step} predicts otherwise than this table; evaluate again"
            )
            continue
        error["heatmap"] = _write_jpeg(folder / f"{stem}.jpg", overlay(face, heat))
        kept[one["table"]].append(error | {"checkpoint": step, "map": heat.tolist()})
    for name, rows in kept.items():
        text = json.dumps(rows, indent=1) + "\n"
        storage.write_atomically((folder / name).with_suffix(".json"), text)


def _faces(one: dict[str, Any], data_dir: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Returns the set's errors whose images are in the dataset, with the images."""
    try:
        records = open_records(one["dataset"], one["split"], data_dir)
    except InputError as error:
        one["no_pictures"] = str(error)
        return []
    rows = {str(key): row for row, key in enumerate(records.columns["record_id"])}
    found = [error for error in one["errors"] if error["record_id"] in rows]
    if len(found) < len(one["errors"]):
        one["no_pictures"] = "some of these records are no longer in the dataset"
    return [(error, records.image(rows[error["record_id"]])) for error in found]


def _write_jpeg(file: Path, image: np.ndarray) -> str:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"could not encode an image of shape {image.shape}")
    storage.write_atomically(file, data.tobytes(), durable=False)
    return file.name
