"""Images that are the same picture: perceptual hashes, their neighbours, and a look at the pixels.

A picture has a hash of its own and more of windows in it that are shifted, cropped and mirrored, so
that copies made that way are candidates too. Tight crops of faces are so alike that most candidates
are strangers, so every one of them is compared on its pixels.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

THUMBNAIL_SIZE = 48
# Bits of 64 in which hashes of one picture may differ. Of FER2013's and lfw_gray's pictures 98 in
# 100 copies and more are within 8 bits when shifted or cropped by 1 or 2 of 48 pixels, 93 when
# turned by 3 degrees, all when encoded again; of pairs of aligned strangers 1 in 40,000.
MAX_DISTANCE = 8
# Two pictures are the same from this likeness on. Copies reach 0.99 at JPEG quality 40, 0.95 (drawn
# faces: 0.91) through half the size, 0.97 shifted or cropped by 2 of 48 pixels, 0.99 turned by 3
# degrees. Two people reach 0.90 in jaffe, 0.92 in ck48 and yale, 0.79 in lfw_gray. In FER2013 all
# 66 pairs from 0.93 to 0.96 were copies by eye, and so were most of the 34 from 0.82 to 0.93.
SAME_LIKENESS = 0.93
BLANK = 2.0  # a standard deviation below so many grey levels shows nothing

_NUM_BITS = 64
_FREQUENCIES = 12
_WINDOW, _ZOOMS = 42, (38, 46)  # pixels of a thumbnail
_CORE, _CORE_ZOOMS = 40, (36, 38, 40, 42, 44)
_FEW = 1000
_LEAST_SPREAD = 0.03  # of a coefficient, between quartiles; encoding again moves it by 0.01
_WORTH_ALIGNING = 0.8
_MOST_STRETCH, _MOST_DRIFT, _LEAST_OVERLAP = 0.2, 6, 0.7  # of an alignment, from where it starts
_BLOCK = 1024  # thumbnails or pairs that are worked on at once
_CHUNK = 2**19  # pairs of hashes likewise
_MAX_BAND = 22  # bits; the table of a band has an entry for every key

# (items [p], items [p], bits between them [p]) -> bool [p]
Wanted = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
# (items [p], items [p]) -> float [p]
Needed = Callable[[np.ndarray, np.ndarray], np.ndarray]


class SamePictures(NamedTuple):
    """What `same_pictures` found.

    Attributes:
      pairs: (i, j, likeness) with i < j, the most alike first.
      num_candidates: pairs that the hashes proposed.
      num_blank: pictures that show nothing and were not compared.
    """

    pairs: list[tuple[int, int, float]]
    num_candidates: int
    num_blank: int


def thumbnail(image: np.ndarray) -> np.ndarray:
    """What hashes and comparisons look at: uint8 [48, 48] grey of an RGB image of any size."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Hashes of pictures, of windows in them, and of their mirror images.

    A bit says whether one of the 64 lowest coefficients of the cosine transform, without the
    constant one, is above its usual value (after the scheme known as pHash).

    Args:
      thumbnails: uint8 [n, 48, 48].

    Returns:
      uint64 [n, 30]: the picture's own, those of its twelve shifted and two zoomed windows, and
      the same fifteen of the mirror image.
    """
    down, across = _lowest_frequencies()
    windows = _windows()
    blocks = [thumbnails[first : first + _BLOCK] for first in range(0, len(thumbnails), _BLOCK)]
    if not blocks:
        return np.empty((0, 2 * len(windows)), np.uint64)
    usual = _usual(np.concatenate([_waves(block, windows[0]) for block in blocks]))
    hashes = np.empty((len(thumbnails), 2 * len(windows)), np.uint64)
    # Left and right exchanged: the waves that are odd across the width change their sign.
    mirror = np.where(across % 2, -1, 1).astype(np.float32)
    for number, block in enumerate(blocks):
        rows = slice(number * _BLOCK, number * _BLOCK + len(block))
        for column, window in enumerate(windows):
            waves = _waves(block, window)
            hashes[rows, column] = _packed(waves > usual)
            hashes[rows, column + len(windows)] = _packed(waves * mirror > usual)
    return hashes


def _lowest_frequencies() -> tuple[np.ndarray, np.ndarray]:
    """(row, column) frequencies of the bits: int64 [64] each."""
    down, across = np.indices((_FREQUENCIES, _FREQUENCIES)).reshape(2, -1)
    lowest = np.argsort(down**2 + across**2, kind="stable")[1 : _NUM_BITS + 1]
    return down[lowest], across[lowest]


def _waves(thumbnails: np.ndarray, window: tuple[int, int, int]) -> np.ndarray:
    """float32 [n, 64]: coefficients of the cosine transform, of length 1 whatever the contrast."""
    top, left, side = window
    positions = np.pi * (2 * np.arange(side) + 1) / (2 * side)
    basis = np.cos(np.arange(_FREQUENCIES)[:, None] * positions).astype(np.float32)
    down, across = _lowest_frequencies()
    pixels = thumbnails[:, top : top + side, left : left + side].astype(np.float32)
    waves = (basis @ pixels @ basis.T)[:, down, across]
    return waves / np.maximum(np.linalg.norm(waves, axis=1, keepdims=True), 1e-6)


def _usual(waves: np.ndarray) -> np.ndarray:
    """float32 [64]: the median of each coefficient, of float32 [n, 64].

    Aligned faces have much in common; a bit that is the same for nearly all of them would tell
    none from another. Where there are few pictures, or they hardly differ, it is zero instead:
    copies of one picture must not be told apart by their noise.
    """
    if len(waves) < _FEW:
        return np.zeros(_NUM_BITS, np.float32)
    low, middle, high = np.quantile(waves, [0.25, 0.5, 0.75], axis=0)
    return np.where(high - low > _LEAST_SPREAD, middle, 0).astype(np.float32)


def _windows() -> list[tuple[int, int, int]]:
    """(top, left, side), the picture's own first."""
    moves = [(y, x) for y in (0, -2, 2) for x in (0, -2, 2)]
    moves += [(y, x) for y in (-1, 1) for x in (-1, 1)]
    middle = (THUMBNAIL_SIZE - _WINDOW) // 2
    shifted = [(middle + y, middle + x, _WINDOW) for y, x in moves]
    edges = [(THUMBNAIL_SIZE - side) // 2 for side in _ZOOMS]
    return shifted + [(edge, edge, side) for edge, side in zip(edges, _ZOOMS, strict=True)]


def _packed(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64)[:, 0]


def neighbours(
    hashes: np.ndarray, distance: int = MAX_DISTANCE, wanted: Wanted | None = None
) -> np.ndarray:
    """All pairs of items of which one has a hash close to the other's own.

    Exact, without looking at all pairs: where two hashes differ in d bits, one of b bands of
    their bits differs in at most d // b, so in each band only keys within that radius are looked
    up (Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing",
    2012).

    Args:
      hashes: uint64 [n, v]; column 0 is an item's own.
      distance: in bits.
      wanted: which pairs to keep; None: all.

    Returns:
      int64 [pairs, 4], sorted: the items i < j, their distance, and the column that was closest
      (of i's hashes to j's own, or of j's to i's own).
    """
    n, num_columns = hashes.shape
    if n < 2:
        return np.empty((0, 4), np.int64)
    with ThreadPoolExecutor() as pool:
        found = pool.map(
            lambda band: _search_band(hashes, band, distance, wanted), _bands(distance, n)
        )
        coded = np.unique(np.concatenate(list(found)))
    # Sorted, so the smallest distance of a pair comes first.
    pair, rest = np.divmod(coded, (_NUM_BITS + 1) * num_columns)
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    return np.stack(
        [*np.divmod(pair[first], n), *np.divmod(rest[first], num_columns)], axis=1
    ).astype(np.int64)


def _bands(distance: int, n: int) -> list[tuple[int, int, int]]:
    """(shift, width, radius) of each band, for as many bands as cost least."""

    def cost(count: int) -> float:
        width, radius = -(-_NUM_BITS // count), distance // count
        keys = sum(math.comb(width, size) for size in range(radius + 1))
        # Comparing a pair costs several lookups, and real pictures fill the keys unevenly.
        return count * keys * (1 + 8 * n / 2**width)

    fewest = -(-_NUM_BITS // _MAX_BAND)
    count = min(range(fewest, max(fewest, distance + 1) + 1), key=cost)
    edges = [_NUM_BITS * band // count for band in range(count + 1)]
    return [
        (low, high - low, distance // count)
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]


def _search_band(
    hashes: np.ndarray, band: tuple[int, int, int], distance: int, wanted: Wanted | None
) -> np.ndarray:
    """Sorted int64 numbers, each (pair, distance, column), of what one band finds."""
    shift, width, radius = band
    n, num_columns = hashes.shape
    own, every = np.ascontiguousarray(hashes[:, 0]), hashes.ravel()

    def keys(values: np.ndarray) -> np.ndarray:
        return ((values >> np.uint64(shift)) & np.uint64(2**width - 1)).astype(np.int64)

    own_keys, every_keys = keys(own), keys(every)
    own_order = np.argsort(own_keys, kind="stable")
    counts = np.bincount(own_keys, minlength=2**width).astype(np.int32)
    starts = np.cumsum(counts, dtype=np.int32) - counts
    occupied = counts > 0
    every_order = np.argsort(every_keys, kind="stable")
    asked, asked_starts, asked_counts = np.unique(
        every_keys[every_order], return_index=True, return_counts=True
    )
    found = [np.empty(0, np.int64)]
    for change in _changes(width, radius):
        near = asked ^ change
        hits = np.flatnonzero(occupied[near])
        for query, item in _products(
            asked_starts[hits], asked_counts[hits], starts[near[hits]], counts[near[hits]]
        ):
            query, item = every_order[query], own_order[item]
            apart = np.bitwise_count(every[query] ^ own[item])
            close = np.flatnonzero(apart <= distance)
            (one, column), other, apart = (
                np.divmod(query[close], num_columns),
                item[close],
                apart[close].astype(np.int64),
            )
            kept = one != other
            if wanted is not None:
                kept &= wanted(one, other, apart)
            pair = np.minimum(one, other) * n + np.maximum(one, other)
            found.append(((pair * (_NUM_BITS + 1) + apart) * num_columns + column)[kept])
    return np.unique(np.concatenate(found))


def _changes(width: int, radius: int) -> Iterator[int]:
    """Every number of `width` bits with at most `radius` of them set."""
    for size in range(radius + 1):
        for chosen in combinations(range(width), size):
            yield sum(1 << bit for bit in chosen)


def _products(
    starts: np.ndarray, counts: np.ndarray, other_starts: np.ndarray, other_counts: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Everything in each range with everything in the range opposite, a chunk at a time."""
    sizes = counts * other_counts.astype(np.int64)
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    for first in range(0, total, _CHUNK):
        number = np.arange(first, min(first + _CHUNK, total))
        which = np.searchsorted(ends, number, side="right")
        one, other = np.divmod(number - (ends - sizes)[which], other_counts[which])
        yield starts[which] + one, other_starts[which] + other


def likeness(thumbnail: np.ndarray, other: np.ndarray) -> float:
    """How alike the details of two pictures are, whatever their brightness and contrast.

    The middle of one, at five sizes, is laid over the other where it correlates best, and then,
    if it nearly fits, aligned by a small affine motion (Evangelidis and Psarakis, "Parametric
    Image Alignment Using Enhanced Correlation Coefficient Maximization", 2008). Both are
    band-passed first: what is coarser is common to all tight crops, what is finer does not
    survive encoding.

    Args:
      thumbnail: uint8 [48, 48].
      other: the same.

    Returns:
      Their normalised correlation there, -1 to 1.
    """
    return _likeness(_details(thumbnail), _details(other), SAME_LIKENESS)


def _details(thumbnail: np.ndarray) -> np.ndarray:
    x = thumbnail.astype(np.float32)
    return cv2.GaussianBlur(x, (0, 0), 1.0) - cv2.GaussianBlur(x, (0, 0), 2.5)


def _likeness(details: np.ndarray, other: np.ndarray, enough: float) -> float:
    """`likeness`; not aligned further once it is `enough`."""
    best, best_side, left, top = -1.0, _CORE, 0, 0
    for side in _CORE_ZOOMS:
        edge = (THUMBNAIL_SIZE - side) // 2
        core = cv2.resize(details[edge : edge + side, edge : edge + side], (_CORE, _CORE))
        _, fits, _, place = cv2.minMaxLoc(cv2.matchTemplate(other, core, cv2.TM_CCOEFF_NORMED))
        if fits > best:
            best, best_side, (left, top) = fits, side, place
    if not _WORTH_ALIGNING <= best < enough:
        return best
    return max(best, _aligned_likeness(details, other, _CORE / best_side, left, top))


def _aligned_likeness(
    details: np.ndarray, other: np.ndarray, zoom: float, left: int, top: int
) -> float:
    """Correlation after the affine motion that maximizes it; -1 where there is no small one."""
    edge = (THUMBNAIL_SIZE - _CORE) // 2
    core = np.ascontiguousarray(details[edge:-edge, edge:-edge])
    # Where the core's corner lies in the other picture, pixels taken by their centres.
    corner = zoom * (edge - (THUMBNAIL_SIZE - _CORE / zoom) / 2 + 0.5) - 0.5
    start = np.asarray([[zoom, 0, corner + left], [0, zoom, corner + top]], np.float32)
    steps = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 15, 1e-4)
    nothing = np.full_like(other, 255, np.uint8)
    try:
        _, motion = cv2.findTransformECC(
            core, other, start.copy(), cv2.MOTION_AFFINE, steps, nothing, 1
        )
    except cv2.error:  # it did not converge
        return -1.0
    drift = np.abs(motion - start)
    if drift[:, :2].max() > _MOST_STRETCH or drift[:, 2].max() > _MOST_DRIFT:
        return -1.0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved, inside = (
        cv2.warpAffine(x, motion, (_CORE, _CORE), flags=flags) for x in (other, nothing)
    )
    one, two = core[inside == 255], moved[inside == 255]
    if len(one) < _LEAST_OVERLAP * core.size:
        return -1.0
    return float(np.corrcoef(one, two)[0, 1])


def same_pictures(
    thumbnails: np.ndarray, wanted: Wanted | None = None, needed: Needed | None = None
) -> SamePictures:
    """Pairs of images that are one picture: encoded again, shifted, cropped, or mirrored.

    Args:
      thumbnails: uint8 [n, 48, 48].
      wanted: which pairs are looked for; None: all.
      needed: from which likeness on two are the same; None: `SAME_LIKENESS`.
    """
    blocks = [thumbnails[first : first + _BLOCK] for first in range(0, len(thumbnails), _BLOCK)]
    shown = np.flatnonzero([spread >= BLANK for block in blocks for spread in block.std((1, 2))])
    hashes = perceptual_hashes(thumbnails[shown])
    near = neighbours(
        hashes,
        wanted=wanted and (lambda i, j, apart: wanted(shown[i], shown[j], apart)),
    )
    i, j, mirrored = shown[near[:, 0]], shown[near[:, 1]], near[:, 3] >= hashes.shape[1] // 2
    enough = needed(i, j) if needed is not None else np.full(len(i), SAME_LIKENESS)
    alike = _likenesses(thumbnails, i, j, mirrored, enough)
    same = np.flatnonzero(alike >= enough)
    same = same[np.argsort(-alike[same], kind="stable")]
    return SamePictures(
        list(zip(i[same].tolist(), j[same].tolist(), alike[same].tolist(), strict=True)),
        num_candidates=len(near),
        num_blank=len(thumbnails) - len(shown),
    )


def _likenesses(
    thumbnails: np.ndarray, i: np.ndarray, j: np.ndarray, mirrored: np.ndarray, enough: np.ndarray
) -> np.ndarray:
    """float64 [pairs]: `likeness` of i and j, or of i and j's mirror image."""

    def compare(first: int) -> list[float]:
        block = slice(first, first + _BLOCK)
        rows = np.unique([i[block], j[block]]).tolist()
        details = {row: _details(thumbnails[row]) for row in rows}
        columns = (i, j, mirrored, enough)
        return [
            _likeness(
                details[one],
                np.ascontiguousarray(details[other][:, ::-1]) if turned else details[other],
                least,
            )
            for one, other, turned, least in zip(
                *(column[block].tolist() for column in columns), strict=True
            )
        ]

    found: list[float] = []
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(i), desc="compare", unit="pair", disable=None) as progress,
    ):
        for scores in pool.map(compare, range(0, len(i), _BLOCK)):
            found += scores
            progress.update(len(scores))
    return np.asarray(found, np.float64)
