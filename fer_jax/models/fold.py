"""BatchNorm folded away: for inference its scale is part of the kernel before it.

What is left is an offset, which the next layer adds while it reads. The network computes the
same function with a pass of multiplications and half of the norms' arrays less.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.models import xception
from fer_jax.models.layers import Convolution
from fer_jax.models.normalization import EPSILON, Unnormalized, as_unnormalized
from fer_jax.models.separable import Pointwise


class Offset(nnx.Module):
    """What is left of a BatchNorm whose scale is in the kernel before it."""

    def __init__(self, channels: int):
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array, use_running_average: bool) -> Unnormalized:
        """[b, h, w, channels] to the same with the offset still to add."""
        del use_running_average  # there are no statistics
        return as_unnormalized(x)._replace(offset=self.bias[...])


def folded_graphdef(**model: Any) -> Any:
    """The network without its arrays, for `xception.apply` with what `fold` returns.

    Args:
      **model: keyword arguments of `xception.Xception`.
    """

    def make() -> xception.Xception:
        network = xception.Xception(**model, rngs=nnx.Rngs(params=0))
        layers: list[Any] = [module for _, module in nnx.iter_graph(network)]
        for layer in layers:
            if isinstance(layer, Pointwise | Convolution):
                setattr(layer, "norm", Offset(layer.kernel.shape[-1]))  # noqa: B010 (to a type checker it is a BatchNorm)
        return network

    return nnx.split(nnx.eval_shape(make), nnx.Param, nnx.BatchStat)[0]


def fold(
    params: dict[str, Any], batch_stats: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters of the folded network.

    Args:
      params: as in `xception.init`.
      batch_stats: likewise; the running statistics are what is folded.

    Returns:
      (params: kernels times scale / sqrt(variance + epsilon), and offsets; batch_stats: {}).
    """
    folded = {}
    for name, layer in params.items():
        if not isinstance(layer, dict):
            folded[name] = layer
        elif "norm" in layer:
            norm, statistics = layer["norm"], batch_stats[name]["norm"]
            scale = norm["scale"] * jax.lax.rsqrt(statistics["var"] + EPSILON)
            offset = norm["bias"] - statistics["mean"] * scale
            folded[name] = {"kernel": layer["kernel"] * scale, "norm": {"bias": offset}}
        else:
            folded[name], _ = fold(layer, batch_stats.get(name, {}))
    return folded, {}
