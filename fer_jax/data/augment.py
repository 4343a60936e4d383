"""Augmentation on the device, inside the training step: uint8 batches in, uint8 batches out.

Pure functions of a key. Every image has a key of its own, so the result for a batch does not
depend on how the batch is divided over devices.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fer_jax.errors import InputError
from fer_jax.models.xception import grey

# Random erasing (Zhong et al. 2017): area and aspect ratio of the erased rectangle.
ERASED_AREA = (0.02, 0.2)
ERASED_ASPECT = (0.3, 3.3)


def normalize(images: jax.Array) -> jax.Array:
    """uint8 [..., 3] in 0..255 to float32 in [-1, 1], the network's input."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def augment(
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    *,
    rotation_degrees: float = 30.0,
    shift: float = 0.2,
    shear: float = 0.2,
    zoom: float = 0.2,
    horizontal_flip: bool = True,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    erasing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Augments a batch; the defaults are the published protocol's, 0 leaves an operation out.

    Args:
      images: uint8 [batch, height, width, 3].
      targets: float32 [batch, classes], distributions.
      key: a random key.
      rotation_degrees: uniform in +-this.
      shift: uniform in +-this share of the width and of the height.
      shear: horizontal shear, uniform in +-this (pixels sideways per pixel of height).
      zoom: width and height each scaled by a factor uniform in 1 +- this.
      horizontal_flip: half of the images are mirrored.
      brightness: factor uniform in 1 +- this.
      contrast: factor about the image's mean grey, uniform in 1 +- this.
      saturation: factor about each pixel's grey, uniform in 1 +- this.
      erasing: probability of one rectangle of 2 to 20 % of the area turning grey.
      mixup: alpha of the Beta distribution of Zhang et al. 2018.
      cutmix: alpha of the Beta distribution of Yun et al. 2019; where both are on, each batch
        draws one of the two.

    Returns:
      (images, targets) of the same shapes, dtypes and ranges.

    Raises:
      InputError: a negative value, a zoom of 1 or more, a probability above 1.
    """
    _check_settings(
        rotation_degrees=rotation_degrees,
        shift=shift,
        shear=shear,
        zoom=zoom,
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        erasing=erasing,
        mixup=mixup,
        cutmix=cutmix,
    )
    image_key, mix_key = jax.random.split(key)
    keys = jax.vmap(lambda i: jax.random.fold_in(image_key, i))(jnp.arange(len(images)))
    height, width = images.shape[1:3]

    def uniform(key: jax.Array, bound: float, shape: tuple[int, ...] = ()) -> jax.Array:
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    if rotation_degrees or shift or shear or zoom or horizontal_flip:

        def one(key: jax.Array) -> jax.Array:
            k = jax.random.split(key, 5)
            size = jnp.asarray([width, height], jnp.float32)
            return affine_matrix(
                rotation=jnp.deg2rad(uniform(k[0], rotation_degrees)),
                shift=uniform(k[1], shift, (2,)) * size,
                shear=uniform(k[2], shear),
                zoom=1 + uniform(k[3], zoom, (2,)),
                flip=jax.random.bernoulli(k[4]) if horizontal_flip else jnp.asarray(False),
            )

        images = warp(images, jax.vmap(lambda key: one(jax.random.fold_in(key, 0)))(keys))
    if brightness or contrast or saturation:
        colour = jax.vmap(lambda key: uniform(jax.random.fold_in(key, 1), 1.0, (3,)))(keys)
        bounds = jnp.asarray([brightness, contrast, saturation])
        images = _jitter(images, 1 + colour * bounds)
    if erasing:
        images = jax.vmap(lambda image, key: _erase(image, jax.random.fold_in(key, 2), erasing))(
            images, keys
        )
    if mixup and cutmix:
        choose, mix_key = jax.random.split(mix_key)
        return jax.lax.cond(
            jax.random.bernoulli(choose),
            lambda: _mixup(images, targets, mix_key, mixup),
            lambda: _cutmix(images, targets, mix_key, cutmix),
        )
    if mixup:
        return _mixup(images, targets, mix_key, mixup)
    if cutmix:
        return _cutmix(images, targets, mix_key, cutmix)
    return images, targets


def _check_settings(**settings: float) -> None:
    for name, value in settings.items():
        if not value >= 0:
            raise InputError(f"augment.{name} must be at least 0, not {value}")
    for name in ("zoom", "brightness", "contrast", "saturation", "erasing", "shift"):
        limit = 1.0
        if settings[name] > limit or (name == "zoom" and settings[name] == limit):
            below = "below 1" if name == "zoom" else "at most 1"
            raise InputError(f"augment.{name} must be {below}, not {settings[name]}")


def affine_matrix(
    *,
    rotation: Any = 0.0,
    shift: Any = (0.0, 0.0),
    shear: Any = 0.0,
    zoom: Any = (1.0, 1.0),
    flip: Any = False,
) -> jax.Array:
    """The map from an output pixel to the input pixel it shows, about the image's centre.

    The picture is mirrored, zoomed, sheared, rotated and shifted, in this order.

    Args:
      rotation: radians, counter-clockwise as seen.
      shift: (right, down) in pixels.
      shear: pixels to the right per pixel downwards.
      zoom: (horizontal, vertical) factors; above 1 enlarges.
      flip: whether left and right are exchanged.

    Returns:
      float32 [2, 3]: (x, y) in = matrix @ (x, y, 1) out, from the centre.
    """
    cosine, sine = jnp.cos(rotation), jnp.sin(rotation)
    # y points down, so a counter-clockwise turn has the sign of sine exchanged.
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
    """Applies one affine map per image, bilinear; outside, the border's pixels go on.

    Args:
      images: uint8 [batch, height, width, 3].
      matrices: float32 [batch, 2, 3], from `affine_matrix`.

    Returns:
      uint8 [batch, height, width, 3].
    """
    height, width = images.shape[1:3]
    y, x = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
    )
    x, y = x.ravel().astype(jnp.float32), y.ravel().astype(jnp.float32)

    def one(image: jax.Array, m: jax.Array) -> jax.Array:
        # A 1/1024 pixel grid: what rotations by right angles and whole shifts leave as
        # rounding error disappears, and so exact maps stay exact.
        source_x = jnp.round((m[0, 0] * x + m[0, 1] * y + m[0, 2] + (width - 1) / 2) * 1024) / 1024
        source_y = jnp.round((m[1, 0] * x + m[1, 1] * y + m[1, 2] + (height - 1) / 2) * 1024) / 1024
        source_x = jnp.clip(source_x, 0, width - 1)
        source_y = jnp.clip(source_y, 0, height - 1)
        left, top = jnp.floor(source_x).astype(jnp.int32), jnp.floor(source_y).astype(jnp.int32)
        right, below = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
        fx, fy = (source_x - left)[:, None], (source_y - top)[:, None]
        # Rows of three bytes from the flat picture: far cheaper than a gather of floats.
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
    """Brightness, contrast and saturation factors [batch, 3], one after the other."""
    brightness, contrast, saturation = (factors[:, i, None, None, None] for i in range(3))
    x = images.astype(jnp.float32) * brightness
    mean = grey(x).mean(axis=(1, 2), keepdims=True)
    x = mean + (x - mean) * contrast
    luma = grey(x)
    return _to_uint8(luma + (x - luma) * saturation)


def _rectangle(
    key: jax.Array, area: jax.Array, aspect: jax.Array, height: int, width: int
) -> jax.Array:
    """A rectangle, bool [height, width], with that share of the area, clipped at the border."""
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


# Partners are the batch in reverse: a random permutation would send every image to another
# device, while a reversal is one exchange between pairs of devices. The order is random anyway.
def _mixup(
    images: jax.Array, targets: jax.Array, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    share = jax.random.beta(key, alpha, alpha)
    x = images.astype(jnp.float32)
    return _to_uint8(share * x + (1 - share) * x[::-1]), share * targets + (1 - share) * targets[
        ::-1
    ]


def _cutmix(
    images: jax.Array, targets: jax.Array, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    share_key, place_key = jax.random.split(key)
    area = 1 - jax.random.beta(share_key, alpha, alpha)
    inside = _rectangle(place_key, area, jnp.ones(()), *images.shape[1:3])
    pasted = inside.mean()
    images = jnp.where(inside[None, :, :, None], images[::-1], images)
    return images, (1 - pasted) * targets + pasted * targets[::-1]
