"""Images to aligned faces, or the reason why there is none, as the options of a build say."""

import argparse
import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from fer_jax import storage
from fer_jax.errors import InputError
from fer_jax.media import faces, images
from fer_jax.media.detector import DETECTORS, detector_model, make_detector

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


class Found(NamedTuple):
    """The faces of one image or one frame."""

    item: str  # its name in the ledger
    # The fields that each face adds to a record: "image" (JPEG bytes), "box", "detection_score"
    # and, in clips, "frame_index" and "timestamp"; "_measured" for quality.csv; and, where all
    # faces are used, "_number", its rank by size in the image.
    faces: list[dict[str, Any]]
    reason: str = ""  # why there is no face


@dataclasses.dataclass(frozen=True)
class Extraction:
    """How faces are extracted from clips and images; the options of `add_arguments`."""

    frames: int = 10  # per clip, at equal intervals; 0 where `every` or `seconds` is set
    every: int = 0  # take every k-th frame of a clip
    seconds: float = 0.0  # take one frame of a clip every N seconds
    detector: str = "yunet"  # one of `DETECTORS` of `fer_jax.media.detector`
    detector_model: str = ""  # YuNet's file; "" for the cached or downloaded one
    boxes: str = ""  # the CSV for the detector "boxes"
    choice: str = "largest"  # one of `faces.CHOICES`
    margin: float = 0.0  # share by which the tight crop is widened
    min_size: float = 0.0  # of a face, pixels a side; 0 for any, as in the two below
    min_contrast: float = 0.0  # standard deviation of its grey levels
    min_sharpness: float = 0.0  # variance of its Laplacian
    one_face: bool = False  # use only frames with exactly one face


def add_arguments(parser: argparse.ArgumentParser, *, clips: bool, detector: str) -> None:
    """Adds the options of an `Extraction` to a builder of clips or of images."""
    group = parser.add_argument_group("faces")
    if clips:
        which = group.add_mutually_exclusive_group()
        which.add_argument("--frames", type=int, default=10, help="per clip, at equal intervals")
        which.add_argument("--every", type=int, default=0, help="every k-th frame instead")
        which.add_argument(
            "--seconds", type=float, default=0.0, help="take one frame every N seconds"
        )
    group.add_argument(
        "--detector", default=detector, choices=DETECTORS, help="none: already cropped"
    )
    group.add_argument("--detector_model", default="", help="YuNet's file; default: downloaded")
    group.add_argument(
        "--boxes", default="", help="CSV for --detector=boxes: file,x,y,width,height"
    )
    choices = faces.CHOICES if clips else faces.CHOICES[:2]
    group.add_argument("--choice", default="largest", choices=choices, help="which faces are used")
    group.add_argument("--margin", type=float, default=0.0, help="widens the crop by this share")
    group.add_argument(
        "--min_size",
        type=float,
        default=0.0,
        help="pixels a side; haar takes less time if it is large",
    )
    published = f"published: {faces.PUBLISHED_CONTRAST:g}"
    group.add_argument("--min_contrast", type=float, default=0.0, help=f"grey levels; {published}")
    published = f"published: {faces.PUBLISHED_SHARPNESS:g}"
    group.add_argument("--min_sharpness", type=float, default=0.0, help=f"Laplacian; {published}")
    group.add_argument("--one_face", action="store_true", help="refuse frames with several faces")


def from_arguments(options: argparse.Namespace) -> Extraction:
    """Returns the extraction of parsed options, with the detector's file, or raises InputError."""
    names = [field.name for field in dataclasses.fields(Extraction)]
    extraction = Extraction(**{name: getattr(options, name) for name in names if name in options})
    if extraction.every or extraction.seconds:
        extraction = dataclasses.replace(extraction, frames=0)
    for name in ("frames", "every", "seconds", "min_size", "min_contrast", "min_sharpness"):
        value = getattr(extraction, name)
        if not 0 <= value < math.inf:
            raise InputError(f"--{name} must be at least 0, got {value}")
    if not (extraction.frames or extraction.every or extraction.seconds):
        raise InputError("--frames must be at least 1, got 0")
    if not -0.5 <= extraction.margin <= 4:
        raise InputError(f"--margin must be in -0.5 to 4, got {extraction.margin}")
    if (extraction.detector == "boxes") != bool(extraction.boxes):
        raise InputError("--detector=boxes and --boxes=FILE must be given together")
    # Files may have changed since they were read for an earlier build.
    recorded.cache_clear()
    _boxes.cache_clear()
    if extraction.boxes:
        _boxes(extraction.boxes)
    if extraction.detector in ("yunet", "haar"):
        # Now, so that a missing file does not stop a build half-way.
        if extraction.detector == "yunet":
            try:
                model = detector_model(extraction.detector_model)
            except InputError as error:
                remedy = "--detector=haar needs no file, but misses more faces"
                raise InputError(f"{error}; {remedy}") from error
            extraction = dataclasses.replace(extraction, detector_model=str(model))
        make_detector(extraction.detector, extraction.detector_model)
    return extraction


