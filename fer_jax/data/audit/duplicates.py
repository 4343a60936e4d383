"""Finds near-duplicate images: perceptual hashes propose pairs, the pixels confirm them.

An image has a hash of its own and hashes of shifted, cropped and mirrored windows, so that copies
made that way are candidates, too. Hashes of tight face crops are so similar that most candidates
are different people, so the pixels of every candidate are compared.
"""

import functools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

THUMBNAIL_SIZE = 48
MAX_DISTANCE = 8  # bits of 64 in which hashes of one image may differ
# Two images are near-duplicates from this similarity on. Chosen on 60 images of each of eight sets
# of photographs (README.md): copies reach 0.94, even at gamma 2 or a tenth of each side cut off; of
# all pairs of different people in jaffe, ck48, ckseq and lfw_gray none reaches 0.89, in yale one
# 0.906. By eye the 48 least similar of 2,608 pairs in FER2013 are copies.
MIN_SIMILARITY = 0.93
BLANK = 2.0  # an image whose grey levels have a lower standard deviation has no content

_NUM_BITS = 64
_FREQUENCIES = 12
_CENTRE = (THUMBNAIL_SIZE - 1) / 2  # pixels of a thumbnail, as all below
_SPECTRUM = 16  # frequencies a side that are kept of an image; those of a hash are lower
_RANKS = 0.7  # the weight of ranks beside grey levels in a hash
_RANK_SPREAD = 2 * 255 / math.sqrt(12)  # the standard deviation of ranks from -255 to 255
_OWN = 42  # the side of the window that an image's own hash is of
# (right, down, side, degrees) of the windows, the own one first, and how many of them are mirrored,
# too. A turn and its opposite are one, for the hashes of both images are compared with the other's.
_WINDOWS = (
    (0, 0, _OWN, 0),
    *((x, y, _OWN, 0) for x, y in ((2, 0), (-2, 0), (0, 2), (0, -2))),
    *((x, y, _OWN, 0) for x, y in ((1.2, 1.2), (-1.2, 1.2))),
    *((x, y, _OWN, 0) for x in (-2.2, 2.2) for y in (-2.2, 2.2)),
    *((x, y, 38, 0) for x in (0, -1.7, 1.7) for y in (0, -1.7, 1.7)),
    (0, 0, 34, 0),
    *((0, 0, _OWN, degrees) for degrees in (5, -5, 10, -10)),
)
_NUM_MIRRORED = 21
# Below so many images the median of a coefficient is not used, and hashes may differ in a bit more,
# which takes little time then.
_FEW = 1000
_MIN_SPREAD = 0.05  # of a coefficient, between quartiles; encoding again moves it by 0.01
_EDGE = 5  # pixels around the core that is laid over the other image
_NEIGHBOURHOOD = 9
_FLAT = 0.05  # of the variance of all neighbourhoods
_WORTH_ALIGNING, _ALIGNED = 0.6, 0.99  # correlations
# The largest motion of an alignment from its start, and the least share of pixels in common.
_MAX_STRETCH, _MAX_DRIFT, _MIN_OVERLAP = 0.2, 6, 0.7
_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
_BLOCK = 1024  # thumbnails or pairs that are processed at once
_CHUNK = 2**19  # pairs of hashes likewise
_MAX_BAND = 22  # bits; the table of a band has an entry for every key

