"""The filter: which generated pictures are good enough, and why the others are not."""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from fer_jax.data.audit import duplicates
from fer_jax.errors import InputError
from fer_jax.media import faces, images
from fer_jax.media.faces import Detector

# The published gates beside `faces.PUBLISHED_CONTRAST` and `faces.PUBLISHED_SHARPNESS`.
PUBLISHED_SIZE = 256
PUBLISHED_FACE_SHARE = (0.1, 0.9)

# From this likeness on two pictures of one seed are the same picture. Two photographs of one person
# in one session with two expressions reach 0.97 (jaffe).
SAME_SEED_LIKENESS = 0.99
BLANK = 2.0  # a standard deviation below so many grey levels shows nothing to compare

Tally = collections.Counter[tuple[str, str]]  # of (class, reason)


class Gates(NamedTuple):
    """What a picture must have; a limit of 0 lets everything through.

    Attributes:
      size: pixels a side.
      contrast: standard deviation of the grey levels.
      sharpness: variance of the Laplacian.
      face_share: least and largest part of the picture that the face's box covers.
      one_face: whether there must be exactly one face; else at least one.
    """

    size: float = PUBLISHED_SIZE
    contrast: float = faces.PUBLISHED_CONTRAST
    sharpness: float = faces.PUBLISHED_SHARPNESS
    face_share: tuple[float, float] = PUBLISHED_FACE_SHARE
    one_face: bool = True


class Examined(NamedTuple):
    """What the gates look at, measured on the whole picture.

    Attributes:
      size: pixels a side.
      contrast: standard deviation of the grey levels.
      sharpness: variance of the Laplacian.
      num_faces: how many were found; -1 without a detector.
      face_share: of the picture, covered by the largest face's box; NaN without a detector.
      crop: uint8 RGB [s, s, 3], the largest face, aligned as records are; None without a face.
    """

    size: float
    contrast: float
    sharpness: float
    num_faces: int
    face_share: float
    crop: np.ndarray | None


def examine(image: np.ndarray, detector: Detector | None) -> Examined:
    """Measures a picture and cuts its largest face out.

    Args:
      image: uint8 RGB [height, width, 3].
      detector: finds the faces; None: the picture's centre square is the face.
    """
    measured = faces.measure(image) | {"size": float(min(image.shape[:2]))}
    if detector is None:
        return Examined(**measured, num_faces=-1, face_share=np.nan, crop=images.square(image)[0])
    picture = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    found = faces.largest_first(detector(picture, faces.ALL_FACES))
    if not found:
        return Examined(**measured, num_faces=0, face_share=0.0, crop=None)
    crop = faces.crop(picture, found[0])
    share = _covered(found[0].box, image.shape) / (image.shape[0] * image.shape[1])
    return Examined(**measured, num_faces=len(found), face_share=share, crop=crop)


def _covered(box: tuple[float, ...], shape: tuple[int, ...]) -> float:
    """Pixels of the picture inside the box."""
    x, y, width, height = box
    across = min(x + width, shape[1]) - max(x, 0.0)
    down = min(y + height, shape[0]) - max(y, 0.0)
    return max(across, 0.0) * max(down, 0.0)


def refusal(examined: Examined, gates: Gates) -> str | None:
    """Why a picture is not good enough, or None."""
    below = faces.gate(
        examined._asdict(), size=gates.size, contrast=gates.contrast, sharpness=gates.sharpness
    )
    if below or examined.num_faces < 0:
        return below
    if not examined.num_faces:
        return "no face"
    if gates.one_face and examined.num_faces > 1:
        return "several faces"
    least, largest = gates.face_share
    if examined.face_share < least:
        return f"face below {least:.0%} of the picture"
    if examined.face_share > largest:
        return f"face above {largest:.0%} of the picture"
    return None


def margin(examined: Examined) -> float:
    """How many times the tighter of the published gates for contrast and sharpness is cleared.

    1 just passes. Size is left out: it is the same for all pictures of a network.
    """
    return min(
        examined.contrast / faces.PUBLISHED_CONTRAST,
        examined.sharpness / faces.PUBLISHED_SHARPNESS,
    )


