"""Pictures to faces: found, chosen, aligned to one framing, measured.

The framing is that of the published sets of tight crops, so that all sources look alike to the
network. On FER2013 and CK+ (48 px) the median distance between the eyes is 0.38 of the crop's
side, and the eyes lie at 0.38 of its height.
"""

import csv
import functools
import hashlib
import http.client
import os
import threading
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from fer_jax.errors import InputError, did_you_mean
from fer_jax.schema import MAX_IMAGE_SIZE

DETECTORS = ("yunet", "haar", "boxes", "none")
CHOICES = ("largest", "all", "tracked")

# The detector of OpenCV's zoo (MIT), where it is published, and what it must be.
YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_URL = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/"
    f"face_detection_yunet/{YUNET_FILE}"
)
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
YUNET_MAX_BYTES = 4 * 2**20
FETCH_TIMEOUT_S = 30

MIN_SCORE = 0.6
MAX_OVERLAP = 0.3  # of two faces (intersection over union)
FARTHEST = 1e6  # pixels; a box that somebody drew ends before
# Pictures are searched with so many pixels at their longer side: in smaller ones faces are missed
# (48 px crops: 0.75 against 0.96), larger ones cost time that only small faces are worth. At 640
# all 23 faces of the press photos are found, at 1024 a face of a fiftieth of the picture is, for
# 2.7 times the time.
SEARCHED_SIZE = 256
LARGE_FACES, ALL_FACES = 640, 1024

# The mean face of aligned crops, in distances between the eyes, from the point between them:
# eyes, nose, corners of the mouth. Medians over JAFFE, FER2013, LFW and CK+.
MEAN_FACE = np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.57], [-0.41, 1.01], [0.41, 1.01]])
CROP_SIDE = 1 / 0.38  # of a tight crop, in distances between the eyes
CROP_CENTRE = (0.0, (0.5 - 0.38) * CROP_SIDE)

# The published gates for a face worth training on (grey levels, variance of the Laplacian).
PUBLISHED_CONTRAST = 20.0
PUBLISHED_SHARPNESS = 100.0