# (indices [p], indices [p], Hamming distance [p]) -> bool [p]
IsCandidate = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Candidates(NamedTuple):
    """The pairs that the hashes propose, compared: the result of `find_near_duplicates`."""

    i: np.ndarray  # int64 [p], i < j
    j: np.ndarray  # int64 [p]
    similarity: np.ndarray  # float64 [p]
    num_blank: int  # images without content, which were not compared

    def pairs(self, enough: float | np.ndarray = MIN_SIMILARITY) -> list[tuple[int, int, float]]:
        """Returns (i, j, similarity) of pairs that are similar `enough`, the most similar first."""
        same = np.flatnonzero(self.similarity >= enough)
        same = same[np.argsort(-self.similarity[same], kind="stable")]
        return [
            (int(self.i[pair]), int(self.j[pair]), float(self.similarity[pair])) for pair in same
        ]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Reduces an RGB image of any size to the uint8 grey [48, 48] that is hashed and compared."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    size = (THUMBNAIL_SIZE, THUMBNAIL_SIZE)
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Hashes images, uint8 [n, 48, 48], windows of them, and their mirror images: uint64 [n, 46].

    A bit says whether one of the 64 lowest coefficients of the cosine transform, without the
    constant one, is above its median (after the scheme known as pHash). The columns are the image,
    its moved, smaller and turned windows, and the mirror images of all but the turned ones.
    """
    bases = _bases()
    blocks = [
        _spectra(thumbnails[first : first + _BLOCK]) for first in range(0, len(thumbnails), _BLOCK)
    ]
    if not blocks:
        return np.empty((0, len(bases) + _NUM_MIRRORED), np.uint64)
    own = np.concatenate([_dct_coefficients(block, bases[:1])[:, 0] for block in blocks])
    medians = _median_coefficients(own)
    # Mirroring changes the sign of the coefficients that are odd across the width.
    mirror = np.where(_lowest_frequencies()[1] % 2, -1, 1).astype(np.float32)

    def hash_block(block: np.ndarray) -> np.ndarray:
        coefficients = _dct_coefficients(block, bases)
        mirrored = coefficients[:, :_NUM_MIRRORED] * mirror
        bits = np.concatenate([coefficients > medians, mirrored > medians], axis=1)
        return np.packbits(bits, axis=2).view(np.uint64)[..., 0]

    return np.concatenate([hash_block(block) for block in blocks])


def _spectra(thumbnails: np.ndarray) -> np.ndarray:
    """Returns what hashes are computed from: uint8 [n, 48, 48] to float32 [n, 256].

    Mostly the ranks of the pixels, so that gamma does not matter. Ranks alone would make much of
    the details of a white background, which are gone in a brighter copy.
    """
    levels = thumbnails.astype(np.float32)
    levels -= levels.mean((1, 2), keepdims=True)
    levels /= np.maximum(np.sqrt(np.square(levels).mean((1, 2), keepdims=True)), 1)
    ranks = np.empty(thumbnails.shape, np.float32)
    for image, out in zip(thumbnails, ranks, strict=True):
        # Of equal pixels the upper and the lower rank: saturated ones are between the two.
        upper, lower = cv2.equalizeHist(image), cv2.equalizeHist(255 - image)
        cv2.subtract(upper, lower, dst=out, dtype=cv2.CV_32F)
    return _spectrum(_RANKS * ranks / _RANK_SPREAD + (1 - _RANKS) * levels)


def _spectrum(images: np.ndarray) -> np.ndarray:
    """Returns the lowest coefficients of the cosine transform, [n, 48, 48] to float32 [n, 256]."""
    positions = np.pi * (2 * np.arange(THUMBNAIL_SIZE) + 1) / (2 * THUMBNAIL_SIZE)
    cosines = np.cos(np.arange(_SPECTRUM)[:, None] * positions)
    cosines /= np.linalg.norm(cosines, axis=1, keepdims=True)
    cosines = cosines.astype(np.float32)
    return (cosines @ images.astype(np.float32) @ cosines.T).reshape(len(images), -1)


def _lowest_frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Returns the (row, column) frequency of each bit, int64 [64] each."""
    rows, columns = np.indices((_FREQUENCIES, _FREQUENCIES)).reshape(2, -1)
    lowest = np.argsort(rows**2 + columns**2, kind="stable")[1 : _NUM_BITS + 1]
    return rows[lowest], columns[lowest]


@functools.cache
def _bases() -> np.ndarray:
    """Returns what each window's bits are the signs of: float32 [windows, 64, 256].

    The inner product with an image's spectrum is a coefficient of the window's cosine transform.
    """
    pixels = np.mgrid[:THUMBNAIL_SIZE, :THUMBNAIL_SIZE].reshape(2, -1)[::-1]
    rows, columns = _lowest_frequencies()
    bases = []
    for window in _WINDOWS:
        motion = cv2.invertAffineTransform(_motion(window))
        place = motion[:, :2] @ pixels + motion[:, 2:] - _CENTRE
        # Within the own window, whose size all are brought to: 0 to _OWN.
        x, y = place + _OWN / 2
        inside = np.clip(_OWN / 2 - np.abs(place).max(axis=0) + 0.5, 0, 1)
        cosines = np.cos(np.pi / _OWN * np.outer(columns, x)) * inside
        basis = cosines * np.cos(np.pi / _OWN * np.outer(rows, y))
        bases.append(_spectrum(basis.reshape(_NUM_BITS, THUMBNAIL_SIZE, THUMBNAIL_SIZE)))
    return np.stack(bases)


def _motion(window: tuple[float, float, float, float]) -> np.ndarray:
    """Returns the affine map from pixels of the own window to those of another: float64 [2, 3]."""
    right, down, side, degrees = window
    zoom, angle = side / _OWN, np.deg2rad(degrees)
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = np.array([right, down]) + _CENTRE - turn @ np.full(2, _CENTRE)
    return np.column_stack([turn, moved])


