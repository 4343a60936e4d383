"""Adaptive discriminator augmentation (Karras et al. 2020b), against memorizing few images.

The discriminator's images, real or generated, are augmented by each operation with a probability
that follows how well it knows the training images. As long as that is below one, the generator
learns the images and not their augmentations. Three groups of operations: pixel blitting (mirror,
quarter turns, whole shifts), geometry (scale, rotation, anisotropic scale, shift) and colour
(brightness, contrast, inverted luma, hue, saturation), with the strengths of the paper's appendix.

Everything is a pure function of the images and the sampled parameters, and differentiable in the
images: the generator learns through it.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# In the order in which they happen.
GROUPS = {
    "blit": ("mirror", "quarter_turns", "whole_shift"),
    "geometry": ("scale", "turn_before", "anisotropy", "turn_after", "shift"),
    "colour": ("brightness", "contrast", "inverted", "hue", "saturation"),
}
TARGET = 0.6  # of the mean sign of the discriminator's logit for real images
FULL_SPEED = 500_000.0  # images in which the probability may go from 0 to 1

# Orthogonal low-pass filter of the wavelet sym6 (Daubechies 1992); with it an image that is not
# moved is reconstructed exactly.
SYM6 = np.array(
    [
        *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057),
        *(-0.048311742585633, 0.4910559419267466, 0.787641141030194),
        *(0.3379294217276218, -0.07263752278646252, -0.021060292512300564),
        *(0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
    ]
) / math.sqrt(2)
# Samples of the doubled grid to either side in the filter's support.
REACH = len(SYM6) // 2

MAX_SHIFT = 0.125  # of the side
SCALE = 0.2  # standard deviation of log2, like the next ones
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0

Parameters = Mapping[str, jax.Array]


def sample(
    key: jax.Array, n: int, p: jax.Array | float, groups: Iterable[str] = GROUPS
) -> dict[str, jax.Array]:
    """Samples the parameters of each operation, which has probability p, for n images.

    Returns float32 [n] each, [n, 2] for shifts: "mirror" (0 or 1), "quarter_turns" (0 to 3),
    "whole_shift" and "shift" (shares of the side, right and down), "scale", "anisotropy" (factors),
    "turn_before", "turn_after" (radians), "brightness" (added), "contrast" (factor), "inverted" (0
    or 1), "hue" (radians), "saturation" (factor).
    """
    keys = iter(jax.random.split(key, 32))

    def maybe(value: jax.Array, otherwise: float, probability: Any = p) -> jax.Array:
        shape = (n,) + (1,) * (value.ndim - 1)
        happens = jax.random.uniform(next(keys), shape) < probability
        return jnp.where(happens, value, otherwise)

    def uniform(bound: float, *shape: int) -> jax.Array:
        return jax.random.uniform(next(keys), (n, *shape), minval=-bound, maxval=bound)

    def normal(deviation: float, *shape: int) -> jax.Array:
        return deviation * jax.random.normal(next(keys), (n, *shape))

    # Two rotations; the probability of at least one is p.
    each = 1 - jnp.sqrt(1 - jnp.asarray(p, jnp.float32))
    values = {
        "mirror": maybe(jnp.floor(2 * jax.random.uniform(next(keys), (n,))), 0.0),
        "quarter_turns": maybe(jnp.floor(4 * jax.random.uniform(next(keys), (n,))), 0.0),
        "whole_shift": maybe(uniform(MAX_SHIFT, 2), 0.0),
        "scale": maybe(jnp.exp2(normal(SCALE)), 1.0),
        "turn_before": maybe(uniform(math.pi), 0.0, each),
        "anisotropy": maybe(jnp.exp2(normal(SCALE)), 1.0),
        "turn_after": maybe(uniform(math.pi), 0.0, each),
        "shift": maybe(normal(MAX_SHIFT, 2), 0.0),
        "brightness": maybe(normal(BRIGHTNESS), 0.0),
        "contrast": maybe(jnp.exp2(normal(CONTRAST)), 1.0),
        "inverted": maybe(jnp.floor(2 * jax.random.uniform(next(keys), (n,))), 0.0),
        "hue": maybe(uniform(math.pi), 0.0),
        "saturation": maybe(jnp.exp2(normal(SATURATION)), 1.0),
    }
    return {name: values[name] for group in groups for name in GROUPS[group]}


def augment(images: jax.Array, parameters: Parameters) -> jax.Array:
    """Augments images [n, side, side, 3], around [-1, 1], with the parameters of `sample`."""
    if parameters.keys() & {*GROUPS["blit"], *GROUPS["geometry"]}:
        images = warp(images, geometry(parameters, images.shape[1]))
    if parameters.keys() & set(GROUPS["colour"]):
        images = recolour(images, colour(parameters))
    return images


def geometry(parameters: Parameters, side: int) -> jax.Array:
    """Returns the matrices from output pixels to input pixels, [n, 3, 3].

    They are homogeneous, in pixels from the centre of an image of `side` pixels, for the groups
    "blit", "geometry" or both.
    """

    def matrices(entries: dict[tuple[int, int], jax.Array]) -> jax.Array:
        """Identities with other entries."""
        n = len(next(iter(entries.values())))
        result = jnp.broadcast_to(jnp.eye(3), (n, 3, 3))
        for (row, column), values in entries.items():
            result = result.at[:, row, column].set(values)
        return result

    def turn(angle: jax.Array) -> jax.Array:
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        return matrices({(0, 0): cosine, (0, 1): -sine, (1, 0): sine, (1, 1): cosine})

    def shift(by: jax.Array) -> jax.Array:
        return matrices({(0, 2): by[:, 0], (1, 2): by[:, 1]})

    # From the output back to the input.
    backwards = {
        "mirror": lambda x: matrices({(0, 0): 1 - 2 * x}),
        "quarter_turns": lambda x: turn(x * (math.pi / 2)),
        "whole_shift": lambda x: shift(-jnp.round(x * side)),
        "scale": lambda x: matrices({(0, 0): 1 / x, (1, 1): 1 / x}),
        "turn_before": turn,
        "anisotropy": lambda x: matrices({(0, 0): 1 / x, (1, 1): x}),
        "turn_after": turn,
        "shift": lambda x: shift(-x * side),
    }
    steps = [step(parameters[name]) for name, step in backwards.items() if name in parameters]
    return functools.reduce(functools.partial(jnp.matmul, precision="highest"), steps)


def colour(parameters: Parameters) -> jax.Array:
    """Returns the matrices of the group "colour", [n, 4, 4], homogeneous, for (r, g, b, 1)."""
    n = parameters["brightness"].shape[0]
    identity = jnp.broadcast_to(jnp.eye(4), (n, 4, 4))
    luma = np.array([1.0, 1.0, 1.0, 0.0]) / math.sqrt(3)
    along = np.outer(luma, luma)
    across = np.diag([1.0, 1.0, 1.0, 0.0]) - along

    def by(values: jax.Array) -> jax.Array:
        return values[:, None, None]

    brighter = identity.at[:, :3, 3].set(parameters["brightness"][:, None])
    contrast = identity * jnp.where(np.arange(4) < 3, parameters["contrast"][:, None], 1.0)[:, None]
    inverted = identity - 2 * by(parameters["inverted"]) * along
    # About the grey axis (Rodrigues).
    turn = np.zeros((4, 4))
    turn[:3, :3] = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    angle = by(parameters["hue"])
    keep = np.diag([0.0, 0.0, 0.0, 1.0])
    hue = keep + along + across * jnp.cos(angle) + turn * jnp.sin(angle)
    saturated = keep + along + across * by(parameters["saturation"])
    steps = [saturated, hue, inverted, contrast, brighter]
    return functools.reduce(functools.partial(jnp.matmul, precision="highest"), steps)


def recolour(images: jax.Array, matrices: jax.Array) -> jax.Array:
    """Applies matrices [n, 4, 4] to the colours of images [n, h, w, 3]."""
    turned = jnp.einsum("nhwc,ndc->nhwd", images, matrices[:, :3, :3], precision="highest")
    return turned + matrices[:, None, None, :3, 3]


def warp(images: jax.Array, matrices: jax.Array) -> jax.Array:
    """Resamples images [n, side, side, c] by matrices [n, 3, 3] from `geometry`.

    The image, mirrored at its edges, is filtered to a grid of twice the density with a wavelet's
    filter, sampled there bilinearly, and filtered back. This avoids aliasing and does not blur an
    image that is not moved.
    """
    n, side = images.shape[:2]
    dense = _resampled(images, _doubling(side))
    # The samples of the output's doubled grid, with the filter's support beyond the edge. The
    # filter is centred at its sixth tap, so every second sample is at a pixel.
    grid = (np.arange(-REACH, 2 * side + REACH) + 1) / 2 - side / 2
    x, y = np.meshgrid(grid, grid)
    out = jnp.asarray(np.stack([x, y, np.ones_like(x)]), jnp.float32).reshape(3, -1)
    where = jnp.matmul(matrices[:, :2].astype(jnp.float32), out, precision="highest")
    sampled = jax.vmap(_bilinear)(dense, 2 * (where + side / 2 + side - 1) - 1)
    return _resampled(sampled.reshape(n, len(grid), len(grid), -1), _halving(side))


def _bilinear(image: jax.Array, where: jax.Array) -> jax.Array:
    """Samples an image [h, w, c] at points [2, m] (x and y): [m, c], 0 beyond the edge."""
    height, width, channels = image.shape
    flat = image.reshape(-1, channels)
    corner = jnp.floor(where)
    share = where - corner
    left, top = corner.astype(jnp.int32)

    def at(row: jax.Array, column: jax.Array, weight: jax.Array) -> jax.Array:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        return flat[index] * jnp.where(inside, weight, 0.0)[:, None]

    fx, fy = share
    return (
        at(top, left, (1 - fx) * (1 - fy))
        + at(top, left + 1, fx * (1 - fy))
        + at(top + 1, left, (1 - fx) * fy)
        + at(top + 1, left + 1, fx * fy)
    )


def _resampled(images: jax.Array, matrix: np.ndarray) -> jax.Array:
    """Multiplies rows and columns of images [n, h, w, c] by a matrix [m, h = w]: [n, m, m, c].

    As products of matrices the gradients are products, too. Tap by tap, XLA writes each tap's
    gradient in full, twenty times as slow on CPU.
    """
    factor = jnp.asarray(matrix, images.dtype)
    n, height, _, channels = images.shape
    columns = jnp.einsum("nhwc,mw->nhmc", images, factor, precision="highest")
    rows = jnp.matmul(factor, columns.reshape(n, height, -1), precision="highest")
    return rows.reshape(n, len(matrix), len(matrix), channels)


@functools.cache
def _doubling(side: int) -> np.ndarray:
    """Filters a line, mirrored at its ends, with zeros between its samples: [m, side]."""
    line = np.pad(np.eye(side), ((side - 1, side - 1), (0, 0)), mode="reflect")
    # One zero after each sample, and one beyond the last.
    spread = np.zeros((2 * len(line) + 2 * REACH - 1, side))
    spread[REACH : REACH + 2 * len(line) : 2] = line
    return _filtered(spread, 2 * SYM6)


@functools.cache
def _halving(side: int) -> np.ndarray:
    """Filters with the mirrored filter and takes every second sample: [side, 2 side + 2 REACH]."""
    return _filtered(np.eye(2 * side + 2 * REACH), SYM6[::-1])[1 : 2 * side : 2]


def _filtered(lines: np.ndarray, taps: np.ndarray) -> np.ndarray:
    return np.stack([np.convolve(line, taps, "valid") for line in lines.T], axis=1)


def adjust(
    p: jax.Array,
    signs: jax.Array,
    images: int,
    *,
    target: float = TARGET,
    full_speed: float = FULL_SPEED,
) -> jax.Array:
    """Returns the next probability p of each operation, in [0, 1].

    `signs` is the mean sign of the discriminator's logits for the `images` real images since the
    last adjustment: near 1 it has memorized them, near 0 it cannot distinguish them from generated
    ones. In `full_speed` images the probability may go from 0 to 1.
    """
    step = jnp.sign(signs - target) * (images / full_speed)
    return jnp.clip(p + step, 0.0, 1.0)
