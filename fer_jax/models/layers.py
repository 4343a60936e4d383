"""The stem's convolution."""

import jax
from flax import nnx

from fer_jax.models.initialization import glorot
from fer_jax.models.normalization import BatchNorm, affine


class Convolution(nnx.Module):
    """3x3 convolution without padding or bias, BatchNorm, ReLU: the stem."""

    def __init__(
        self, channels: int, filters: int, *, stride: int, momentum: float, rngs: nnx.Rngs
    ):
        self.stride = stride
        shape = (3, 3, channels, filters)
        self.kernel = nnx.Param(glorot(rngs.params(), shape, 9 * channels, 9 * filters))
        self.norm = BatchNorm(filters, momentum=momentum)

    def __call__(self, x: jax.Array, use_running_average: bool) -> jax.Array:
        """[b, h, w, channels] to [b, (h - 3) / stride + 1, (w - 3) / stride + 1, filters]."""
        x = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (self.stride, self.stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return nnx.relu(affine(self.norm(x, use_running_average)))