def _dct_coefficients(spectra: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """Returns float32 [n, windows, 64], each scaled to length 1: contrast does not matter."""
    coefficients = (spectra @ bases.reshape(-1, spectra.shape[1]).T).reshape(
        len(spectra), -1, _NUM_BITS
    )
    lengths = np.sqrt(np.einsum("nwb,nwb->nw", coefficients, coefficients))
    return coefficients / np.maximum(lengths, 1e-6)[..., None]


def _median_coefficients(coefficients: np.ndarray) -> np.ndarray:
    """Returns the median of each coefficient: float32 [n, 64] to [64].

    Aligned faces have much in common, and a bit that is the same for nearly all of them would
    distinguish none. With few images, or images that hardly differ, it is 0 instead: noise must
    not give the copies of one image different bits.
    """
    if len(coefficients) < _FEW:
        return np.zeros(_NUM_BITS, np.float32)
    low, middle, high = np.quantile(coefficients, [0.25, 0.5, 0.75], axis=0)
    return np.where(high - low > _MIN_SPREAD, middle, 0).astype(np.float32)


def neighbours(
    hashes: np.ndarray, distance: int = MAX_DISTANCE, is_candidate: IsCandidate | None = None
) -> np.ndarray:
    """Finds all pairs of items of which one has a hash close to the other's own.

    Exact without comparing all pairs: if two hashes differ in d bits, one of b bands of their bits
    differs in at most d // b, so in each band only keys within that radius are looked up (Norouzi,
    Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012). `hashes` are
    uint64 [n, v], column 0 is an item's own; `distance` is in bits. Returns int64 [pairs, 3],
    sorted: the items i < j and their distance.
    """
    n = len(hashes)
    if n < 2:
        return np.empty((0, 3), np.int64)
    with ThreadPoolExecutor() as threads:
        found = threads.map(
            lambda band: _search_band(hashes, band, distance, is_candidate), _bands(distance, n)
        )
        coded = np.unique(np.concatenate(list(found)))
    # Sorted, so the smallest distance of a pair comes first.
    pair, bits = np.divmod(coded, _NUM_BITS + 1)
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    return np.stack([*np.divmod(pair[first], n), bits[first]], axis=1).astype(np.int64)


def _bands(distance: int, n: int) -> list[tuple[int, int, int]]:
    """Returns (shift, width, radius) of each band, for the cheapest number of bands."""

    def cost(count: int) -> float:
        width, radius = -(-_NUM_BITS // count), distance // count
        keys = sum(math.comb(width, size) for size in range(radius + 1))
        # Comparing a pair costs several lookups, and real images fill the keys unevenly.
        return count * keys * (1 + 8 * n / 2**width)

    fewest = -(-_NUM_BITS // _MAX_BAND)
    count = min(range(fewest, max(fewest, distance + 1) + 1), key=cost)
    edges = [_NUM_BITS * band // count for band in range(count + 1)]
    return [
        (low, high - low, distance // count)
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]


def _search_band(
    hashes: np.ndarray, band: tuple[int, int, int], distance: int, is_candidate: IsCandidate | None
) -> np.ndarray:
    """Returns what one band finds as sorted int64 codes of (pair, distance)."""
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
    queries, query_starts, query_counts = np.unique(
        every_keys[every_order], return_index=True, return_counts=True
    )
    found = [np.empty(0, np.int64)]
    for change in _changes(width, radius):
        near = queries ^ change
        hits = np.flatnonzero(occupied[near])
        for query, item in _products(
            query_starts[hits], query_counts[hits], starts[near[hits]], counts[near[hits]]
        ):
            query, item = every_order[query], own_order[item]
            hamming_distance = np.bitwise_count(every[query] ^ own[item])
            close = np.flatnonzero(hamming_distance <= distance)
            one = query[close] // num_columns
            other, bits = item[close], hamming_distance[close].astype(np.int64)
            kept = one != other
            if is_candidate is not None:
                kept &= is_candidate(one, other, bits)
            pair = np.minimum(one, other) * n + np.maximum(one, other)
            found.append((pair * (_NUM_BITS + 1) + bits)[kept])
    return np.unique(np.concatenate(found))


def _changes(width: int, radius: int) -> Iterator[int]:
    """Yields every number of `width` bits with at most `radius` of them set."""
    for size in range(radius + 1):
        for chosen in combinations(range(width), size):
            yield sum(1 << bit for bit in chosen)


def _products(
    starts: np.ndarray, counts: np.ndarray, other_starts: np.ndarray, other_counts: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields each range times the range at the same position, a chunk of pairs at a time."""
    sizes = counts * other_counts.astype(np.int64)
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    for first in range(0, total, _CHUNK):
        number = np.arange(first, min(first + _CHUNK, total))
        which = np.searchsorted(ends, number, side="right")
        one, other = np.divmod(number - (ends - sizes)[which], other_counts[which])
        yield starts[which] + one, other_starts[which] + other


def closest_windows(
    hashes: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compares hashes of pairs, uint64 [p, v] each, as `neighbours` does.

    Returns the distance, uint8 [p]; the column of the closest window; whether that is the other's.
    """
    distances = np.stack(
        [
            np.bitwise_count(hashes ^ others[:, :1]),
            np.bitwise_count(others ^ hashes[:, :1]),
        ],
        axis=1,
    ).reshape(len(hashes), -1)
    best = distances.argmin(axis=1)
    swapped, column = np.divmod(best, hashes.shape[1])
    return np.take_along_axis(distances, best[:, None], 1)[:, 0], column, swapped == 1


def similarity(thumbnail: np.ndarray, other: np.ndarray, column: int = 0) -> float:
    """Compares the details of two uint8 [48, 48] images, whatever their brightness and contrast.

    The centre of one is laid over a window of the other where it correlates best, and aligned by an
    affine motion (Evangelidis and Psarakis, "Parametric Image Alignment Using Enhanced Correlation
    Coefficient Maximization", 2008). Both are band-passed first: coarse structure is common to all
    tight crops, fine structure does not survive encoding. `column` of `perceptual_hashes` is the
    window of `thumbnail` that is like `other`.

    Returns the correlation, -1 to 1, that two thirds of the neighbourhoods exceed: text over a
    third of a copy does not matter. Of images that do not nearly fit, the correlation where they
    fit best.
    """
    return _similarity((thumbnail, _details(thumbnail)), (other, _details(other)), column)


def correlation(thumbnail: np.ndarray, other: np.ndarray) -> float:
    """Correlates the details of all of two aligned uint8 [48, 48] images, or of one's mirror image.

    Unlike `similarity` it tells two expressions of one face from a copy.
    """
    one, two = ((image, _details(image)) for image in (thumbnail, other))
    found = []
    for column in (0, len(_WINDOWS)):
        motion, score = _fit(one[1], two[1], column)
        overlap = None if motion is None else _overlap(thumbnail, other, motion)
        if overlap is not None:
            x, y, inside = overlap
            score = float(np.mean(x[inside] * y[inside]))
        found.append(score)
    return max(found)


def _band_pass(thumbnail: np.ndarray) -> np.ndarray:
    x = thumbnail.astype(np.float32)
    return cv2.GaussianBlur(x, (0, 0), 1.0) - cv2.GaussianBlur(x, (0, 0), 2.5)


def _details(thumbnail: np.ndarray) -> np.ndarray:
    """Returns what is aligned: float32 [48, 48], of about the same contrast everywhere."""
    x = _band_pass(thumbnail)
    return x / (np.sqrt(cv2.GaussianBlur(x * x, (0, 0), 4.0)) + 0.5)


def _similarity(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], column: int
) -> float:
    """As `similarity`, of (thumbnail, `_details` of it) pairs."""
    motion, score = _fit(one[1], other[1], column)
    return score if motion is None else _lower_third(one[0], other[0], motion)


def _fit(details: np.ndarray, other: np.ndarray, column: int) -> tuple[np.ndarray | None, float]:
    """Returns the motion from the other's pixels to the image's, None if it does not nearly fit.

    And the correlation before the alignment.
    """
    motion = _motion(_WINDOWS[column % len(_WINDOWS)])
    if column >= len(_WINDOWS):
        # What is like the other is the window's mirror image.
        motion = motion @ [[-1, 0, 2 * _CENTRE], [0, 1, 0], [0, 0, 1]]
    moved = cv2.warpAffine(details, motion, details.shape, flags=_WARP)
    core = np.ascontiguousarray(other[_EDGE:-_EDGE, _EDGE:-_EDGE])
    fits = cv2.matchTemplate(moved, core, cv2.TM_CCOEFF_NORMED)
    _, score, _, place = cv2.minMaxLoc(fits)
    if score < _WORTH_ALIGNING:
        return None, score
    # The core's corner lies at `place`, and its pixels are counted from there.
    motion[:, 2] += motion[:, :2] @ place
    if score < _ALIGNED:
        motion = _aligned(core, details, motion.astype(np.float32))
    motion[:, 2] -= motion[:, :2] @ (_EDGE, _EDGE)
    return motion, score


def _aligned(core: np.ndarray, details: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Returns the motion that maximizes the correlation; `start` if none or a large one does."""
    steps = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 20, 1e-4)
    everywhere = np.full(details.shape, 255, np.uint8)
    try:
        _, motion = cv2.findTransformECC(
            core, details, start.copy(), cv2.MOTION_AFFINE, steps, everywhere, 1
        )
    except cv2.error:  # it did not converge
        return start
    drift = np.abs(motion - start)
    large = drift[:, :2].max() > _MAX_STRETCH or drift[:, 2].max() > _MAX_DRIFT
    return start if large else motion


def _overlap(
    image: np.ndarray, other: np.ndarray, motion: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Returns the details of both, standardized, and where they overlap; None if hardly."""
    moved = cv2.warpAffine(image, motion, image.shape, flags=_WARP, borderMode=cv2.BORDER_REPLICATE)
    everywhere = np.full(image.shape, 255, np.uint8)
    inside = cv2.warpAffine(everywhere, motion, image.shape, flags=_WARP) == 255
    inside[:_EDGE] = inside[-_EDGE:] = inside[:, :_EDGE] = inside[:, -_EDGE:] = False
    if inside.sum() < _MIN_OVERLAP * (THUMBNAIL_SIZE - 2 * _EDGE) ** 2:
        return None
    x, y = map(_band_pass, (moved, other))
    for values in (x, y):
        known = values[inside]
        values -= known.mean()
        values /= known.std() + 1e-3
    return x, y, inside


def _lower_third(image: np.ndarray, other: np.ndarray, motion: np.ndarray) -> float:
    """Returns the lower third of the correlations of neighbourhoods; -1 without an overlap."""
    overlap = _overlap(image, other, motion)
    if overlap is None:
        return -1.0
    x, y, inside = overlap

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (_NEIGHBOURHOOD, _NEIGHBOURHOOD))

    mean_x, mean_y = mean(x), mean(y)
    variances = (mean(x * x) - mean_x**2) * (mean(y * y) - mean_y**2)
    # Where both are flat they are alike.
    correlations = (mean(x * y) - mean_x * mean_y + _FLAT) / (
        np.sqrt(np.maximum(variances, 0)) + _FLAT
    )
    return float(np.quantile(correlations[inside], 1 / 3))


def find_near_duplicates(
    thumbnails: np.ndarray, is_candidate: IsCandidate | None = None
) -> Candidates:
    """Finds pairs of near-duplicates among uint8 [n, 48, 48] and compares them."""
    blocks = [thumbnails[first : first + _BLOCK] for first in range(0, len(thumbnails), _BLOCK)]
    shown = np.flatnonzero([spread >= BLANK for block in blocks for spread in block.std((1, 2))])
    hashes = perceptual_hashes(thumbnails[shown])
    near = neighbours(
        hashes,
        MAX_DISTANCE + (len(shown) < _FEW),
        is_candidate=is_candidate
        and (lambda i, j, distance: is_candidate(shown[i], shown[j], distance)),
    )
    i, j = near[:, 0], near[:, 1]
    similarities = _similarities(thumbnails[shown], hashes, i, j)
    return Candidates(shown[i], shown[j], similarities, len(thumbnails) - len(shown))


def _similarities(
    thumbnails: np.ndarray, hashes: np.ndarray, i: np.ndarray, j: np.ndarray
) -> np.ndarray:
    """Returns float64 [pairs], the `similarity` of i and j."""

    def compare(first: int) -> list[float]:
        a, b = i[first : first + _BLOCK], j[first : first + _BLOCK]
        _, columns, swapped = closest_windows(hashes[a], hashes[b])
        a, b = np.where(swapped, b, a), np.where(swapped, a, b)
        rows = {row: thumbnails[row] for row in {*a.tolist(), *b.tolist()}}
        prepared = {row: (image, _details(image)) for row, image in rows.items()}
        return [
            _similarity(prepared[one], prepared[other], column)
            for one, other, column in zip(a.tolist(), b.tolist(), columns.tolist(), strict=True)
        ]

    found: list[float] = []
    with (
        ThreadPoolExecutor() as threads,
        tqdm(total=len(i), desc="comparing", unit="pair", disable=None) as progress,
    ):
        for scores in threads.map(compare, range(0, len(i), _BLOCK)):
            found += scores
            progress.update(len(scores))
    return np.asarray(found, np.float64)
