"""Faces in images: detection, alignment to one framing, gates, tracking.

The framing is that of published datasets of tight crops, so that all datasets look alike to the
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

from fer_jax import storage
from fer_jax.errors import InputError, did_you_mean
from fer_jax.schema import MAX_IMAGE_SIZE

DETECTORS = ("yunet", "haar", "boxes", "none")
CHOICES = ("largest", "all", "tracked")

# The detector of OpenCV's zoo (MIT).
YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_URL = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/"
    f"face_detection_yunet/{YUNET_FILE}"
)
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
YUNET_MAX_BYTES = 4 * 2**20
DOWNLOAD_TIMEOUT_S = 30

MIN_SCORE = 0.6
MAX_OVERLAP = 0.3  # of two faces (intersection over union)
MAX_BOX_COORDINATE = 1e6  # pixels
# Images are searched with this many pixels at their longer side. Smaller images are enlarged,
# because faces are missed there (48 px crops: 0.75 against 0.96). At 640 all 23 faces of the press
# photos are found; 1024 also finds faces of a fiftieth of the image, in 2.7 times the time.
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
    """A detected face.

    Attributes:
      box: (x, y, width, height) in pixels of the image.
      score: of the detector, 0 to 1; 1 if it has none.
      landmarks: float32 [5, 2], eyes, nose, corners of the mouth as (x, y) in pixels, the left
        ones of the image first; None if the detector has none.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: np.ndarray | None


# (uint8 BGR image, pixels of the longer side at which it is searched) -> faces
Detector = Callable[[np.ndarray, int], list[Face]]


def detector_model(given: str) -> Path:
    """Returns the file of the YuNet detector: the given one, the cached one, or downloads it.

    The cache is ~/.cache/fer_jax (XDG_CACHE_HOME). A download is checked by its SHA-256.

    Raises:
      InputError: no such file, or it could not be downloaded.
    """
    if given:
        if not Path(given).is_file():
            raise InputError(f"--detector_model '{given}' does not exist")
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fer_jax"
    file = cache / YUNET_FILE
    if file.is_file() and _is_yunet(file.read_bytes()):
        return file
    remedy = f"download {YUNET_FILE} to {cache}, or name it with --detector_model=FILE"
    try:
        with urllib.request.urlopen(YUNET_URL, timeout=DOWNLOAD_TIMEOUT_S) as response:
            data = response.read(YUNET_MAX_BYTES)
        if not _is_yunet(data):
            raise InputError(f"{YUNET_URL} has another file than the known detector; {remedy}")
        storage.write_atomically(file, data)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise InputError(
            f"the face detector could not be downloaded ({reason}); {remedy}"
        ) from error
    return file


def _is_yunet(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == YUNET_SHA256


def yunet(model: Path) -> Detector:
    """Returns the YuNet detector (Wu et al. 2023) in OpenCV; one network per thread.

    Raises:
      InputError: the file is not this network.
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
    """Returns OpenCV's cascade of frontal faces (Viola and Jones 2001)."""
    # OpenCV's type stubs lack this attribute.
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
    """Returns an image at the size at which it is searched, and its scale.

    The longer side has at most `largest` pixels; it is enlarged to at least `SEARCHED_SIZE`.
    """
    longest = max(image.shape[:2])
    scale = min(max(longest, SEARCHED_SIZE), largest) / longest
    if scale == 1:
        return image, 1.0
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, size, interpolation=interpolation), scale


