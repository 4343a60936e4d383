"""Faces in images: alignment to one framing, gates, tracking.

The framing is that of published datasets of tight crops, so that all datasets look alike to the
network. On FER2013 and CK+ (48 px) the median distance between the eyes is 0.38 of the crop's
side, and the eyes lie at 0.38 of its height.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from fer_jax import storage
from fer_jax.errors import InputError
from fer_jax.media import images
from fer_jax.schema import MAX_IMAGE_SIZE

CHOICES = ("largest", "all", "tracked")

MAX_BOX_COORDINATE = 1e6  # pixels

# The longer side in pixels at which images are searched. At 640 all 23 faces of the press photos
# are found; 1024 also finds faces of a fiftieth of the image, in 2.7 times the time.
LARGE_FACES, ALL_FACES = 640, 1024

# The mean face of aligned crops, in distances between the eyes, from the point between them:
# eyes, nose, corners of the mouth. Medians over JAFFE, FER2013, LFW and CK+.
MEAN_FACE = np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.57], [-0.41, 1.01], [0.41, 1.01]])
CROP_SIDE = 1 / 0.38  # of a tight crop, in distances between the eyes
CROP_CENTRE = (0.0, (0.5 - 0.38) * CROP_SIDE)

LOOK_SIZE, LOOK_LEVEL = 32, 100  # pixels a side, and their mean value
# Of eight people in clips, 0.631 was the largest overlap across a cut to another person; of one
# person a tenth of a clip apart 1 % of the overlaps were below 0.641.
SAME_LOOK = 0.64

# The published gates for a face worth training on (grey levels, variance of the Laplacian).
PUBLISHED_CONTRAST = 20.0
PUBLISHED_SHARPNESS = 100.0


class Face(NamedTuple):
    """A detected face."""

    box: tuple[float, float, float, float]  # x, y, width, height in pixels of the image
    score: float  # of the detector, 0 to 1; 1 if it has none
    # float32 [5, 2], eyes, nose, corners of the mouth as (x, y) in pixels, the left ones of the
    # image first; None if the detector has none.
    landmarks: np.ndarray | None
    look: np.ndarray | None = None  # int64 [2, 1024], the colours of the face and of the picture


# (uint8 BGR image, the longer side in pixels at which it is searched) -> faces
Detector = Callable[[np.ndarray, int], list[Face]]


def read_boxes(file: Path) -> dict[tuple[str, int], list[Face]]:
    """Reads annotated boxes: {(file, frame): faces}.

    The CSV has file (its name, or the end of its path where names occur twice), x, y, width, height
    in pixels, and frame_index for videos (default 0); rows whose `ignore` is 1 are left out. Raises
    InputError if it is not a CSV, or for missing columns or an invalid box; names the line.
    """
    if not file.is_file():
        raise InputError(f"--boxes '{file}' does not exist")
    boxes: dict[tuple[str, int], list[Face]] = {}
    header, rows = storage.read_rows(file.read_bytes(), str(file))
    if missing := {"file", "x", "y", "width", "height"} - set(header):
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


def align(image: np.ndarray, face: Face, *, margin: float = 0.0) -> np.ndarray:
    """Crops a face of uint8 [height, width, 3], upright and in the one framing, never enlarged.

    Landmarks are mapped to the mean face by the similarity with the least squares (Umeyama 1991).
    Without landmarks, the crop is the square about the box's centre with the box's longer side,
    which is about the same framing for boxes of YuNet and Haar. Its side grows by the share
    `margin`. Returns uint8 [s, s, 3], s at most 256 and at most the crop's side in pixels of the
    image; the border is repeated outside the image.
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


def detect_and_crop(
    image: np.ndarray, detect: Detector | None, size: int, *, margin: float = 0.0
) -> list[tuple[Face, np.ndarray]]:
    """Detects and crops the faces of uint8 BGR [height, width, 3], the largest first.

    Without `detect` the image itself is a crop of a face, of which the centre square is used.
    `size` is the longer side, in pixels, at which faces are searched for. Crops of detected faces
    are widened by the share `margin`. Returns each face that is at least partly inside the image,
    with its crop, uint8 RGB [s, s, 3].
    """
    if detect is None:
        centre, box = images.square(image)
        return [(Face(box, 1.0, None), cv2.cvtColor(centre, cv2.COLOR_BGR2RGB))]
    return [
        (face, crop(image, face, margin=margin))
        for face in largest_first(detect(image, size))
        if not is_outside(image, face)
    ]


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

    Returns `size` (pixels a side), `contrast` (standard deviation of the grey levels) and
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


def add_looks(image: np.ndarray, found: Iterable[Face]) -> list[Face]:
    """Returns the faces of a picture, uint8 BGR, with the looks by which a cut is noticed."""
    scene = _colours(image)
    return [face._replace(look=np.stack([_colours(align(image, face)), scene])) for face in found]


def _colours(picture: np.ndarray) -> np.ndarray:
    """Returns the bins in L*a*b* of 32 x 32 pixels of a picture, int64 [1024]."""
    small = cv2.resize(picture, (LOOK_SIZE, LOOK_SIZE), interpolation=cv2.INTER_AREA)
    # A camera that adjusts its exposure changes all values by one factor.
    level = cv2.convertScaleAbs(small, alpha=LOOK_LEVEL / max(1.0, small.mean()))
    lab = cv2.cvtColor(level, cv2.COLOR_BGR2LAB).reshape(-1, 3) // np.asarray([32, 8, 8], np.uint8)
    return lab.astype(np.int64) @ (1024, 32, 1)


def _same_look(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether the histograms of two looks overlap enough, on average of face and picture."""
    if a is None or b is None:
        return True
    one, other = (np.stack([np.bincount(bins, minlength=8192) for bins in x]) for x in (a, b))
    return bool(np.minimum(one, other).sum() / a.size >= SAME_LOOK)


def track(frames: list[list[Face]]) -> list[int | None]:
    """Tracks faces through a clip by `follow` and selects the track with the most frames.

    Of tracks with equal length the one with the larger faces is selected. Returns for each frame
    the index of the selected face, or None.
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
    """Matches faces to earlier ones: {index in `found`: index in `before`}, without new faces.

    A face matches the nearest earlier one within that one's size, if neither is twice as large as
    the other, and they look alike where that is known. The nearest pairs are matched first, and no
    face is matched twice. `before` is where each face was last.
    """
    pairs = []
    for number, old in enumerate(before):
        for index, face in enumerate(found):
            distance = _distance(old.box, face.box)
            if distance < 1 and _same_look(old.look, face.look):
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
