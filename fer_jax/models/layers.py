"""Layers of Xception and StyleGAN2 in forms that XLA runs fast, with their own gradients; NHWC.

BatchNorm has two parts, statistics of each channel and one affine pass: a layer returns its output
before the affine pass (`Unnormalized`), and the next layer applies scale, offset and ReLU while
reading. Sums and products are accumulated in float32 (float64 for float64 inputs): bfloat16
accumulation gave 9 % error in a depthwise weight gradient. Gradients are sums of shifted arrays,
not gathers or scans over images, so that a sharded batch only adds all-reduces for the weights.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.models import kernels
from fer_jax.models.kernels import Unnormalized

EPSILON = 1e-3  # Keras'
# Rows summed within one loop; XLA:CPU would write every product to memory before a sum.
ROWS_IN_A_LOOP = range(8, 17)
_TAPS = [(row, column) for row in range(3) for column in range(3)]

Padding = tuple[tuple[int, int], tuple[int, int]]


def accumulator(dtype: Any) -> Any:
    """Returns the dtype of sums: float32, or float64 for float64 values."""
    return jnp.promote_types(dtype, jnp.float32)


def as_unnormalized(x: jax.Array) -> Unnormalized:
    """Returns an array with scale 1 and offset 0, which the compiler drops."""
    dtype = accumulator(x.dtype)
    return Unnormalized(x, jnp.ones(x.shape[-1], dtype), jnp.zeros(x.shape[-1], dtype))


def sum_pixels(term: Callable[[slice], jax.Array], height: int) -> jax.Array:
    """Sums over images, rows and columns to [channels], without writing the summands to memory.

    `term` returns the summands of the rows in a slice, [batch, rows, width, channels] float32. Up
    to 16 rows are added in one elementwise loop; the rest is a product with ones, at the speed of
    matrix products. Four times faster on CPU than `jnp.sum` of nine products at 14 x 14 x 728, and
    no slower for a single sum.
    """
    step = max((n for n in ROWS_IN_A_LOOP if height % n == 0), default=min(16, height))
    whole = height // step * step
    groups = [[slice(row, whole, step) for row in range(step)]]
    if whole < height:
        groups.append([slice(row, row + 1) for row in range(whole, height)])
    sums = []
    for rows in groups:
        x = functools.reduce(operator.add, map(term, rows))
        ones = jnp.ones(x.shape[:-1], x.dtype)
        sums.append(jnp.tensordot(ones, x, axes=3))
    return functools.reduce(operator.add, sums)


def channel_sums(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sums a and a * b over images, rows and columns: two [b, h, w, c] to [2, c].

    The inputs have one dtype, the sums that of `accumulator`. Only on CPU are they products with
    ones: elsewhere those are kernels of their own, and may round float32 to TF32.
    """
    dtype, height = accumulator(a.dtype), a.shape[1]

    def products(a: jax.Array, b: jax.Array) -> jax.Array:
        def product(rows: slice) -> jax.Array:
            return a[:, rows].astype(dtype) * b[:, rows].astype(dtype)

        single = sum_pixels(lambda rows: a[:, rows].astype(dtype), height)
        return jnp.stack([single, sum_pixels(product, height)])

    def reductions(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.astype(dtype), b.astype(dtype)
        return jnp.stack([x.sum((0, 1, 2)) for x in (a, a * b)])

    on_cpu = kernels.channel_sums if kernels.usable(a) else products
    return jax.lax.platform_dependent(a, b, cpu=on_cpu, default=reductions)


@jax.custom_vjp
def moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes mean and biased variance, [channels], in the dtype of `accumulator`."""
    sums = channel_sums(x, x)
    mean, square = sums / (x.size // x.shape[-1])
    return mean, jnp.maximum(square - jnp.square(mean), 0)


def _moments_forward(x: jax.Array) -> Any:
    mean, variance = moments(x)
    return (mean, variance), (x, mean)


def _moments_backward(saved: Any, gradients: Any) -> tuple[jax.Array]:
    x, mean = saved
    of_mean, of_variance = gradients
    count = x.size // x.shape[-1]
    slope = 2 * of_variance / count
    return ((x * slope + (of_mean / count - mean * slope)).astype(x.dtype),)


moments.defvjp(_moments_forward, _moments_backward)


@jax.custom_vjp
def affine(x: Unnormalized) -> jax.Array:
    """Computes values * scale + offset in the values' dtype; the gradient needs two sums."""
    return (x.values * x.scale + x.offset).astype(x.values.dtype)


def _affine_gradient(x: Unnormalized, gradient: jax.Array) -> Unnormalized:
    of_offset, of_scale = channel_sums(gradient, x.values)
    return Unnormalized((gradient * x.scale).astype(x.values.dtype), of_scale, of_offset)


affine.defvjp(lambda x: (affine(x), x), lambda x, g: (_affine_gradient(x, g),))


class BatchNorm(nnx.Module):
    """Keras' BatchNorm over the global batch; a step keeps `momentum` of the statistics."""

    def __init__(self, channels: int, *, momentum: float):
        self.momentum = momentum
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))

    def __call__(self, x: jax.Array, use_running_average: bool) -> Unnormalized:
        """Maps [b, h, w, channels] to the same with a pending affine pass."""
        if use_running_average:
            mean, variance = self.mean[...], self.var[...]
        else:
            mean, variance = moments(x)
            keep = self.momentum
            self.mean[...] = keep * self.mean[...] + (1 - keep) * mean
            self.var[...] = keep * self.var[...] + (1 - keep) * variance
        scale = self.scale[...] * jax.lax.rsqrt(variance + EPSILON)
        dtype = accumulator(x.dtype)
        return Unnormalized(x, scale.astype(dtype), (self.bias[...] - mean * scale).astype(dtype))


