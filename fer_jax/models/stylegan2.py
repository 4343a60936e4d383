"""StyleGAN2 (Karras et al. 2020) as pure functions: latents to images, images to logits.

A network is a config (a frozen dataclass, also stored as JSON), `params` (nested plain dicts of
arrays) and, for a generator, `buffers` (the mean w and the fixed noise).
Arrays have the names of the published networks and this project's layouts: dense weights
[in, out], convolutions [height, width, in, out], images [n, height, width, channels].

A style scales the activations before a convolution that all samples share, and the result is
divided by the norm of the scaled weights, sqrt(style^2 @ sum(weight^2)) (section 2.2 of the
paper with the factors moved out of the weights). The result equals that of weights per sample,
for a fraction of the memory and time.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.errors import InputError, did_you_mean
from fer_jax.models.layers import Padding, conv2d

ARCHITECTURES = ("skip", "resnet", "orig")
MIN_RESOLUTION, MAX_RESOLUTION = 8, 4096
MAX_MAPPING_LAYERS = 100
MAX_TAPS = 64

# (function, gain that restores the second moment of its input)
ACTIVATIONS: dict[str, tuple[Callable[[jax.Array], jax.Array], float]] = {
    "linear": (lambda x: x, 1.0),
    "relu": (jax.nn.relu, math.sqrt(2)),
    "lrelu": (lambda x: jax.nn.leaky_relu(x, 0.2), math.sqrt(2)),
    "tanh": (jnp.tanh, 1.0),
    "sigmoid": (jax.nn.sigmoid, 1.0),
    "elu": (jax.nn.elu, 1.0),
    "selu": (jax.nn.selu, 1.0),
    "softplus": (jax.nn.softplus, 1.0),
    "swish": (jax.nn.silu, math.sqrt(2)),
}

Filter = tuple[float, ...] | tuple[tuple[float, ...], ...]
Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MappingConfig:
    """The multi-layer perceptron from z and a class to w."""

    z_dim: int  # width of z; 0 in a discriminator, which maps only the class
    c_dim: int  # number of classes; 0: unconditional
    w_dim: int
    num_layers: int
    embed_features: int  # width of the embedded class
    layer_features: int  # width between the dense layers
    activation: str = "lrelu"  # a key of `ACTIVATIONS`
    lr_multiplier: float = 0.01  # weights and biases are stored divided by it

    def __post_init__(self):
        _check_choice("mapping.activation", self.activation, ACTIVATIONS)
        for name in ("z_dim", "c_dim", "embed_features"):
            if getattr(self, name) < 0:
                raise InputError(f"mapping.{name} cannot be {getattr(self, name)}")
        if not 0 <= self.num_layers <= MAX_MAPPING_LAYERS:
            raise InputError(f"mapping.num_layers cannot be {self.num_layers}")
        if self.w_dim < 1 or self.layer_features < 1 or self.z_dim + self.c_dim < 1:
            raise InputError("a mapping needs an input and widths of at least 1")
        if not 0 < self.lr_multiplier < math.inf:
            raise InputError(f"mapping.lr_multiplier must be above 0, not {self.lr_multiplier}")
        if not self.num_layers and self.widths() != [self.w_dim]:
            raise InputError(f"a mapping without layers cannot be {self.w_dim} wide")

    def widths(self) -> list[int]:
        """Returns the inputs of every layer and the outputs of the last: num_layers + 1 numbers."""
        inputs = self.z_dim + (self.embed_features if self.c_dim else 0)
        hidden = [self.layer_features] * (self.num_layers - 1)
        return [inputs, *hidden, self.w_dim] if self.num_layers else [inputs]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ConvolutionConfig:
    """The convolutional part of a generator or a discriminator."""

    resolution: int  # pixels a side, a power of two
    img_channels: int = 3
    # A layer at resolution r has channel_base / r channels, at most `channel_max`.
    channel_base: int = 32768
    channel_max: int = 512
    # The shortcuts of blocks: "skip" (every block adds to, or reads, the image), "resnet", or
    # "orig" (none).
    architecture: str = "skip"
    activation: str = "lrelu"  # a key of `ACTIVATIONS`
    # Taps of the low-pass filter, for both axes, or rows of a 2-d filter.
    resample_filter: Filter = (1.0, 3.0, 3.0, 1.0)
    # Activations are clipped to plus and minus this; None: they are not.
    conv_clamp: float | None = None

    def __post_init__(self):
        size = self.resolution
        if not MIN_RESOLUTION <= size <= MAX_RESOLUTION or size & (size - 1):
            raise InputError(
                f"resolution must be a power of two from {MIN_RESOLUTION} to {MAX_RESOLUTION}, "
                f"not {size}"
            )
        if self.img_channels < 1 or self.channel_max < 1 or self.channel_base < size:
            raise InputError(
                f"img_channels {self.img_channels}, channel_base {self.channel_base} and "
                f"channel_max {self.channel_max} leave a layer without channels"
            )
        _check_choice("architecture", self.architecture, ARCHITECTURES)
        _check_choice("activation", self.activation, ACTIVATIONS)
        if self.conv_clamp is not None and not self.conv_clamp > 0:
            raise InputError(f"conv_clamp must be above 0, not {self.conv_clamp}")
        taps = np.asarray(self.resample_filter, np.float64)
        if taps.ndim not in (1, 2) or not taps.size or not np.isfinite(taps).all():
            raise InputError(f"resample_filter cannot be {self.resample_filter}")
        if max(taps.shape) > MAX_TAPS:
            raise InputError(f"resample_filter has more than {MAX_TAPS} taps")
        if abs(taps.sum()) < 1e-6:
            raise InputError(f"resample_filter must not sum to 0: {self.resample_filter}")

    @property
    def resolutions(self) -> list[int]:
        """4, 8, ... up to the image's."""
        return [2**power for power in range(2, self.resolution.bit_length())]

    def channels(self, resolution: int) -> int:
        """Returns the channels of the layers at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    def has_image(self, resolution: int) -> bool:
        """Whether the block of a resolution writes (or reads) the image."""
        return self.architecture == "skip" or resolution == self.resolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig(_ConvolutionConfig):
    """A generator."""

    mapping: MappingConfig
    use_noise: bool = True  # whether noise is added after the convolutions
    # Decay of the mean w in training; None: the network has no mean w.
    w_avg_beta: float | None = 0.995

    def __post_init__(self):
        super().__post_init__()
        if self.w_avg_beta is not None and not 0 <= self.w_avg_beta <= 1:
            raise InputError(f"w_avg_beta must be in [0, 1], not {self.w_avg_beta}")

    @property
    def convolutions(self) -> list[tuple[int, str]]:
        """Every styled convolution in order of use, as (resolution, "conv0" or "conv1")."""
        return [(4, "conv1")] + [
            (size, name) for size in self.resolutions[1:] for name in ("conv0", "conv1")
        ]

    @property
    def num_ws(self) -> int:
        """Number of w per image: one for each convolution and one for the last image."""
        return len(self.convolutions) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(_ConvolutionConfig):
    """A discriminator."""

    architecture: str = "resnet"
    # From the class to the vector that the features are projected on (Miyato and Koyama 2018); None
    # for an unconditional one.
    mapping: MappingConfig | None = None
    epilogue_activation: str = "lrelu"  # of the last two layers, at 4x4; a key of `ACTIVATIONS`
    mbstd_group_size: int | None = 4  # samples over which a standard deviation is taken; None: all
    mbstd_num_channels: int = 1  # features that it adds; 0: none

    def __post_init__(self):
        super().__post_init__()
        _check_choice("epilogue_activation", self.epilogue_activation, ACTIVATIONS)
        if self.mbstd_group_size is not None and self.mbstd_group_size < 1:
            raise InputError(f"mbstd_group_size must be at least 1, not {self.mbstd_group_size}")
        if self.mbstd_num_channels < 0 or self.channels(4) % max(1, self.mbstd_num_channels):
            raise InputError(
                f"mbstd_num_channels {self.mbstd_num_channels} must divide {self.channels(4)}"
            )
        if self.mapping is not None and (self.mapping.z_dim or not self.mapping.c_dim):
            raise InputError("a discriminator maps classes, and only classes")


def _check_choice(name: str, value: Any, accepted: Any) -> None:
    if value not in accepted:
        raise InputError(f"{name} cannot be '{value}'{did_you_mean(str(value), accepted)}")


def shapes(config: GeneratorConfig | DiscriminatorConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array of a network by dotted name, in this project's layouts.

    A generator's include the buffers: "mapping.w_avg" and "*.noise_const".
    """
    is_generator = isinstance(config, GeneratorConfig)
    return dict(_generator_shapes(config) if is_generator else _discriminator_shapes(config))


