"""The depthwise-separable convolution (Chollet 2017) in the forms that XLA runs fast. NHWC.

All products are accumulated in float32 (float64 for float64 inputs), whatever dtype the
network computes in: bf16 accumulation gave 9 % error in a depthwise weight gradient.

A gradient is a sum of shifted arrays, never a gather or a scan over images: under a sharded
batch the partitioner adds all-reduces for the weights and nothing else.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.models.initialization import glorot
from fer_jax.models.normalization import (
    BatchNorm,
    Unnormalized,
    accumulator,
    affine,
    affine_gradient,
    as_unnormalized,
    sum_pixels,
)

_TAPS = [(row, column) for row in range(3) for column in range(3)]


def depthwise_conv3x3(
    x: jax.Array | Unnormalized, kernel: jax.Array, *, relu: bool = False
) -> jax.Array:
    """3x3 depthwise convolution, stride 1, zero padding to the same size.

    On CPU nine shifted multiply-adds with the gradient written by hand: XLA:CPU's grouped
    convolution is more than ten times slower forward and twenty times backward. Elsewhere
    the grouped convolution; that choice has been measured on CPU only.

    Args:
      x: [batch, height, width, channels]; a pending BatchNorm is applied on reading.
      kernel: [3, 3, channels].
      relu: whether the input passes a ReLU first.

    Returns:
      The input's shape and dtype.
    """
    x = x if isinstance(x, Unnormalized) else as_unnormalized(x)
    if jax.default_backend() == "cpu":
        return shifted_conv3x3(x, kernel, relu)
    inputs = affine(x)
    return grouped_conv3x3(nnx.relu(inputs) if relu else inputs, kernel)


def grouped_conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same convolution as XLA's own operation, without BatchNorm and ReLU."""
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
    """[b, h + 2, w + 2, c] to [b, h, w, c] in the accumulating dtype."""
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
    """The same convolution as nine shifted multiply-adds, BatchNorm and ReLU included."""
    return _sum_of_shifts(_pad(_activated(x, relu)), kernel).astype(x.values.dtype)


def _shifted_forward(x: Unnormalized, kernel: jax.Array, relu: bool) -> tuple[jax.Array, Any]:
    return shifted_conv3x3(x, kernel, relu), (x, kernel)


def _shifted_backward(
    relu: bool, saved: Any, gradient: jax.Array
) -> tuple[Unnormalized, jax.Array]:
    """The input's gradient is a convolution with the turned kernel; the kernel's, nine sums.

    The activated input is computed again rather than kept: it is as large as the values.
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
    return affine_gradient(x, of_input.astype(gradient.dtype)), of_kernel.astype(kernel.dtype)


shifted_conv3x3.defvjp(_shifted_forward, _shifted_backward)


@jax.custom_vjp
def pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution as a matrix product, which reaches the CPU's and GPU's matrix units.

    Args:
      x: [batch, height, width, channels].
      kernel: [channels, filters].

    Returns:
      [batch, height, width, filters] in x's dtype.
    """
    return _product(x, kernel.astype(x.dtype), ((3,), (0,))).astype(x.dtype)


def _product(a: jax.Array, b: jax.Array, contracted: Any) -> jax.Array:
    # A bf16 product that returns bf16 misses the CPU's matrix unit.
    return jax.lax.dot_general(
        a, b, (contracted, ((), ())), preferred_element_type=accumulator(a.dtype)
    )


def _pointwise_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return pointwise_conv(x, kernel), (x, kernel)


def _pointwise_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    of_input = _product(gradient, kernel.astype(x.dtype), ((3,), (1,))).astype(x.dtype)
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    if x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        # A sum over rows reaches the bf16 instructions only where the left side is really
        # transposed, and the compiler drops a transposition that nothing follows: hence a row
        # of zeros. (A layout constraint does it too, but gathers a sharded batch.)
        turned = jnp.pad(rows.T, ((0, 1), (0, 0)))
        of_kernel = _product(turned, gradients, ((1,), (0,)))[:-1]
    else:
        of_kernel = _product(rows, gradients, ((0,), (0,)))
    return of_input, of_kernel.astype(kernel.dtype)


pointwise_conv.defvjp(_pointwise_forward, _pointwise_backward)


class Pointwise(nnx.Module):
    """1x1 convolution without bias, then BatchNorm; a stride skips pixels."""

    def __init__(
        self, channels: int, filters: int, *, stride: int = 1, momentum: float, rngs: nnx.Rngs
    ):
        self.stride = stride
        self.kernel = nnx.Param(glorot(rngs.params(), (channels, filters), channels, filters))
        self.norm = BatchNorm(filters, momentum=momentum)

    def __call__(self, x: jax.Array, use_running_average: bool) -> Unnormalized:
        """[b, h, w, channels] to [b, h / stride, w / stride, filters]."""
        if self.stride > 1:
            # Without the barrier XLA:GPU takes the skipping into the product, where it fails a
            # check of its own and ends the process (openxla/xla#47381).
            x = jax.lax.optimization_barrier(x[:, :: self.stride, :: self.stride])
        return self.norm(pointwise_conv(x, self.kernel[...]), use_running_average)


class Separable(nnx.Module):
    """ReLU (if asked for), depthwise 3x3, pointwise, BatchNorm; no bias, nothing in between."""

    def __init__(
        self, channels: int, filters: int, *, relu: bool = True, momentum: float, rngs: nnx.Rngs
    ):
        # Every channel is a convolution of its own, nine inputs to one pixel and back. Counting
        # all channels as inputs, as Keras does, makes the outputs so small that BatchNorm's
        # epsilon weighs as much as their variance.
        self.relu = relu
        self.depthwise = nnx.Param(glorot(rngs.params(), (3, 3, channels), 9, 9))
        self.pointwise = Pointwise(channels, filters, momentum=momentum, rngs=rngs)

    def __call__(self, x: jax.Array | Unnormalized, use_running_average: bool) -> Unnormalized:
        """[b, h, w, channels] to [b, h, w, filters]."""
        x = depthwise_conv3x3(x, self.depthwise[...], relu=self.relu)
        return self.pointwise(x, use_running_average)