@jax.custom_vjp
def max_pool3x3(x: jax.Array) -> jax.Array:
    """3x3 maximum with stride 2: [b, h, w, c] to [b, ceil(h / 2), ceil(w / 2), c] in x's dtype.

    The gradient goes to the first maximum of a window in reading order, as in XLA, whose
    select-and-scatter is twenty times slower on CPU.
    """
    return functools.reduce(jnp.maximum, _windows(x))


def _windows(x: jax.Array) -> list[jax.Array]:
    rows, columns = ((-(-size // 2), size % 2) for size in x.shape[1:3])
    padded = jnp.pad(
        x,
        [(0, 0), *((odd, 1) for _, odd in (rows, columns)), (0, 0)],
        constant_values=-jnp.inf,
    )
    return [
        padded[:, row : row + 2 * rows[0] - 1 : 2, column : column + 2 * columns[0] - 1 : 2]
        for row, column in _TAPS
    ]


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, Any]:
    pooled = jnp.asarray(max_pool3x3(x))
    first = jnp.full(pooled.shape, len(_TAPS), jnp.uint8)
    for number, window in reversed(list(enumerate(_windows(x)))):
        first = jnp.where(window == pooled, jnp.uint8(number), first)
    # An empty array carries the input's shape and dtype.
    return pooled, (first, jnp.zeros((0, *x.shape[1:]), x.dtype))


def _max_pool_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array]:
    """Computes the gradient in four planes, by the parity of row and column.

    Output o has the taps 2 o, 2 o + 1 and 2 o + 2: an even pixel is the first tap of one output and
    the last of the previous one, an odd pixel the middle tap of one.
    """
    first, like = saved
    first, gradient = _materialize(first), _materialize(gradient)
    batch, rows, columns, channels = gradient.shape
    dtype = accumulator(gradient.dtype)
    gradient = gradient.astype(dtype)

    def plane(row_taps: tuple[int, ...], column_taps: tuple[int, ...]) -> jax.Array:
        total = 0
        for row in row_taps:
            for column in column_taps:
                selected = jnp.where(first == 3 * row + column, gradient, 0)
                ends = [(tap // 2, 1 - tap // 2) for tap in (row, column)]
                total += jnp.pad(selected, ((0, 0), *ends, (0, 0)))
        return jnp.asarray(total).astype(like.dtype)

    planes = [plane(rows, columns) for rows in ((0, 2), (1,)) for columns in ((0, 2), (1,))]
    ee, eo, oe, oo = map(_materialize, planes)
    whole = jnp.stack([jnp.stack([ee, eo], 3), jnp.stack([oe, oo], 3)], 2)
    whole = whole.reshape(batch, 2 * ee.shape[1], 2 * ee.shape[2], channels)
    height, width = like.shape[1:3]
    return (whole[:, height % 2 : height % 2 + height, width % 2 : width % 2 + width],)


def _materialize(x: jax.Array) -> jax.Array:
    """Makes XLA:CPU compute an array once and write it to memory.

    It would recompute the gradient and the first maxima wherever a plane reads them, nine times per
    pixel: a sixth of a train step. Its fusion ignores an optimization barrier, but not a loop whose
    number of rounds, one, is hidden behind a barrier.
    """
    if jax.default_backend() != "cpu":
        return x

    def unchanged(carried: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rounds, x = carried
        # XLA moves a value that a loop leaves unchanged out of it.
        return rounds + 1, jnp.where(rounds > 0, jnp.zeros_like(x), x)

    end = jax.lax.optimization_barrier(jnp.int32(1))
    return jax.lax.while_loop(lambda carried: carried[0] < end, unchanged, (jnp.int32(0), x))[1]


max_pool3x3.defvjp(_max_pool_forward, _max_pool_backward)


def glorot(key: jax.Array, shape: tuple[int, ...], fan_in: int, fan_out: int) -> jax.Array:
    """Samples uniformly in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010), float32."""
    bound = (6.0 / (fan_in + fan_out)) ** 0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


class Convolution(nnx.Module):
    """3x3 convolution without padding or bias, BatchNorm, ReLU."""

    def __init__(
        self, channels: int, filters: int, *, stride: int, momentum: float, rngs: nnx.Rngs
    ):
        self.stride = stride
        shape = (3, 3, channels, filters)
        self.kernel = nnx.Param(glorot(rngs.params(), shape, 9 * channels, 9 * filters))
        self.norm = BatchNorm(filters, momentum=momentum)

    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """Maps [b, h, w, channels] to [b, (h - 3) / stride + 1, (w - 3) / stride + 1, filters]."""
        x = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (self.stride, self.stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return nnx.relu(affine(self.norm(x, use_running_average)))


def depthwise_conv3x3(
    x: jax.Array | Unnormalized, kernel: jax.Array, *, relu: bool = False
) -> jax.Array:
    """Convolves [b, h, w, c] depthwise by [3, 3, c], stride 1, zero padding to the same size.

    A pending BatchNorm and, with `relu`, a ReLU are applied to the input on reading.

    On CPU the compiled kernels or, without them, nine shifted multiply-adds with their own
    gradient: XLA:CPU's grouped convolution is more than ten times slower forward and twenty times
    backward. Elsewhere the grouped convolution.
    """
    x = x if isinstance(x, Unnormalized) else as_unnormalized(x)
    if kernels.usable(x.values):
        return fused_conv3x3(x, kernel, relu)
    if jax.default_backend() == "cpu":
        return shifted_conv3x3(x, kernel, relu)
    return grouped_conv3x3(_activated(x, relu), kernel)


def grouped_conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Does the same with XLA's own operation, without BatchNorm and ReLU."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :].astype(x.dtype),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _pad(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _activated(x: Unnormalized, relu: bool) -> jax.Array:
    inputs = affine(x)
    return nnx.relu(inputs) if relu else inputs


def _sum_of_shifts(padded: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves [b, h + 2, w + 2, c] to [b, h, w, c] in the accumulating dtype."""
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    dtype = accumulator(padded.dtype)
    kernel = kernel.astype(dtype)
    total = 0
    for row, column in _TAPS:
        window = padded[:, row : row + height, column : column + width]
        total += window.astype(dtype) * kernel[row, column]
    return jnp.asarray(total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def shifted_conv3x3(x: Unnormalized, kernel: jax.Array, relu: bool) -> jax.Array:
    """Does the same with nine shifted multiply-adds, with BatchNorm and ReLU."""
    return _sum_of_shifts(_pad(_activated(x, relu)), kernel).astype(x.values.dtype)


def _shifted_backward(
    relu: bool, saved: Any, gradient: jax.Array
) -> tuple[Unnormalized, jax.Array]:
    """The input's gradient is a convolution with the flipped kernel; the kernel's, nine sums.

    The activated input is recomputed instead of saved: it is as large as the values.
    """
    x, kernel = saved
    dtype = accumulator(gradient.dtype)
    height, width = gradient.shape[1:3]
    activated = _activated(x, relu)
    padded, gradient_padded = _pad(activated), _pad(gradient)

    def tap(row: int, column: int) -> jax.Array:
        def product(rows: slice) -> jax.Array:
            shifted = slice(rows.start + row, rows.stop + row, rows.step)
            window = padded[:, shifted, column : column + width]
            return window.astype(dtype) * gradient[:, rows].astype(dtype)

        return sum_pixels(product, height)

    of_kernel = jnp.stack([tap(*place) for place in _TAPS]).reshape(kernel.shape)
    of_input = _sum_of_shifts(gradient_padded, kernel[::-1, ::-1])
    if relu:
        of_input = jnp.where(activated > 0, of_input, 0)
    return _affine_gradient(x, of_input.astype(gradient.dtype)), of_kernel.astype(kernel.dtype)


shifted_conv3x3.defvjp(lambda x, k, relu: (shifted_conv3x3(x, k, relu), (x, k)), _shifted_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def fused_conv3x3(x: Unnormalized, kernel: jax.Array, relu: bool) -> jax.Array:
    """Does the same with the kernel of each platform that has one, forward and backward."""
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(kernels.depthwise, relu=relu),
        default=lambda x, kernel: shifted_conv3x3(x, kernel, relu),
    )


def _fused_backward(relu: bool, saved: Any, gradient: jax.Array) -> tuple[Unnormalized, jax.Array]:
    return jax.lax.platform_dependent(
        *saved,
        gradient,
        cpu=functools.partial(kernels.depthwise_gradient, relu=relu),
        default=lambda x, kernel, gradient: _shifted_backward(relu, (x, kernel), gradient),
    )


fused_conv3x3.defvjp(lambda x, k, relu: (fused_conv3x3(x, k, relu), (x, k)), _fused_backward)


@jax.custom_vjp
def pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution as a matrix product, which uses the matrix units of CPU and GPU.

    Maps [batch, height, width, channels] by [channels, filters] to [batch, height, width, filters].
    """
    return _product(x, kernel.astype(x.dtype), ((3,), (0,))).astype(x.dtype)


def _product(a: jax.Array, b: jax.Array, contracted: Any) -> jax.Array:
    # A bfloat16 product that returns bfloat16 does not use the CPU's matrix unit.
    return jax.lax.dot_general(
        a, b, (contracted, ((), ())), preferred_element_type=accumulator(a.dtype)
    )


def _pointwise_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    of_input = _product(gradient, kernel.astype(x.dtype), ((3,), (1,))).astype(x.dtype)
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        # The bfloat16 instructions are used only if the left side is transposed in memory, and the
        # compiler drops a transposition that nothing follows: hence a row of zeros. (A layout
        # constraint does it too, but gathers a sharded batch.)
        transposed = jnp.pad(rows.T, ((0, 1), (0, 0)))
        of_kernel = _product(transposed, gradients, ((1,), (0,)))[:-1]
    else:
        of_kernel = _product(rows, gradients, ((0,), (0,)))
    return of_input, of_kernel.astype(kernel.dtype)


pointwise_conv.defvjp(lambda x, k: (pointwise_conv(x, k), (x, k)), _pointwise_backward)


class Pointwise(nnx.Module):
    """1x1 convolution without bias, then BatchNorm; a stride skips pixels."""

    def __init__(
        self, channels: int, filters: int, *, stride: int = 1, momentum: float, rngs: nnx.Rngs
    ):
        self.stride = stride
        self.kernel = nnx.Param(glorot(rngs.params(), (channels, filters), channels, filters))
        self.norm = BatchNorm(filters, momentum=momentum)

    def __call__(self, x: jax.Array, use_running_average: bool) -> Unnormalized:
        """Maps [b, h, w, channels] to [b, h / stride, w / stride, filters]."""
        if self.stride > 1:
            # Without the barrier XLA:GPU merges the stride into the product and the process aborts
            # (openxla/xla#47381).
            x = jax.lax.optimization_barrier(x[:, :: self.stride, :: self.stride])
        return self.norm(pointwise_conv(x, self.kernel[...]), use_running_average)


class Separable(nnx.Module):
    """Optional ReLU, depthwise 3x3, pointwise, BatchNorm; no bias, nothing in between."""

    def __init__(
        self, channels: int, filters: int, *, relu: bool = True, momentum: float, rngs: nnx.Rngs
    ):
        # Every channel is a convolution of its own, with nine inputs per output. Counting all
        # channels as inputs, as Keras does, makes the outputs so small that BatchNorm's epsilon
        # is as large as their variance.
        self.relu = relu
        self.depthwise = nnx.Param(glorot(rngs.params(), (3, 3, channels), 9, 9))
        self.pointwise = Pointwise(channels, filters, momentum=momentum, rngs=rngs)

    def __call__(self, x: jax.Array | Unnormalized, use_running_average: bool) -> Unnormalized:
        """Maps [b, h, w, channels] to [b, h, w, filters]."""
        x = depthwise_conv3x3(x, self.depthwise[...], relu=self.relu)
        return self.pointwise(x, use_running_average)


def conv2d(x: jax.Array, weight: jax.Array, padding: Padding, stride: int = 1) -> jax.Array:
    """Cross-correlates [n, h, w, in] with a weight [rows, columns, in, out]: [n, h', w', out].

    All have x's dtype; `padding` is zeros (before, after) the rows and the columns. Gradients of
    every order are fast on CPU: three functions are each other's derivatives, `_conv2d`,
    `_conv2d_input_grad` and `_conv2d_weight_grad`. XLA:CPU computes the last one as a convolution
    whose window is the output's gradient. If that is larger than the image, or has a stride, as in
    the gradient of a gradient, XLA swaps the two and uses a loop without vectors, 40 times slower
    than a matrix product per tap.
    """
    return jnp.asarray(_conv2d(x, weight, padding, stride))


def _plain(x: jax.Array, weight: jax.Array, padding: Padding, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, weight, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv2d(x: jax.Array, weight: jax.Array, padding: Padding, stride: int) -> jax.Array:
    return _plain(x, weight, padding, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv2d_input_grad(
    gradient: jax.Array, weight: jax.Array, size: tuple[int, int], padding: Padding, stride: int
) -> jax.Array:
    """Transposes `conv2d` in x: [n, h', w', out] to [n, *size, in]."""
    shape = (gradient.shape[0], *size, weight.shape[2])
    image = jax.ShapeDtypeStruct(shape, gradient.dtype)
    (x,) = jax.linear_transpose(lambda x: _plain(x, weight, padding, stride), image)(gradient)
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv2d_weight_grad(
    x: jax.Array, gradient: jax.Array, taps: tuple[int, int], padding: Padding, stride: int
) -> jax.Array:
    """Transposes `conv2d` in the weight: to [*taps, in, out]."""
    fits = stride == 1 and gradient.shape[1] <= x.shape[1] and gradient.shape[2] <= x.shape[2]
    if fits or jax.default_backend() != "cpu":
        shape = (*taps, x.shape[-1], gradient.shape[-1])
        weight = jax.ShapeDtypeStruct(shape, x.dtype)
        (found,) = jax.linear_transpose(lambda w: _plain(x, w, padding, stride), weight)(gradient)
        return found
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (stride * (size - 1) + 1 for size in gradient.shape[1:3])

    gradients = gradient.reshape(-1, gradient.shape[-1])

    def tap(i: int, j: int) -> jax.Array:
        window = x[:, i : i + rows : stride, j : j + columns : stride]
        # The first factor is transposed in memory, once for all taps. Two axes, because XLA:CPU
        # since jaxlib 0.11 has no such product of four axes in bfloat16.
        found = jax.lax.dot_general(
            gradients,
            window.reshape(-1, window.shape[-1]),
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        )
        return found.T.astype(x.dtype)

    return jnp.stack([jnp.stack([tap(i, j) for j in range(taps[1])]) for i in range(taps[0])])


def _conv2d_backward(padding: Padding, stride: int, saved: Any, gradient: jax.Array) -> Any:
    x, weight = saved
    return (
        _conv2d_input_grad(gradient, weight, x.shape[1:3], padding, stride),
        _conv2d_weight_grad(x, gradient, weight.shape[:2], padding, stride),
    )


def _conv2d_input_grad_backward(
    size: tuple[int, int], padding: Padding, stride: int, saved: Any, x: jax.Array
) -> Any:
    gradient, weight = saved
    return (
        _conv2d(x, weight, padding, stride),
        _conv2d_weight_grad(x, gradient, weight.shape[:2], padding, stride),
    )


def _conv2d_weight_grad_backward(
    taps: tuple[int, int], padding: Padding, stride: int, saved: Any, weight: jax.Array
) -> Any:
    x, gradient = saved
    return (
        _conv2d_input_grad(gradient, weight, x.shape[1:3], padding, stride),
        _conv2d(x, weight, padding, stride),
    )


_conv2d.defvjp(lambda *a: (_conv2d(*a), a[:2]), _conv2d_backward)
_conv2d_input_grad.defvjp(lambda *a: (_conv2d_input_grad(*a), a[:2]), _conv2d_input_grad_backward)
_conv2d_weight_grad.defvjp(
    lambda *a: (_conv2d_weight_grad(*a), a[:2]), _conv2d_weight_grad_backward
)