def _layer_shapes(name: str, *weight: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[-1:]


def _mapping_shapes(config: MappingConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    if config.c_dim:
        yield from _layer_shapes("mapping.embed", config.c_dim, config.embed_features)
    widths = config.widths()
    for layer, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        yield from _layer_shapes(f"mapping.fc{layer}", inputs, outputs)


def _generator_shapes(config: GeneratorConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    w_dim = config.mapping.w_dim
    yield from _mapping_shapes(config.mapping)
    if config.w_avg_beta is not None:
        yield "mapping.w_avg", (w_dim,)
    yield "synthesis.b4.const", (1, 4, 4, config.channels(4))
    inputs = config.channels(4)
    for size, name in config.convolutions:
        outputs, layer = config.channels(size), f"synthesis.b{size}.{name}"
        yield from _layer_shapes(layer, 3, 3, inputs, outputs)
        yield from _layer_shapes(f"{layer}.affine", w_dim, inputs)
        if config.use_noise:
            yield f"{layer}.noise_strength", ()
            yield f"{layer}.noise_const", (1, size, size, 1)
        if name == "conv0" and config.architecture == "resnet":
            yield f"synthesis.b{size}.skip.weight", (1, 1, inputs, outputs)
        if name == "conv1" and config.has_image(size):
            torgb = f"synthesis.b{size}.torgb"
            yield from _layer_shapes(torgb, 1, 1, outputs, config.img_channels)
            yield from _layer_shapes(f"{torgb}.affine", w_dim, outputs)
        inputs = outputs


def _discriminator_shapes(config: DiscriminatorConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    if config.mapping is not None:
        yield from _mapping_shapes(config.mapping)
    for size in reversed(config.resolutions):
        channels = config.channels(size)
        if config.has_image(size):
            yield from _layer_shapes(f"b{size}.fromrgb", 1, 1, config.img_channels, channels)
        if size > 4:
            outputs = config.channels(size // 2)
            yield from _layer_shapes(f"b{size}.conv0", 3, 3, channels, channels)
            yield from _layer_shapes(f"b{size}.conv1", 3, 3, channels, outputs)
            if config.architecture == "resnet":
                yield f"b{size}.skip.weight", (1, 1, channels, outputs)
    channels = config.channels(4)
    yield from _layer_shapes("b4.conv", 3, 3, channels + config.mbstd_num_channels, channels)
    yield from _layer_shapes("b4.fc", 16 * channels, channels)
    yield from _layer_shapes("b4.out", channels, config.mapping.w_dim if config.mapping else 1)


def map_latents(
    config: MappingConfig, params: Params, z: jax.Array | None, c: jax.Array | None = None
) -> jax.Array:
    """Maps latents [n, z_dim] and one-hot classes [n, c_dim] to w [n, w_dim]; None where 0 wide."""
    inputs = [_normalize(z)] if z is not None and config.z_dim else []
    if config.c_dim:
        if c is None:
            raise InputError(f"the network is conditional: give one of its {config.c_dim} classes")
        inputs.append(_normalize(_dense(params["embed"], c)))
    x = jnp.concatenate(inputs, axis=-1)
    for layer in range(config.num_layers):
        x = _dense(params[f"fc{layer}"], x, config.lr_multiplier)
        x = _activate(x, None, config.activation)
    return x


def truncate(
    w: jax.Array, w_avg: jax.Array, num_ws: int, psi: jax.Array | float, cutoff: Any = None
) -> jax.Array:
    """Repeats w [n, w_dim] to [n, num_ws, w_dim], moved towards the mean (the truncation trick).

    `w_avg` is [w_dim], or [n, w_dim], one for each sample. `psi` 1 leaves w unchanged, 0 gives the
    mean; `cutoff` is how many of the first layers are truncated; None: all.
    """
    truncated = w_avg + (w - w_avg) * psi
    is_truncated = jnp.arange(num_ws) < (num_ws if cutoff is None else cutoff)
    return jnp.where(is_truncated[None, :, None], truncated[:, None], w[:, None])


def random_noise(config: GeneratorConfig, keys: jax.Array) -> dict[str, jax.Array]:
    """Returns standard normal noise [n, h, w, 1] by layer; a sample's depends on its key alone."""
    return {
        f"b{size}_{name}": jax.vmap(
            lambda key, index=index, size=size: jax.random.normal(
                jax.random.fold_in(key, index), (size, size, 1)
            )
        )(keys)
        for index, (size, name) in enumerate(config.convolutions)
    }


def synthesize(
    config: GeneratorConfig,
    params: Params,
    ws: jax.Array,
    noise: Mapping[str, jax.Array],
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Generates images from `ws` [n, num_ws, w_dim] and the parameters "synthesis".

    `noise` is [n or 1, h, w, 1] for some or all of "b4_conv1", "b8_conv0", "b8_conv1", ...; a layer
    without an entry gets none. `dtype` is of the activations; styles, norms and the image are at
    least float32.

    Returns [n, resolution, resolution, img_channels], around [-1, 1], not clipped.
    """
    *_, (_, _, images) = synthesis_blocks(config, params, ws, noise, dtype)
    assert images is not None  # the last block always writes it
    return images


def synthesis_blocks(
    config: GeneratorConfig,
    params: Params,
    ws: jax.Array,
    noise: Mapping[str, jax.Array],
    dtype: Any = jnp.float32,
) -> Iterator[tuple[int, jax.Array, jax.Array | None]]:
    """As `synthesize`: yields (resolution, features [n, h, w, channels], images so far or None)."""
    n = ws.shape[0]
    const = params["b4"]["const"].astype(dtype)
    x = jnp.broadcast_to(const, (n, *const.shape[1:]))
    images = None
    index = 0
    for size in config.resolutions:
        block = params[f"b{size}"]
        has_shortcut = size > 4 and config.architecture == "resnet"
        gain = math.sqrt(0.5) if has_shortcut else 1.0
        shortcut = _upsample(_conv1x1(x, block["skip"]), config) if has_shortcut else None
        for name in ("conv1",) if size == 4 else ("conv0", "conv1"):
            x = _styled_conv(
                config,
                block[name],
                x,
                ws[:, index],
                noise.get(f"b{size}_{name}"),
                up=name == "conv0",
                gain=gain if name == "conv1" else 1.0,
            )
            index += 1
        if shortcut is not None:
            x = (_to_float32(x) + shortcut * gain).astype(dtype)
        if config.has_image(size):
            # The image takes the w of the next block's first convolution; no demodulation.
            layer = block["torgb"]
            style = _dense(layer["affine"], ws[:, index])[:, None, None]
            image = _conv1x1((_to_float32(x) * style).astype(x.dtype), layer)
            image = _activate(image, layer["bias"], "linear", clamp=config.conv_clamp)
            images = image if images is None else _upsample(images, config) + image
        yield size, x, images


def _styled_conv(
    config: GeneratorConfig,
    layer: Params,
    x: jax.Array,
    w: jax.Array,
    noise: jax.Array | None,
    *,
    up: bool,
    gain: float,
) -> jax.Array:
    dtype, weight = x.dtype, layer["weight"]
    style = _dense(layer["affine"], w)
    squares = jnp.square(weight)
    # XLA:CPU sums the leading axes of an array one number at a time: ten times slower.
    norms = _add_all([squares[i, j] for i, j in np.ndindex(*weight.shape[:2])])
    demodulation = jax.lax.rsqrt(jnp.square(style) @ norms + 1e-8)
    x = (_to_float32(x) * style[:, None, None]).astype(dtype)
    x = _up_conv(x, weight, config) if up else _conv(x, weight)
    x = _to_float32(x) * demodulation[:, None, None]
    if noise is not None and "noise_strength" in layer:
        x = x + noise * layer["noise_strength"]
    x = _activate(x, layer["bias"], config.activation, gain, config.conv_clamp)
    return x.astype(dtype)


def _add_all(terms: list[jax.Array]) -> jax.Array:
    return functools.reduce(operator.add, terms)


def discriminate(
    config: DiscriminatorConfig,
    params: Params,
    images: jax.Array,
    c: jax.Array | None = None,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Computes logits [n, 1] of images [n, resolution, resolution, img_channels] being real.

    They depend on the order of the samples: sample i shares a standard deviation with i + n /
    group, i + 2 n / group, ... `c` is [n, c_dim], one-hot; None if the network is unconditional.
    `dtype` is of the activations; the statistics and the logits are at least float32.
    """
    x = _discriminator_features(config, params, images, dtype)
    if config.mapping is None:
        return x
    projection = map_latents(config.mapping, params["mapping"], None, c)
    return jnp.sum(x * projection, axis=1, keepdims=True) / math.sqrt(config.mapping.w_dim)


def discriminate_classes(
    config: DiscriminatorConfig, params: Params, images: jax.Array, dtype: Any = jnp.float32
) -> jax.Array:
    """Computes the logits of `discriminate` for every class at once: [n, c_dim]."""
    assert config.mapping is not None  # it is conditional
    x = _discriminator_features(config, params, images, dtype)
    every = jnp.eye(config.mapping.c_dim, dtype=x.dtype)
    projections = map_latents(config.mapping, params["mapping"], None, every)
    return x @ projections.T / math.sqrt(config.mapping.w_dim)


def _discriminator_features(
    config: DiscriminatorConfig, params: Params, images: jax.Array, dtype: Any
) -> jax.Array:
    """Returns what is projected on a class, [n, w_dim]; without classes the logits, [n, 1]."""
    clamp = config.conv_clamp
    x = jnp.zeros((), dtype)  # the first block adds the image to it
    for size in reversed(config.resolutions[1:]):
        block = params[f"b{size}"]
        if config.has_image(size):
            read = images.astype(dtype)
            x = x + _plain_conv(block["fromrgb"], read, config.activation, clamp=clamp)
        if config.architecture == "skip":
            images = _downsample(images, config)
        gain, shortcut = 1.0, None
        if config.architecture == "resnet":
            gain = math.sqrt(0.5)
            shortcut = _conv1x1(_downsample(x, config).astype(dtype), block["skip"])
        x = _plain_conv(block["conv0"], x, config.activation, clamp=clamp)
        # One pixel more than `_downsample` on each side, for the 3x3 convolution.
        x = _low_pass(x, config, lambda taps: ((taps + 1) // 2, taps // 2)).astype(dtype)
        x = _plain_conv(block["conv1"], x, config.activation, clamp=clamp, gain=gain, stride=2)
        if shortcut is not None:
            x = (_to_float32(x) + shortcut * gain).astype(dtype)
    last = params["b4"]
    if config.architecture == "skip":
        read = images.astype(dtype)
        x = x + _plain_conv(last["fromrgb"], read, config.epilogue_activation, clamp=None)
    # As published: here everything is at least float32.
    x = _minibatch_stddev(config, _to_float32(x))
    x = _plain_conv(last["conv"], x, config.epilogue_activation, clamp=clamp)
    # The published dense layer counts channels before rows and columns.
    x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)
    x = _activate(_dense(last["fc"], _to_float32(x)), None, config.epilogue_activation)
    return _dense(last["out"], x)


def _plain_conv(
    layer: Params,
    x: jax.Array,
    activation: str,
    *,
    clamp: float | None,
    gain: float = 1.0,
    stride: int = 1,
) -> jax.Array:
    """Applies an equalized convolution, bias, activation; with a stride the input is padded."""
    weight = layer["weight"]
    weight = weight / math.sqrt(math.prod(weight.shape[:3]))
    dtype = x.dtype
    if stride == 1:
        x = _conv(x, weight)
    else:
        x = conv2d(x, weight.astype(x.dtype), ((0, 0), (0, 0)), stride)
    return _activate(_to_float32(x), layer["bias"], activation, gain, clamp).astype(dtype)


def _minibatch_stddev(config: DiscriminatorConfig, x: jax.Array) -> jax.Array:
    """Appends the mean standard deviation over groups of samples (Karras et al. 2018)."""
    n, height, width, channels = x.shape
    features = config.mbstd_num_channels
    if not features:
        return x
    group = min(config.mbstd_group_size or n, n)
    if n % group:
        raise InputError(f"a batch of {n} cannot be divided into groups of {group} samples")
    y = _to_float32(x).reshape(group, n // group, height, width, features, channels // features)
    deviation = jnp.sqrt(jnp.mean(jnp.square(y - y.mean(0)), axis=0) + 1e-8)
    deviation = deviation.mean(axis=(1, 2, 4))
    deviation = jnp.tile(deviation, (group, 1))[:, None, None]
    deviation = jnp.broadcast_to(deviation, (n, height, width, features)).astype(x.dtype)
    return jnp.concatenate([x, deviation], axis=-1)


def _normalize(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-8)


def _dense(layer: Params, x: jax.Array, lr_multiplier: float = 1.0) -> jax.Array:
    """Maps [n, in] to [n, out], equalized: weights are stored with unit variance."""
    gain = lr_multiplier / math.sqrt(x.shape[-1])
    return x @ (layer["weight"] * gain) + layer["bias"] * lr_multiplier


def _activate(
    x: jax.Array,
    bias: jax.Array | None,
    activation: str,
    gain: float = 1.0,
    clamp: float | None = None,
) -> jax.Array:
    function, activation_gain = ACTIVATIONS[activation]
    x = function(x if bias is None else x + bias) * (activation_gain * gain)
    return x if clamp is None else jnp.clip(x, -clamp * gain, clamp * gain)


def _conv(x: jax.Array, weight: jax.Array, padding: Padding | None = None) -> jax.Array:
    """Convolves with stride 1; without a padding to the same size."""
    rows, columns = weight.shape[:2]
    same = ((rows - 1) // 2, rows // 2), ((columns - 1) // 2, columns // 2)
    return conv2d(x, weight.astype(x.dtype), padding or same)


def _to_float32(x: jax.Array) -> jax.Array:
    """Converts to float32 at least: nothing between two convolutions is rounded to less."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _conv1x1(x: jax.Array, layer: Params) -> jax.Array:
    """Applies an equalized 1x1 convolution without bias; the result is at least float32."""
    weight = layer["weight"][0, 0] / math.sqrt(x.shape[-1])
    return jax.lax.dot_general(
        x,
        weight.astype(x.dtype),
        (((3,), (0,)), ((), ())),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )


def _up_conv(x: jax.Array, weight: jax.Array, config: _ConvolutionConfig) -> jax.Array:
    """Applies a transposed 3x3 convolution by 2, then the low-pass filter: to [n, 2h, 2w, out].

    The result of the former is four arrays, one for each parity of row and column: each is a
    convolution with the taps of that parity, which multiplies no zeros.
    """
    taps = weight[::-1, ::-1]
    phases = {
        (row, column): _conv(x, taps[row::2, column::2], ((1 - row, 1), (1 - column, 1)))
        for row in (0, 1)
        for column in (0, 1)
    }
    return _filter_phases(phases, x.shape, config, lambda taps: taps // 2)


def _upsample(x: jax.Array, config: _ConvolutionConfig) -> jax.Array:
    """Inserts zeros, then applies the low-pass filter: [n, h, w, c] to [n, 2h, 2w, c]."""
    return _filter_phases({(0, 0): x}, x.shape, config, lambda taps: taps - 1 - (taps + 1) // 2)


def _filter_phases(
    phases: dict[tuple[int, int], jax.Array],
    shape: tuple[int, ...],
    config: _ConvolutionConfig,
    offset: Callable[[int], int],
) -> jax.Array:
    """Applies the low-pass filter to an image [n, 2h, 2w, c] given by its phases.

    `phases` is by (parity of row, parity of column), [n, about h, about w, c]; what is missing or
    beyond their edges is zero. `shape` is (n, h, w, ...), `offset` maps a number of taps to the
    pixel under the first tap for pixel 0.
    """
    n, height, width = shape[:3]
    exact = {parity: _to_float32(phase) for parity, phase in phases.items()}
    zero = jnp.zeros((n, height, width, phases[0, 0].shape[-1]), exact[0, 0].dtype)
    totals: dict[tuple[int, int], jax.Array] = {}
    for rows, columns in _factors(config):
        for row in (0, 1):
            filtered = {}
            for column in (0, 1):
                lines = {r: exact[r, c] for r, c in exact if c == column}
                line = _phase(lines, 2 * rows, offset(len(rows)), row, height, 1)
                if line is not None:
                    filtered[column] = line
            for column in (0, 1):
                term = _phase(filtered, 2 * columns, offset(len(columns)), column, width, 2)
                if term is not None:
                    before = totals.get((row, column))
                    totals[row, column] = term if before is None else before + term
    quarters = [[totals.get((row, column), zero) for column in (0, 1)] for row in (0, 1)]
    x = jnp.stack([jnp.stack(pair, axis=3) for pair in quarters], axis=2)
    return x.reshape(n, 2 * height, 2 * width, -1)


def _phase(
    sources: dict[int, jax.Array],
    taps: np.ndarray,
    offset: int,
    parity: int,
    size: int,
    axis: int,
) -> jax.Array | None:
    """Computes one parity of a filtered line from both parities of the unfiltered one."""
    total = None
    for index, tap in enumerate(taps):
        shift, source = divmod(parity + offset - index, 2)
        if source not in sources:
            continue
        x = sources[source]
        edges = [(0, 0, 0)] * 4
        edges[axis] = (-shift, shift + size - x.shape[axis], 0)
        term = float(tap) * jax.lax.pad(x, jnp.zeros((), x.dtype), edges)
        total = term if total is None else total + term
    return total


def _downsample(x: jax.Array, config: _ConvolutionConfig) -> jax.Array:
    """Applies the low-pass filter, then skips pixels: [n, h, w, c] to [n, h/2, w/2, c]."""
    x = _low_pass(x, config, lambda taps: ((taps - 1) // 2, (taps - 2) // 2))
    return x[:, ::2, ::2]


def _low_pass(
    x: jax.Array, config: _ConvolutionConfig, margins: Callable[[int], tuple[int, int]]
) -> jax.Array:
    """Applies the low-pass filter as shifted adds: to [n, h + before + after - taps + 1, ..., c].

    `margins` maps the number of taps to the zeros added before and after (negative: cropped).
    """
    factors = _factors(config)
    num_rows, num_columns = len(factors[0][0]), len(factors[0][1])
    edges = [(0, 0, 0), (*margins(num_rows), 0), (*margins(num_columns), 0), (0, 0, 0)]
    x = _to_float32(jax.lax.pad(x, jnp.zeros((), x.dtype), edges))
    height, width = x.shape[1] - num_rows + 1, x.shape[2] - num_columns + 1
    terms = []
    for rows, columns in factors:
        # A convolution flips its filter: the last tap multiplies the first pixel.
        line = _add_all([float(tap) * x[:, i : i + height] for i, tap in enumerate(rows[::-1])])
        terms += [float(tap) * line[:, :, i : i + width] for i, tap in enumerate(columns[::-1])]
    return _add_all(terms)


def _factors(config: _ConvolutionConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the low-pass filter as a sum of outer products: (rows, columns) each."""
    taps = np.asarray(config.resample_filter, np.float64)
    if taps.ndim == 1:
        return [(taps / taps.sum(), taps / taps.sum())]
    left, sizes, right = np.linalg.svd(taps / taps.sum())
    significant = np.flatnonzero(sizes > 1e-7 * sizes[0])
    return [(left[:, i] * sizes[i], right[i]) for i in significant]