class Face(NamedTuple):
    """A face that was found.

    Attributes:
      box: (x, y, width, height) in pixels of the picture.
      score: the detector's, 0 to 1; 1 where it gives none.
      landmarks: float32 [5, 2], eyes, nose, corners of the mouth as (x, y) in pixels, the
        picture's left ones first; None where the detector gives none.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: np.ndarray | None


# (a picture, the longer side it is searched at) -> its faces
Detector = Callable[[np.ndarray, int], list[Face]]


def detector_model(given: str) -> Path:
    """The file of the YuNet detector: the given one, the one kept from before, or fetched.

    Args:
      given: a path, or "" for ~/.cache/fer_jax (XDG_CACHE_HOME), which is filled once from
        OpenCV's zoo and checked against the known SHA-256.

    Raises:
      InputError: no such file; or it could not be fetched, or what came is another file.
    """
    if given:
        if not Path(given).is_file():
            raise InputError(f"--detector_model '{given}' does not exist")
        return Path(given)
    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fer_jax"
    file = kept / YUNET_FILE
    if file.is_file() and _is_yunet(file.read_bytes()):
        return file
    remedy = f"fetch {YUNET_FILE} by hand into {kept}, or name it with --detector_model=FILE"
    try:
        with urllib.request.urlopen(YUNET_URL, timeout=FETCH_TIMEOUT_S) as answer:
            data = answer.read(YUNET_MAX_BYTES)
        if not _is_yunet(data):
            raise InputError(f"what {YUNET_URL} sent is not the known detector; {remedy}")
        kept.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(data)
        temporary.replace(file)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise InputError(f"the face detector could not be fetched ({reason}); {remedy}") from error
    return file


def _is_yunet(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == YUNET_SHA256


def yunet(model: Path) -> Detector:
    """The YuNet detector (Wu et al. 2023) through OpenCV; one network per thread.

    Raises:
      InputError: the file is no such network.
    """
    networks = threading.local()

    def network() -> cv2.FaceDetectorYN:
        if not hasattr(networks, "one"):
            networks.one = cv2.FaceDetectorYN.create(
                str(model), "", (320, 320), MIN_SCORE, MAX_OVERLAP
            )
        return networks.one

    def detect(image: np.ndarray, size: int) -> list[Face]:
        small, scale = searched(image, size)
        network().setInputSize((small.shape[1], small.shape[0]))
        rows = network().detect(small)[1]
        return [
            Face(
                (x / scale, y / scale, w / scale, h / scale),
                float(score),
                np.reshape(points, (5, 2)) / np.float32(scale),
            )
            for x, y, w, h, *points, score in ([] if rows is None else rows)
        ]

    try:
        detect(np.zeros((64, 64, 3), np.uint8), LARGE_FACES)
    except cv2.error as error:
        raise InputError(f"'{model}' is not the YuNet detector") from error
    return detect


def haar() -> Detector:
    """The cascade of frontal faces that comes with OpenCV (Viola and Jones 2001)."""
    # Its folder is an attribute that the type stubs of OpenCV do not know.
    folder = getattr(cv2, "data").haarcascades  # noqa: B009 (see above)
    cascades = threading.local()

    def detect(image: np.ndarray, size: int) -> list[Face]:
        if not hasattr(cascades, "one"):
            cascades.one = cv2.CascadeClassifier(folder + "haarcascade_frontalface_default.xml")
        small, scale = searched(image, size)
        grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        found = cascades.one.detectMultiScale(grey, 1.1, 5, minSize=(24, 24))
        return [
            Face((x / scale, y / scale, w / scale, h / scale), 1.0, None) for x, y, w, h in found
        ]

    return detect


def searched(image: np.ndarray, largest: int) -> tuple[np.ndarray, float]:
    """A picture at the size at which it is searched.

    Args:
      image: uint8 [height, width, 3].
      largest: pixels of the longer side at most; smaller ones than `SEARCHED_SIZE` are enlarged.

    Returns:
      (uint8 [h, w, 3], h / height).
    """
    longest = max(image.shape[:2])
    scale = min(max(longest, SEARCHED_SIZE), largest) / longest
    if scale == 1:
        return image, 1.0
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=interpolation), scale


def read_boxes(file: Path) -> dict[tuple[str, int], list[Face]]:
    """Boxes drawn by somebody: (file, frame) -> faces.

    Args:
      file: a CSV with file (its name, or the end of its path where names occur twice), x, y,
        width, height in pixels, and frame_index for videos (0 where it is absent); a row whose
        `ignore` is 1 is left out.

    Raises:
      InputError: no CSV, missing columns, or a row that is no box; names the line.
    """
    if not file.is_file():
        raise InputError(f"--boxes '{file}' does not exist")
    boxes: dict[tuple[str, int], list[Face]] = {}
    with file.open(newline="", encoding="utf-8-sig") as text:
        reader = csv.DictReader(text, restval="")
        try:
            missing = {"file", "x", "y", "width", "height"} - set(reader.fieldnames or ())
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"'{file}' is not a CSV in UTF-8") from error
    if missing:
        raise InputError(f"'{file}' lacks the columns {', '.join(sorted(missing))}")
    for number, row in enumerate(rows, 2):
        if row.get("ignore") == "1":
            continue
        try:
            x, y, width, height = (float(row[key]) for key in ("x", "y", "width", "height"))
            frame = int(row.get("frame_index") or 0)
        except ValueError as error:
            raise InputError(f"{file}, line {number}: not a box") from error
        if not (0 < width < FARTHEST and 0 < height < FARTHEST):
            raise InputError(f"{file}, line {number}: a box without area, or without end")
        if not (abs(x) < FARTHEST and abs(y) < FARTHEST):
            raise InputError(f"{file}, line {number}: a box nowhere")
        boxes.setdefault((row["file"], frame), []).append(Face((x, y, width, height), 1.0, None))
    return boxes


@functools.lru_cache(maxsize=4)
def make_detector(name: str, model: str) -> Detector:
    """The detector of a name; `boxes` and `none` need no picture and are not made here.

    Raises:
      InputError: no such detector, or its file is not to be had.
    """
    if name == "yunet":
        return yunet(detector_model(model))
    if name == "haar":
        return haar()
    raise InputError(f"no detector '{name}'{did_you_mean(name, DETECTORS)}")


def align(image: np.ndarray, face: Face, *, margin: float = 0.0) -> np.ndarray:
    """Cuts a face out, upright and in the one framing; it is reduced, never enlarged.

    With landmarks by the similarity that brings them closest to the mean face (least squares,
    Umeyama 1991); without, the square about the box's centre with the box's longer side, which
    for YuNet's and Haar's boxes is about the same framing.

    Args:
      image: uint8 [height, width, 3].
      face: in it.
      margin: the crop's side grows by this share.

    Returns:
      uint8 [s, s, 3], s at most 256 and at most the crop's side in pixels of the picture;
      beyond the picture its border goes on.
    """
    if face.landmarks is None:
        x, y, width, height = face.box
        # One axis of the crop in the picture, as long as its side, and its centre.
        axis = np.array([max(width, height), 0.0])
        # Of pixels counted from 0 at their centres: the box's edges lie half a pixel further out.
        centre = np.array([x + (width - 1) / 2, y + (height - 1) / 2])
    else:
        unit, origin = _similarity(MEAN_FACE, face.landmarks)
        axis = unit * CROP_SIDE
        centre = origin + _turned(unit, *CROP_CENTRE)
    axis = axis * (1 + margin)
    side = float(np.hypot(*axis))
    size = max(1, min(MAX_IMAGE_SIZE, round(side)))
    # A coarse picture of the surroundings first: a warp alone would alias what it reduces.
    reduction = max(1, int(side / size))
    if reduction > 1:
        reach = side * 0.75 + reduction
        left, top = np.maximum(np.floor(centre - reach).astype(int), 0) // reduction * reduction
        right, bottom = np.ceil(centre + reach).astype(int)
        part = image[top : max(bottom, top + reduction), left : max(right, left + reduction)]
        if part.size:
            height, width = (max(1, length // reduction) for length in part.shape[:2])
            part = part[: height * reduction, : width * reduction]
            image = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
            # Pixel centres: of a block of r pixels the middle is (r - 1) / 2 from the first.
            centre = (centre - (left, top) - (reduction - 1) / 2) / reduction
            axis = axis / reduction
    step = axis / size
    matrix = np.empty((2, 3))
    matrix[:, 0], matrix[:, 1] = step, (-step[1], step[0])
    matrix[:, 2] = centre - matrix[:, :2] @ np.full(2, (size - 1) / 2)
    return cv2.warpAffine(
        image,
        matrix,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def crop(image: np.ndarray, face: Face, *, margin: float = 0.0) -> np.ndarray:
    """Aligns a face of a uint8 BGR picture as `align` does and returns it in RGB."""
    return cv2.cvtColor(align(image, face, margin=margin), cv2.COLOR_BGR2RGB)


def largest_first(found: Iterable[Face]) -> list[Face]:
    """Sorts faces by the area of their boxes."""
    return sorted(found, key=lambda face: -face.box[2] * face.box[3])


def is_outside(image: np.ndarray, face: Face) -> bool:
    """Whether no part of a face's box lies inside the picture."""
    x, y, width, height = face.box
    return x >= image.shape[1] or y >= image.shape[0] or x + width <= 0 or y + height <= 0


