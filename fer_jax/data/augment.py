"""Augmentation on the device, inside the training step: uint8 batches in, uint8 batches out.

Pure functions of a key. Every image has a key of its own, so the result for a batch does not
depend on how the batch is divided over devices.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fer_jax.errors import InputError
from fer_jax.models.xception import grey

# Random erasing (Zhong et al. 2017): area and aspect ratio of the erased rectangle.
ERASED_AREA = (0.02, 0.2)
ERASED_ASPECT = (0.3, 3.3)


def normalize(images: jax.Array) -> jax.Array:
    """Scales uint8 [..., 3] in 0..255 to float32 in [-1, 1], the network's input."""
    return images.astype(jnp.float32) / 127.5 - 1.0


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What `augment` does; the defaults are the published protocol's, 0 disables an operation.

    If mixup and cutmix are both on, each batch uses one of the two at random. Raises InputError for
    a negative value, a zoom of 1 or more, or another value above its maximum of 1.
    """

    rotation_degrees: float = 30.0  # uniform in +-this
    shift: float = 0.2  # uniform in +-this share of the width and of the height
    shear: float = 0.2  # uniform in +-this, in pixels to the right per pixel downwards
    zoom: float = 0.2  # width and height each scaled by a factor uniform in 1 +- this
    horizontal_flip: bool = True  # half of the images are mirrored
    brightness: float = 0.0  # factor uniform in 1 +- this
    contrast: float = 0.0  # factor about the image's mean grey, uniform in 1 +- this
    saturation: float = 0.0  # factor about each pixel's grey, uniform in 1 +- this
    erasing: float = 0.0  # probability of one rectangle of 2 to 20 % of the area turning grey
    mixup: float = 0.0  # alpha of the Beta distribution of Zhang et al. 2018
    cutmix: float = 0.0  # alpha of the Beta distribution of Yun et al. 2019

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value >= 0:
                raise InputError(f"augment.{name} must be at least 0, got {value}")
        for name in ("shift", "brightness", "contrast", "saturation", "erasing"):
            if getattr(self, name) > 1:
                raise InputError(f"augment.{name} must be at most 1, got {getattr(self, name)}")
        if self.zoom >= 1:
            raise InputError(f"augment.zoom must be below 1, got {self.zoom}")


def augment(
    images: jax.Array, targets: jax.Array, key: jax.Array, options: Augmentation
) -> tuple[jax.Array, jax.Array]:
    """Augments a batch at random.

    Takes and returns images, uint8 [batch, height, width, 3], and targets, float32 [batch, classes]
    distributions.
    """
    image_key, mix_key = jax.random.split(key)
    keys = jax.vmap(lambda i: jax.random.fold_in(image_key, i))(jnp.arange(len(images)))

    def each(operation: int) -> jax.Array:
        """Returns a key of each image for one operation."""
        return jax.vmap(lambda key: jax.random.fold_in(key, operation))(keys)

    affine = options.rotation_degrees or options.shift or options.shear or options.zoom
    if affine or options.horizontal_flip:
        height, width = images.shape[1:3]
        size = jnp.asarray([width, height], jnp.float32)
        images = warp(images, jax.vmap(lambda key: _random_affine(key, size, options))(each(0)))
    if options.brightness or options.contrast or options.saturation:
        unit = jax.vmap(lambda key: _uniform(key, 1.0, (3,)))(each(1))
        bounds = jnp.asarray([options.brightness, options.contrast, options.saturation])
        images = _jitter(images, 1 + unit * bounds)
    if options.erasing:
        erase = functools.partial(_erase, probability=options.erasing)
        images = jax.vmap(erase)(images, each(2))
    return _mix(images, targets, mix_key, options)


def _uniform(key: jax.Array, bound: float, shape: tuple[int, ...] = ()) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def _random_affine(key: jax.Array, size: jax.Array, options: Augmentation) -> jax.Array:
    """Samples a map for `warp`; `size` is float32 (width, height)."""
    k = jax.random.split(key, 5)
    return affine_matrix(
        rotation=jnp.deg2rad(_uniform(k[0], options.rotation_degrees)),
        shift=_uniform(k[1], options.shift, (2,)) * size,
        shear=_uniform(k[2], options.shear),
        zoom=1 + _uniform(k[3], options.zoom, (2,)),
        flip=jax.random.bernoulli(k[4]) if options.horizontal_flip else jnp.asarray(False),
    )


def affine_matrix(
    *,
    rotation: Any = 0.0,
    shift: Any = (0.0, 0.0),
    shear: Any = 0.0,
    zoom: Any = (1.0, 1.0),
    flip: Any = False,
) -> jax.Array:
    """Returns the map from an output pixel to its input pixel, about the image's centre.

    The image is mirrored, zoomed, sheared, rotated and shifted, in this order: `rotation` in
    radians, counter-clockwise on the screen, `shift` (right, down) in pixels, `shear` pixels to the
    right per pixel downwards, `zoom` (horizontal, vertical), above 1 enlarges. float32 [2, 3]: (x,
    y) in = matrix @ (x, y, 1) out, from the centre.
    """
    cosine, sine = jnp.cos(rotation), jnp.sin(rotation)
    # y points down, so a counter-clockwise rotation has the opposite sign of sine.
    turn = jnp.asarray([[cosine, sine], [-sine, cosine]])
    slant = jnp.asarray([[1.0, shear], [0.0, 1.0]])
    mirror = jnp.where(flip, -1.0, 1.0)
    zoom = jnp.asarray(zoom, jnp.float32)
    scale = jnp.asarray([[mirror * zoom[0], 0.0], [0.0, zoom[1]]])
    forward = jnp.matmul(turn, jnp.matmul(slant, scale, precision="highest"), precision="highest")
    (a, b), (c, d) = forward
    inverse = jnp.asarray([[d, -b], [-c, a]]) / (a * d - b * c)
    offset = -jnp.matmul(inverse, jnp.asarray(shift, jnp.float32), precision="highest")
    return jnp.concatenate([inverse, offset[:, None]], axis=1).astype(jnp.float32)


def warp(images: jax.Array, matrices: jax.Array) -> jax.Array:
    """Applies one affine map per image with bilinear interpolation; the border is repeated.

    Takes and returns uint8 [batch, height, width, 3]; float32 [batch, 2, 3] matrices are those of
    `affine_matrix`.
    """
    height, width = images.shape[1:3]
    y, x = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
    )
    x, y = x.ravel().astype(jnp.float32), y.ravel().astype(jnp.float32)

    def one(image: jax.Array, m: jax.Array) -> jax.Array:
        # Rounding to 1/1024 pixel keeps rotations by right angles and whole shifts exact.
        source_x = jnp.round((m[0, 0] * x + m[0, 1] * y + m[0, 2] + (width - 1) / 2) * 1024) / 1024
        source_y = jnp.round((m[1, 0] * x + m[1, 1] * y + m[1, 2] + (height - 1) / 2) * 1024) / 1024
        source_x = jnp.clip(source_x, 0, width - 1)
        source_y = jnp.clip(source_y, 0, height - 1)
        left, top = jnp.floor(source_x).astype(jnp.int32), jnp.floor(source_y).astype(jnp.int32)
        right, below = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
        fx, fy = (source_x - left)[:, None], (source_y - top)[:, None]
        # Gathering rows of three bytes is far cheaper than gathering floats.
        flat = image.reshape(height * width, 3)

        def at(row: jax.Array, column: jax.Array) -> jax.Array:
            return flat.at[row * width + column].get(mode="promise_in_bounds").astype(jnp.float32)

        upper = at(top, left) * (1 - fx) + at(top, right) * fx
        lower = at(below, left) * (1 - fx) + at(below, right) * fx
        value = upper * (1 - fy) + lower * fy
        return jnp.round(value).astype(jnp.uint8).reshape(image.shape)

    return jax.vmap(one)(images, matrices)


def _to_uint8(values: jax.Array) -> jax.Array:
    return jnp.round(jnp.clip(values, 0, 255)).astype(jnp.uint8)


def _jitter(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Applies the brightness, contrast and saturation factors [batch, 3] in this order."""
    brightness, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    x = images.astype(jnp.float32) * brightness
    mean = grey(x).mean(axis=(1, 2), keepdims=True)
    x = mean + (x - mean) * contrast
    luma = grey(x)
    return _to_uint8(luma + (x - luma) * saturation)


