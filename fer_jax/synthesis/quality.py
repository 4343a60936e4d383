"""The filter of synthetic faces: quality gates, near-duplicates, and counts of the reasons."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from fer_jax.data.audit import duplicates
from fer_jax.errors import InputError
from fer_jax.media import faces
from fer_jax.media.faces import Detector

# The published gates beside `faces.PUBLISHED_CONTRAST` and `faces.PUBLISHED_SHARPNESS`.
PUBLISHED_SIZE = 256
PUBLISHED_FACE_SHARE = (0.1, 0.9)

# Two images of one seed are duplicates from this correlation on: two photographs of one person in
# one session with two expressions reach 0.97 (jaffe).
SAME_SEED_CORRELATION = 0.99

Tally = collections.Counter[tuple[str, str]]  # of (class, reason); the reason "" is acceptance


class Gates(NamedTuple):
    """Limits that an image must pass; 0 accepts everything."""

    size: float = PUBLISHED_SIZE  # least pixels a side
    contrast: float = faces.PUBLISHED_CONTRAST  # least standard deviation of the grey levels
    sharpness: float = faces.PUBLISHED_SHARPNESS  # least variance of the Laplacian
    # Least and largest share of the image that the face's box covers.
    face_share: tuple[float, float] = PUBLISHED_FACE_SHARE
    one_face: bool = True  # whether there must be exactly one face; else at least one


class FaceQuality(NamedTuple):
    """Measures of a whole image, and its largest face; the units are those of `Gates`."""

    size: float
    contrast: float
    sharpness: float
    num_faces: int  # -1 without a detector
    face_share: float  # of the largest face; NaN without a detector
    # uint8 RGB [s, s, 3], the largest face, aligned as records are; None without a face.
    crop: np.ndarray | None


def assess(image: np.ndarray, detector: Detector | None) -> FaceQuality:
    """Measures an image, uint8 RGB [h, w, 3], and crops its largest face, or its centre square."""
    measured = faces.measure(image) | {"size": float(min(image.shape[:2]))}
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    found = faces.detect_and_crop(bgr, detector, faces.ALL_FACES)
    if not found:
        return FaceQuality(**measured, num_faces=0, face_share=0.0, crop=None)
    face, crop = found[0]
    if detector is None:
        return FaceQuality(**measured, num_faces=-1, face_share=np.nan, crop=crop)
    x, y, width, height = face.box
    across = min(x + width, image.shape[1]) - max(x, 0.0)
    down = min(y + height, image.shape[0]) - max(y, 0.0)
    share = max(across, 0.0) * max(down, 0.0) / (image.shape[0] * image.shape[1])
    return FaceQuality(**measured, num_faces=len(found), face_share=share, crop=crop)


def rejection_reason(found: FaceQuality, gates: Gates) -> str | None:
    """Returns the first gate that an image fails, or None."""
    failed = faces.gate(
        found._asdict(), size=gates.size, contrast=gates.contrast, sharpness=gates.sharpness
    )
    if failed or found.num_faces < 0:
        return failed
    if not found.num_faces:
        return "no face"
    if gates.one_face and found.num_faces > 1:
        return "several faces"
    least, largest = gates.face_share
    if found.face_share < least:
        return f"face below {least:.0%} of the picture"
    if found.face_share > largest:
        return f"face above {largest:.0%} of the picture"
    return None


def quality_score(found: FaceQuality) -> float:
    """Returns the smaller of contrast and sharpness, as shares of the published thresholds."""
    return min(
        found.contrast / faces.PUBLISHED_CONTRAST, found.sharpness / faces.PUBLISHED_SHARPNESS
    )


def check_gates(gates: Gates, resolution: int) -> None:
    """Refuses gates that no image of a network can pass."""
    for name in ("size", "contrast", "sharpness"):
        value = getattr(gates, name)
        if not 0 <= value < float("inf"):
            raise InputError(f"--min_{name} must be at least 0, got {value}")
    least, largest = gates.face_share
    if not 0 <= least < largest <= 1:
        raise InputError(f"--face_share must be LEAST,MOST in [0, 1], got {least:g},{largest:g}")
    if resolution < gates.size:
        raise InputError(
            f"the network generates images of {resolution} px and --min_size is {gates.size:g}: "
            f"none would be accepted; give --min_size={resolution} or less"
        )


class DuplicateIndex:
    """The accepted images, to find near-duplicates of them among new ones."""

    def __init__(self) -> None:
        self._codes = np.empty((0, 0), np.uint64)
        self._thumbnails: list[np.ndarray] = []
        self._seeds: list[int] = []

    def has_duplicate(self, image: np.ndarray, seed: int) -> bool:
        """Whether an image, uint8 RGB [s, s, 3], is a near-duplicate of one in the index.

        Candidates with similar perceptual hashes are compared on their pixels. Images of one seed
        show one face, perhaps with two expressions, so they must be more similar.
        """
        thumbnail = duplicates.thumbnail(image)
        if not self._seeds or thumbnail.std() < duplicates.BLANK:
            return False
        codes, known = _codes(thumbnail), self._codes[: len(self._seeds)]
        distances, columns, swapped = duplicates.closest_windows(
            known, np.broadcast_to(codes, known.shape)
        )
        for index in np.flatnonzero(distances <= duplicates.MAX_DISTANCE).tolist():
            pair = (self._thumbnails[index], thumbnail)
            window, whole = pair[::-1] if swapped[index] else pair
            same_seed = self._seeds[index] == seed
            if same_seed:
                same = duplicates.correlation(*pair) >= SAME_SEED_CORRELATION
            else:
                similarity = duplicates.similarity(window, whole, int(columns[index]))
                same = similarity >= duplicates.MIN_SIMILARITY
            if same:
                return True
        return False

    def add(self, image: np.ndarray, seed: int) -> None:
        """Adds an image, uint8 RGB [s, s, 3]."""
        thumbnail = duplicates.thumbnail(image)
        codes, count = _codes(thumbnail), len(self._seeds)
        if count == len(self._codes):
            # Doubled, so that a face costs the same however many there are.
            larger = np.zeros((max(16, 2 * count), len(codes)), np.uint64)
            larger[:count] = self._codes.reshape(count, len(codes))
            self._codes = larger
        self._codes[count] = codes
        self._thumbnails.append(thumbnail)
        self._seeds.append(seed)


def _codes(thumbnail: np.ndarray) -> np.ndarray:
    """Returns the hashes of an image, its own first, and of its mirror image: uint64 [k]."""
    return np.concatenate(duplicates.perceptual_hashes(thumbnail[None]))


def filter_table(tally: Tally, classes: Sequence[str]) -> list[list[str]]:
    """Counts per class the candidates, the accepted ones, and the others by reason.

    Returns rows of cells: a header, the classes, others in the tally, and the sums; the commonest
    reasons come first.
    """
    reasons = collections.Counter[str]()
    for (_, reason), count in tally.items():
        reasons[reason] += count
    accepted = reasons.pop("", 0)
    names = sorted(reasons, key=lambda name: (-reasons[name], name))
    others = sorted({label for label, _ in tally} - set(classes))
    rows = [["class", "judged", "kept", *names]]
    for label in [*classes, *others]:
        counts = [tally[label, name] for name in ("", *names)]
        rows.append([label or "(none)", str(sum(counts)), *map(str, counts)])
    sums = [accepted, *(reasons[name] for name in names)]
    return [*rows, ["all", str(sum(sums)), *map(str, sums)]]