def read_boxes(file: Path) -> dict[tuple[str, int], list[Face]]:
    """Reads annotated boxes: {(file, frame): faces}.

    Args:
      file: a CSV with file (its name, or the end of its path where names occur twice), x, y,
        width, height in pixels, and frame_index for videos (default 0); rows whose `ignore` is 1
        are left out.

    Raises:
      InputError: not a CSV, missing columns, or an invalid box; names the line.
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
        where = f"{file}, line {number}"
        if row.get("ignore") == "1":
            continue
        try:
            x, y, width, height = (float(row[key]) for key in ("x", "y", "width", "height"))
            frame = int(row.get("frame_index") or 0)
        except ValueError as error:
            raise InputError(f"{where}: not a box") from error
        if not (0 < width < MAX_BOX_COORDINATE and 0 < height < MAX_BOX_COORDINATE):
            raise InputError(f"{where}: box width and height must be positive and finite")
        if not (abs(x) < MAX_BOX_COORDINATE and abs(y) < MAX_BOX_COORDINATE):
            raise InputError(f"{where}: box coordinates are out of range")
        boxes.setdefault((row["file"], frame), []).append(Face((x, y, width, height), 1.0, None))
    return boxes


@functools.lru_cache(maxsize=4)
def make_detector(name: str, model: str) -> Detector:
    """Returns the detector "yunet" or "haar".

    Raises:
      InputError: unknown detector, or its file is not available.
    """
    if name == "yunet":
        return yunet(detector_model(model))
    if name == "haar":
        return haar()
    raise InputError(f"unknown detector '{name}'{did_you_mean(name, DETECTORS)}")


def align(image: np.ndarray, face: Face, *, margin: float = 0.0) -> np.ndarray:
    """Crops a face, upright and in the one framing; it is reduced, never enlarged.

    Landmarks are mapped to the mean face by the similarity with the least squares (Umeyama 1991).
    Without landmarks, the crop is the square about the box's centre with the box's longer side,
    which is about the same framing for boxes of YuNet and Haar.

    Args:
      image: uint8 [height, width, 3].
      margin: share by which the side of the crop grows.

    Returns:
      uint8 [s, s, 3], s at most 256 and at most the crop's side in pixels of the image; the
      border is repeated outside the image.
    """
    if face.landmarks is None:
        x, y, width, height = face.box
        # An axis of the crop in the image, as long as its side, and its centre.
        axis = np.array([max(width, height), 0.0])
        # Coordinates are of pixel centres; the edges of a box are half a pixel further out.
        centre = np.array([x + (width - 1) / 2, y + (height - 1) / 2])
    else:
        unit, origin = _similarity(MEAN_FACE, face.landmarks)
        axis = unit * CROP_SIDE
        centre = origin + _rotated(unit, *CROP_CENTRE)
    axis = axis * (1 + margin)
    side = float(np.hypot(*axis))
    size = max(1, min(MAX_IMAGE_SIZE, round(side)))
    # The surroundings are reduced first, because a warp alone would alias.
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
            # The centre of a block of r pixels is (r - 1) / 2 from its first pixel centre.
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


def _rotated(unit: np.ndarray, x: float, y: float) -> np.ndarray:
    """Maps (x, y) to the frame whose first axis is `unit`."""
    return np.array([x * unit[0] - y * unit[1], x * unit[1] + y * unit[0]])


def _similarity(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits a similarity without mirroring; returns the images of the axis (1, 0) and of (0, 0)."""
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    s, t = source - source_mean, target - target_mean
    unit = np.array(
        [np.sum(s * t), np.sum(s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0])], np.float64
    ) / np.sum(s * s)
    return unit, target_mean - _rotated(unit, *source_mean)


def measure(crop: np.ndarray) -> dict[str, float]:
    """Measures a crop, uint8 [s, s, 3], for the gates.

    Returns:
      `size` (pixels a side), `contrast` (standard deviation of the grey levels) and
      `sharpness` (variance of the Laplacian).
    """
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    # 16 bits hold every value of the Laplacian; OpenCV's function is 15 times as fast as NumPy's.
    contrast, deviation = (
        float(cv2.meanStdDev(values)[1][0, 0]) for values in (grey, cv2.Laplacian(grey, cv2.CV_16S))
    )
    return {"size": float(len(crop)), "contrast": contrast, "sharpness": deviation**2}


def gate(
    measured: Mapping[str, float], *, size: float, contrast: float, sharpness: float
) -> str | None:
    """Returns why a face is refused, or None; a limit of 0 accepts everything."""
    for name, limit in (("size", size), ("contrast", contrast), ("sharpness", sharpness)):
        if measured[name] < limit:
            return f"{name} below {limit:g}"
    return None


def track(frames: list[list[Face]]) -> list[int | None]:
    """Tracks faces through a clip by `follow` and selects the track with the most frames.

    Of tracks with equal length the one with the larger faces is selected.

    Args:
      frames: the faces of each frame, in order.

    Returns:
      For each frame the index of the selected face, or None.
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
    """Matches faces to earlier ones.

    A face matches the nearest earlier one within that one's size, if neither is twice as large as
    the other. The nearest pairs are matched first, and no face is matched twice.

    Args:
      before: where each face was last.
      found: where faces are now.

    Returns:
      {index in `found`: index in `before`}, without new faces.
    """
    pairs = []
    for number, old in enumerate(before):
        for index, face in enumerate(found):
            distance = _distance(old.box, face.box)
            if distance < 1:
                pairs.append((distance, number, index))
    followed: dict[int, int] = {}
    for _, number, index in sorted(pairs):
        if index not in followed and number not in followed.values():
            followed[index] = number
    return followed


def _distance(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Distance of two boxes' centres in sizes of the first; infinite if the sizes differ by 2."""
    size, other = (max(box[2], box[3]) for box in (a, b))
    if not 0.5 < other / size < 2:
        return float("inf")
    x, y = (a[i] + a[i + 2] / 2 - b[i] - b[i + 2] / 2 for i in range(2))
    return float(np.hypot(x, y)) / size