def _rectangle(
    key: jax.Array, area: jax.Array, aspect: jax.Array, height: int, width: int
) -> jax.Array:
    """Samples a rectangle, bool [height, width], of this share of the area, cut at the border."""
    h, w = jnp.sqrt(area * aspect) * height, jnp.sqrt(area / aspect) * width
    centre = jax.random.uniform(key, (2,))
    rows = jnp.abs(jnp.arange(height) + 0.5 - centre[0] * height) < h / 2
    columns = jnp.abs(jnp.arange(width) + 0.5 - centre[1] * width) < w / 2
    return rows[:, None] & columns[None, :]


def _erase(image: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    k = jax.random.split(key, 4)
    area = jax.random.uniform(k[0], minval=ERASED_AREA[0], maxval=ERASED_AREA[1])
    low, high = jnp.log(ERASED_ASPECT[0]), jnp.log(ERASED_ASPECT[1])
    aspect = jnp.exp(jax.random.uniform(k[1], minval=low, maxval=high))
    inside = _rectangle(k[2], area, aspect, *image.shape[:2])
    inside &= jax.random.bernoulli(k[3], probability)
    return jnp.where(inside[..., None], jnp.uint8(127), image)


def _mix(
    images: jax.Array, targets: jax.Array, key: jax.Array, options: Augmentation
) -> tuple[jax.Array, jax.Array]:
    if options.mixup and options.cutmix:
        choose, key = jax.random.split(key)
        return jax.lax.cond(
            jax.random.bernoulli(choose),
            lambda: _mixup(images, targets, key, options.mixup),
            lambda: _cutmix(images, targets, key, options.cutmix),
        )
    if options.mixup:
        return _mixup(images, targets, key, options.mixup)
    if options.cutmix:
        return _cutmix(images, targets, key, options.cutmix)
    return images, targets


# Image i is mixed with image -i: reversing the batch is one exchange between pairs of devices, and
# the order is random anyway; a permutation would send every image to another device.
def _mixup(
    images: jax.Array, targets: jax.Array, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    share = jax.random.beta(key, alpha, alpha)
    x = images.astype(jnp.float32)
    mixed = _to_uint8(share * x + (1 - share) * x[::-1])
    return mixed, share * targets + (1 - share) * targets[::-1]


def _cutmix(
    images: jax.Array, targets: jax.Array, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    share_key, place_key = jax.random.split(key)
    area = 1 - jax.random.beta(share_key, alpha, alpha)
    inside = _rectangle(place_key, area, jnp.ones(()), *images.shape[1:3])
    pasted = inside.mean()
    images = jnp.where(inside[None, :, :, None], images[::-1], images)
    return images, (1 - pasted) * targets + pasted * targets[::-1]
