"""The max-pool and its gradient are XLA's own, on every parity of size and with ties."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fer_jax.models.layers import max_pool3x3


def plain(x: Any) -> Any:
    return nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 7, 9, 3), (1, 8, 6, 4), (2, 5, 4, 1), (1, 1, 2, 3)])
def test_it_is_the_plain_one(shape: tuple[int, ...], dtype: str):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        # Few different values: windows hold several maxima, and the first one counts. The
        # gradient's values are small integers, so that their sums are exact in any order.
        x = jnp.asarray(rng.integers(-3, 3, shape), dtype)
        pull = jax.vjp(plain, x)[1]
        gradient = jnp.asarray(rng.integers(-9, 9, plain(x).shape), dtype)
        ours, ours_pull = jax.vjp(max_pool3x3, x)
        np.testing.assert_array_equal(ours, plain(x))
        np.testing.assert_array_equal(max_pool3x3(x), plain(x))
        assert ours.dtype == x.dtype
        (found,), (expected,) = ours_pull(gradient), pull(gradient)
        assert found.dtype == x.dtype
        np.testing.assert_array_equal(found, expected)
