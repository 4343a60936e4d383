"""Images that are the same picture: perceptual hashes, their neighbours, and a look at the pixels.

A hash finds candidates among all pairs at a few operations a pair; tight crops of faces are so
alike that some of them are strangers, so every candidate is compared on its pixels.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

THUMBNAIL_SIZE = 48
HASHED = 8  # coefficients a side; 64 bits
# Bits in which two hashes of one picture may differ. Of the duplicates that 14 bits find in FER2013
# 8 bits find 85 %, 10 bits 91 %, 12 bits 97 %, with ever more strangers among the candidates.
MAX_DISTANCE = 12
# Two pictures are the same from this likeness on. The highest of any two people among the
# candidates in CK+, JAFFE and LFW was 0.66; of FER2013's candidates that were looked at from 0.65
# on, in all shades up to 1, every one was the same picture.
SAME_LIKENESS = 0.7
DETAIL_SIGMA = 1.5  # pixels of a thumbnail; what is coarser is common to all tight crops
MAX_SHIFT = 2  # pixels of a thumbnail
ROWS, COLUMNS = 64, 4096  # of a block of pairs: what fits into a core's cache


def thumbnail(image: np.ndarray) -> np.ndarray:
    """What hashes and comparisons look at: uint8 [48, 48] grey of an RGB image of any size."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def perceptual_hashes(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of pictures and of their mirror images.

    A bit is the sign of one of the 64 lowest coefficients of the cosine transform against
    their median (the scheme known as pHash), the constant one left out of it.

    Args:
      thumbnails: uint8 [n, 48, 48].

    Returns:
      (uint64 [n], uint64 [n]).
    """
    n = np.arange(THUMBNAIL_SIZE)
    basis = np.cos(np.pi * (2 * n + 1) * np.arange(HASHED)[:, None] / (2 * THUMBNAIL_SIZE))
    basis = basis.astype(np.float32)
    hashes = []
    coefficients = basis @ thumbnails.astype(np.float32) @ basis.T
    for mirror in (1.0, -1.0):
        # Left and right exchanged: the waves that are odd across the width change their sign.
        signs = np.where(np.arange(HASHED) % 2, mirror, 1.0).astype(np.float32)
        flat = (coefficients * signs).reshape(-1, HASHED**2)
        flat[:, 0] = 0
        bits = flat > np.median(flat[:, 1:], axis=1, keepdims=True)
        hashes.append(np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64))
    return hashes[0], hashes[1]


def neighbours(
    hashes: np.ndarray, others: np.ndarray, distance: int = MAX_DISTANCE
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of hashes that differ in at most `distance` bits, by looking at every pair.

    Args:
      hashes: uint64 [n].
      others: uint64 [m].
      distance: in bits.

    Yields:
      (i, j), int64 arrays of equal length, for a stretch of rows at a time; every pair once.
    """

    def search(first: int) -> tuple[np.ndarray, np.ndarray]:
        rows = hashes[first : first + ROWS, None]
        found = []
        for start in range(0, len(others), COLUMNS):
            apart = np.bitwise_count(rows ^ others[None, start : start + COLUMNS])
            i, j = np.nonzero(apart <= distance)
            if len(i):
                found.append((i + first, j + start))
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        i, j = zip(*found, strict=True)
        return np.concatenate(i), np.concatenate(j)

    # numpy leaves the interpreter's lock for whole blocks.
    with ThreadPoolExecutor() as pool:
        yield from pool.map(search, range(0, len(hashes), ROWS))


def likeness(thumbnail: np.ndarray, other: np.ndarray) -> float:
    """How alike the details of two pictures are, whatever their brightness and contrast.

    The correlation of what a Gaussian blur takes away, at the best of the shifts by up to
    `MAX_SHIFT` pixels, of the picture or its mirror image.

    Args:
      thumbnail: uint8 [48, 48].
      other: the same.

    Returns:
      -1 to 1.
    """
    one, two = _details(thumbnail), _details(other)
    inner = np.ascontiguousarray(one[MAX_SHIFT:-MAX_SHIFT, MAX_SHIFT:-MAX_SHIFT])
    return max(
        float(cv2.matchTemplate(picture, inner, cv2.TM_CCOEFF_NORMED).max())
        for picture in (two, np.ascontiguousarray(two[:, ::-1]))
    )


def _details(thumbnail: np.ndarray) -> np.ndarray:
    x = thumbnail.astype(np.float32)
    return x - cv2.GaussianBlur(x, (0, 0), DETAIL_SIGMA)


def same_pictures(
    thumbnails: np.ndarray, wanted: np.ndarray
) -> tuple[list[tuple[int, int, float]], int]:
    """Pairs of images that are one picture, or its mirror image.

    Args:
      thumbnails: uint8 [n, 48, 48].
      wanted: int64 [n, k]; only pairs that differ in one of these columns are looked for.

    Returns:
      ((i, j, likeness) with i < j, how many candidates the hashes gave).
    """
    plain, mirrored = perceptual_hashes(thumbnails)
    candidates: set[tuple[int, int]] = set()
    for others in (plain, mirrored):
        for i, j in neighbours(plain, others):
            kept = (i < j) & (wanted[i] != wanted[j]).any(axis=1)
            candidates |= set(zip(i[kept].tolist(), j[kept].tolist(), strict=True))
    alike = [(i, j, likeness(thumbnails[i], thumbnails[j])) for i, j in sorted(candidates)]
    return [pair for pair in alike if pair[2] >= SAME_LIKENESS], len(candidates)