@functools.lru_cache(maxsize=8)
def recorded(extraction: Extraction) -> dict[str, Any]:
    """Returns the extraction as build.json records it: files by checksum instead of path."""
    known = dataclasses.asdict(extraction)
    for name in ("detector_model", "boxes"):
        if known[name]:
            known[name] = storage.sha256(Path(known[name]))[:16]
    return known


@functools.lru_cache(maxsize=1)
def _boxes(path: str) -> dict[tuple[str, int], list[faces.Face]]:
    return faces.read_boxes(Path(path))


def _annotated(name: str, frame: int, extraction: Extraction) -> list[faces.Face]:
    boxes, parts = _boxes(extraction.boxes), name.split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((boxes[end, frame] for end in ends if (end, frame) in boxes), [])


def annotated(name: str, frame: int, extraction: Extraction, number: int) -> Box:
    """Returns the box of an image's face by its number in the CSV, or raises InputError."""
    found = _annotated(name, frame, extraction)
    if number >= len(found):
        raise InputError(f"no box for its face {number}")
    return found[number].box


def detect_faces(
    image: np.ndarray, name: str, frame: int, extraction: Extraction
) -> list[faces.Face]:
    """Returns the faces of a BGR image, the largest first.

    `name` is its path, which ends as the CSV of boxes names it, and `frame` its index in a clip.
    """
    if extraction.detector == "none":
        left, top, side = images.centre_square(*image.shape[:2])
        return [faces.Face((left, top, side, side), 1.0, None)]
    if extraction.detector == "boxes":
        found = _annotated(name, frame, extraction)
    else:
        # A second face of any size makes an image one of "several faces".
        smallest = 0.0 if extraction.one_face else extraction.min_size
        find = make_detector(extraction.detector, extraction.detector_model, smallest=smallest)
        small_ones_matter = extraction.choice == "all" or extraction.one_face
        found = find(image, faces.ALL_FACES if small_ones_matter else faces.LARGE_FACES)
    return faces.largest_first(found)


def crop_face(
    image: np.ndarray, face: faces.Face, number: int, extraction: Extraction
) -> dict[str, Any]:
    """Returns the fields of a face in a BGR image; "_reason" says why it is refused, or None."""
    pixels = faces.crop(image, face, margin=extraction.margin)
    measured = faces.measure(pixels)
    return {
        "image": images.encode_jpeg(pixels),
        "box": [float(value) for value in face.box],
        "detection_score": face.score,
        "_measured": measured,
        "_number": number if extraction.choice == "all" else None,
        "_reason": "the box is outside the image"
        if faces.is_outside(image, face)
        else faces.gate(
            measured,
            size=extraction.min_size,
            contrast=extraction.min_contrast,
            sharpness=extraction.min_sharpness,
        ),
    }


def accepted_faces(
    item: str, crops: Sequence[dict[str, Any]], num_faces: int, extraction: Extraction
) -> Found:
    """Returns the crops of an image that pass the gates, or the reason why none does."""
    if not num_faces:
        return Found(item, [], "no face")
    if extraction.one_face and num_faces > 1:
        return Found(item, [], "several faces")
    good = [
        {key: value for key, value in face.items() if key != "_reason"}
        for face in crops
        if face["_reason"] is None
    ]
    return Found(item, good, "" if good else crops[0]["_reason"])


def faces_in_image(image: np.ndarray, item: str, name: str, extraction: Extraction) -> Found:
    """Extracts the faces of one image, uint8 RGB [height, width, 3].

    `item` is its name in the ledger, `name` its path, which ends as the CSV of boxes names it.
    """
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    found = detect_faces(bgr, name, 0, extraction)
    used = found if extraction.choice == "all" else found[:1]
    crops = [crop_face(bgr, face, number, extraction) for number, face in enumerate(used)]
    return accepted_faces(item, crops, len(found), extraction)


def face_in_box(image: np.ndarray, item: str, box: Box, extraction: Extraction) -> Found:
    """Crops the face in an annotated box of an image, uint8 RGB [height, width, 3]."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    cut = crop_face(bgr, faces.Face(box, 1.0, None), 0, extraction) | {"_number": None}
    return accepted_faces(item, [cut], 1, extraction)
