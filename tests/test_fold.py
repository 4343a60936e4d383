"""The folded network computes the same function."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.models import xception
from fer_jax.models.fold import fold, folded_graphdef

MODEL = {"num_classes": 7, "width": 0.05, "num_middle_blocks": 1, "image_size": 75}


def drawn(dtype: str, head: str) -> Any:
    """A network whose statistics, scales and offsets are far from 0 and 1."""
    model = MODEL | {"dtype": dtype, "head": head}
    exact = "float64" if dtype == "float64" else "float32"
    rng = np.random.default_rng(0)

    def redrawn(path: Any, leaf: jax.Array) -> jax.Array:
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.3, 2, leaf.shape), exact)
        if name in ("bias", "mean"):
            return jnp.asarray(rng.normal(size=leaf.shape), exact)
        return leaf.astype(exact)

    params, batch_stats = jax.tree_util.tree_map_with_path(
        redrawn, xception.init(jax.random.key(0), **model)
    )
    images = jnp.asarray(rng.uniform(-1, 1, (3, 75, 75, 3)), exact)
    return model, params, batch_stats, images


def both(dtype: str, head: str) -> tuple[np.ndarray, np.ndarray]:
    model, params, batch_stats, images = drawn(dtype, head)
    whole = jax.jit(lambda p, s, x: xception.apply(xception.graphdef(**model), p, s, x)[0])(
        params, batch_stats, images
    )
    folded = jax.jit(lambda p, s, x: xception.apply(folded_graphdef(**model), *fold(p, s), x)[0])(
        params, batch_stats, images
    )
    scale = np.abs(np.asarray(whole, np.float64)).max()
    return np.asarray(whole, np.float64) / scale, np.asarray(folded, np.float64) / scale


@pytest.mark.parametrize("head", ["gap", "mlp"])
def test_in_float64_it_is_the_same(head: str):
    with jax.enable_x64(True):
        np.testing.assert_allclose(*both("float64", head), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_in_less_it_differs_by_rounding(dtype: str, tolerance: float):
    np.testing.assert_allclose(*both(dtype, "gap"), atol=tolerance, rtol=0)


def test_no_statistics_are_left():
    _, params, batch_stats, _ = drawn("float32", "gap")
    folded, left = fold(params, batch_stats)
    assert left == {}
    before, after = (sum(x.size for x in jax.tree.leaves(p)) for p in (params, folded))
    # Of scale, offset, mean and variance, the offset stays.
    assert before - after == sum(x.size for x in jax.tree.leaves(batch_stats)) // 2