def _turned(unit: np.ndarray, x: float, y: float) -> np.ndarray:
    """(x, y) in the frame whose first axis is `unit`."""
    return np.array([x * unit[0] - y * unit[1], x * unit[1] + y * unit[0]])


def _similarity(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares without mirroring: where (1, 0) goes, without and (0, 0) with the shift."""
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    s, t = source - source_mean, target - target_mean
    unit = np.array(
        [np.sum(s * t), np.sum(s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0])], np.float64
    ) / np.sum(s * s)
    return unit, target_mean - _turned(unit, *source_mean)


def measure(crop: np.ndarray) -> dict[str, float]:
    """What the gates look at.

    Args:
      crop: uint8 [s, s, 3].

    Returns:
      `size` (pixels a side), `contrast` (standard deviation of the grey levels) and
      `sharpness` (variance of the Laplacian).
    """
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    # In 16 bits, which hold every value of the Laplacian, and by OpenCV: 15 times as fast.
    contrast, deviation = (
        float(cv2.meanStdDev(values)[1][0, 0]) for values in (grey, cv2.Laplacian(grey, cv2.CV_16S))
    )
    return {"size": float(len(crop)), "contrast": contrast, "sharpness": deviation**2}


def gate(
    measured: Mapping[str, float], *, size: float, contrast: float, sharpness: float
) -> str | None:
    """Why a face is not good enough, or None; a limit of 0 lets everything through."""
    for name, limit in (("size", size), ("contrast", contrast), ("sharpness", sharpness)):
        if measured[name] < limit:
            return f"{name} below {limit:g}"
    return None


def track(frames: list[list[Face]]) -> list[int | None]:
    """Follows faces through a clip and picks the one that is there most.

    A face goes on in the next frame as `follow` says. Among the tracks the one in the most frames
    wins, of equals the one with the larger faces.

    Args:
      frames: the faces found in each frame, in order.

    Returns:
      For each frame the number of the picked face among its faces, or None.
    """
    tracks: list[dict[int, int]] = []  # frame -> face
    for frame, found in enumerate(frames):
        before = [frames[max(one)][one[max(one)]] for one in tracks]
        followed = follow(before, found)
        for index, number in followed.items():
            tracks[number][frame] = index
        tracks += [{frame: i} for i in range(len(found)) if i not in followed]

    def weight(one: dict[int, int]) -> tuple[int, float]:
        return len(one), sum(frames[frame][i].box[2] for frame, i in one.items())

    best = max(tracks, key=weight, default={})
    return [best.get(frame) for frame in range(len(frames))]


def follow(before: Sequence[Face], found: Sequence[Face]) -> dict[int, int]:
    """Which faces are the same as earlier ones.

    A face goes on as the nearest one no further away than its own size and of less than twice or
    half that size; the nearest pairs come first, and none is used twice.

    Args:
      before: where each was when it was last seen.
      found: where faces are now.

    Returns:
      {number in `found`: number in `before`}; those that are new are not in it.
    """
    pairs = []
    for number, old in enumerate(before):
        for index, face in enumerate(found):
            distance = _apart(old.box, face.box)
            if distance < 1:
                pairs.append((distance, number, index))
    followed: dict[int, int] = {}
    for _, number, index in sorted(pairs):
        if index not in followed and number not in followed.values():
            followed[index] = number
    return followed


def _apart(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Distance of two boxes' centres in sizes of the first; infinite if their sizes differ."""
    size, other = (max(box[2], box[3]) for box in (a, b))
    if not 0.5 < other / size < 2:
        return float("inf")
    x, y = (a[i] + a[i + 2] / 2 - b[i] - b[i + 2] / 2 for i in range(2))
    return float(np.hypot(x, y)) / size