def check_gates(gates: Gates, resolution: int) -> None:
    """Refuses gates that nothing can pass.

    Raises:
      InputError: says which, and what to do.
    """
    for name in ("size", "contrast", "sharpness"):
        value = getattr(gates, name)
        if not 0 <= value < float("inf"):
            raise InputError(f"--min_{name} must be at least 0, not {value}")
    least, largest = gates.face_share
    if not 0 <= least < largest <= 1:
        raise InputError(f"--face_share is LEAST,MOST within 0 and 1, not {least:g},{largest:g}")
    if resolution < gates.size:
        raise InputError(
            f"the network makes pictures of {resolution} px and --min_size is {gates.size:g}: none "
            f"would be kept; give --min_size={resolution} or less"
        )


class Kept:
    """The pictures that are kept so far, to find near-duplicates of them among the new ones."""

    def __init__(self) -> None:
        self._codes = np.empty((0, 0), np.uint64)
        self._thumbnails: list[np.ndarray] = []
        self._seeds: list[int] = []

    def is_copy(self, image: np.ndarray, seed: int) -> bool:
        """Whether a picture shows what a kept one shows.

        The perceptual hash proposes, the pixels decide. Two pictures of one seed are of one
        face, which may well wear two expressions: only the same picture is a copy there.

        Args:
          image: uint8 RGB [s, s, 3].
          seed: that it was made from.
        """
        thumbnail = duplicates.thumbnail(image)
        if not self._seeds or thumbnail.std() < BLANK:
            return False
        codes, kept = _codes(thumbnail), self._codes[: len(self._seeds)]
        apart = np.minimum(
            np.bitwise_count(kept[:, :1] ^ codes).min(axis=1),
            np.bitwise_count(kept ^ codes[0]).min(axis=1),
        )
        for index in np.flatnonzero(apart <= duplicates.MAX_DISTANCE).tolist():
            other = self._thumbnails[index]
            mirrored = np.ascontiguousarray(other[:, ::-1])
            alike = max(duplicates.likeness(thumbnail, one) for one in (other, mirrored))
            same_seed = self._seeds[index] == seed
            if alike >= (SAME_SEED_LIKENESS if same_seed else duplicates.SAME_LIKENESS):
                return True
        return False

    def add(self, image: np.ndarray, seed: int) -> None:
        """Keeps a picture, uint8 RGB [s, s, 3]."""
        thumbnail = duplicates.thumbnail(image)
        codes, count = _codes(thumbnail), len(self._seeds)
        if count == len(self._codes):
            larger = np.zeros((max(16, 2 * count), len(codes)), np.uint64)
            if count:
                larger[:count] = self._codes
            self._codes = larger
        self._codes[count] = codes
        self._thumbnails.append(thumbnail)
        self._seeds.append(seed)


def _codes(thumbnail: np.ndarray) -> np.ndarray:
    """Hashes of a picture, its own first, and of its mirror image: uint64 [k]."""
    return np.concatenate(duplicates.perceptual_hashes(thumbnail[None]))


def table(tally: Tally, classes: Sequence[str]) -> list[list[str]]:
    """Per class, how many pictures were judged and kept, and why the others were not.

    Args:
      tally: of (class, reason); the class is "" where nobody knows it, the reason "" where the
        picture is kept.
      classes: the rows, in order; other classes of the tally come after them.

    Returns:
      Lines of words: a header, the classes, and the sums; the commonest reasons come first.
    """
    reasons = collections.Counter[str]()
    for (_, reason), count in tally.items():
        reasons[reason] += count
    kept = reasons.pop("", 0)
    names = sorted(reasons, key=lambda name: (-reasons[name], name))
    others = sorted({label for label, _ in tally} - set(classes))
    lines = [["class", "judged", "kept", *names]]
    for label in [*classes, *others]:
        counts = [tally[label, name] for name in ("", *names)]
        lines.append([label or "(none)", str(sum(counts)), *map(str, counts)])
    sums = [kept, *(reasons[name] for name in names)]
    return [*lines, ["all", str(sum(sums)), *map(str, sums)]]


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Rows of words as a table for a terminal: the first column to the left, others right."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
