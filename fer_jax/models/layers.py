"""Layers that the networks share, in the forms that XLA runs fast. NHWC throughout.

All products are accumulated in float32 (float64 for float64 inputs), whatever dtype the
network computes in: bf16 accumulation gave 9 % error in a depthwise weight gradient.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def _accumulator(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def depthwise_conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 depthwise convolution, stride 1, zero padding to the same size.

    On CPU nine shifted multiply-adds with the gradient written by hand: XLA:CPU's grouped
    convolution is more than ten times slower forward and twenty times backward. Elsewhere
    the grouped convolution; that choice has been measured on CPU only.

    Args:
      x: [batch, height, width, channels].
      kernel: [3, 3, channels].

    Returns:
      x's shape and dtype.
    """
    if jax.default_backend() == "cpu":
        return _shifted(x, kernel)
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :].astype(x.dtype),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@jax.custom_vjp
def _shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    height, width = x.shape[1:3]
    dtype = _accumulator(x.dtype)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = jnp.zeros(x.shape, dtype)
    for row in range(3):
        for column in range(3):
            window = padded[:, row : row + height, column : column + width]
            total += window.astype(dtype) * kernel[row, column].astype(dtype)
    return total.astype(x.dtype)


def _shifted_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _shifted(x, kernel), (x, kernel)


def _shifted_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The input's gradient is a convolution with the turned kernel; the kernel's, nine sums."""
    x, kernel = saved
    height, width = x.shape[1:3]
    dtype = _accumulator(x.dtype)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    sums = [
        jnp.sum(
            padded[:, row : row + height, column : column + width].astype(dtype)
            * gradient.astype(dtype),
            axis=(0, 1, 2),
        )
        for row in range(3)
        for column in range(3)
    ]
    return _shifted(gradient, kernel[::-1, ::-1]), jnp.stack(sums).reshape(kernel.shape)


_shifted.defvjp(_shifted_forward, _shifted_backward)


def pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution as a matrix product, which reaches the CPU's and GPU's matrix units.

    Args:
      x: [batch, height, width, channels].
      kernel: [channels, filters].

    Returns:
      [batch, height, width, filters] in x's dtype.
    """
    product = jax.lax.dot_general(
        x,
        kernel.astype(x.dtype),
        (((3,), (0,)), ((), ())),
        preferred_element_type=_accumulator(x.dtype),
    )
    return product.astype(x.dtype)


def max_pool3x3(x: jax.Array) -> jax.Array:
    """3x3 maximum with stride 2, padded so that ceil(size / 2) remains."""
    return nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")


class BatchNorm(nnx.BatchNorm):
    """Keras' BatchNorm (epsilon 1e-3), float32 statistics over the global batch."""

    def __init__(self, channels: int, *, momentum: float, dtype: Any, rngs: nnx.Rngs):
        super().__init__(channels, momentum=momentum, epsilon=1e-3, dtype=dtype, rngs=rngs)


class Pointwise(nnx.Module):
    """1x1 convolution without bias, then BatchNorm; a stride skips pixels."""

    def __init__(
        self,
        channels: int,
        filters: int,
        *,
        stride: int = 1,
        momentum: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.kernel = nnx.Param(_glorot(rngs.params(), (channels, filters), channels, filters))
        self.norm = BatchNorm(filters, momentum=momentum, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """[b, h, w, channels] to [b, h / stride, w / stride, filters]."""
        x = x[:, :: self.stride, :: self.stride]
        x = pointwise_conv(x, self.kernel[...])
        return self.norm(x, use_running_average=use_running_average)


class Separable(nnx.Module):
    """Depthwise 3x3, pointwise, BatchNorm (Chollet 2017); no bias, nothing in between."""

    def __init__(self, channels: int, filters: int, *, momentum: float, dtype: Any, rngs: nnx.Rngs):
        # Every channel is a convolution of its own, nine inputs to one pixel and back. Counting
        # all channels as inputs, as Keras does, makes the outputs so small that BatchNorm's
        # epsilon weighs as much as their variance.
        self.depthwise = nnx.Param(_glorot(rngs.params(), (3, 3, channels), 9, 9))
        self.pointwise = Pointwise(channels, filters, momentum=momentum, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """[b, h, w, channels] to [b, h, w, filters]."""
        x = depthwise_conv3x3(x, self.depthwise[...])
        return self.pointwise(x, use_running_average)


class Convolution(nnx.Module):
    """3x3 convolution without padding or bias, BatchNorm, ReLU: the stem."""

    def __init__(
        self,
        channels: int,
        filters: int,
        *,
        stride: int,
        momentum: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        shape = (3, 3, channels, filters)
        self.kernel = nnx.Param(_glorot(rngs.params(), shape, 9 * channels, 9 * filters))
        self.norm = BatchNorm(filters, momentum=momentum, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """[b, h, w, channels] to [b, (h - 3) / stride + 1, (w - 3) / stride + 1, filters]."""
        x = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (self.stride, self.stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return nnx.relu(self.norm(x, use_running_average=use_running_average))


def _glorot(key: jax.Array, shape: tuple[int, ...], fan_in: int, fan_out: int) -> jax.Array:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010), float32."""
    bound = (6.0 / (fan_in + fan_out)) ** 0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
