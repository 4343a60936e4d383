"""The network's form, and what training changes in it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fer_jax.errors import InputError
from fer_jax.models import xception

SMALL = {"num_classes": 7, "width": 0.03, "num_middle_blocks": 1, "image_size": 71}


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_it_has_the_published_number_of_parameters():
    shapes = jax.eval_shape(lambda: xception.init(jax.random.key(0), num_classes=7))
    assert count(shapes[0]) == 20_821_295
    assert count(shapes[1]) == 54_528
    assert count(shapes[0]) - count(shapes[0]["logits"]) == 20_806_952
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


@pytest.fixture(scope="module")
def small() -> Any:
    params, batch_stats = xception.init(jax.random.key(0), **SMALL)
    images = jax.random.uniform(jax.random.key(1), (4, 71, 71, 3), minval=-1)
    return params, batch_stats, images


def run(small: Any, model: dict[str, Any], **how: Any) -> Any:
    graphdef = xception.graphdef(**model)
    return jax.jit(lambda p, s, x: xception.apply(graphdef, p, s, x, **how))(*small)


def test_statistics_move_in_training_only(small: Any):
    _, evaluated = run(small, SMALL)
    key = jax.random.key(2)
    _, frozen = run(small, SMALL, train=True, frozen_statistics=True, dropout_key=key)
    _, moved = run(small, SMALL, train=True, dropout_key=key)
    jax.tree.map(np.testing.assert_array_equal, evaluated, small[1])
    jax.tree.map(np.testing.assert_array_equal, frozen, small[1])
    assert jax.tree.structure(moved) == jax.tree.structure(small[1])
    assert not np.array_equal(moved["stem1"]["norm"]["mean"], small[1]["stem1"]["norm"]["mean"])


def test_a_stem_of_stride_1_keeps_the_pixels(small: Any):
    params, batch_stats, images = small
    model = SMALL | {"image_size": 67, "stem_stride": 1}
    network = nnx.merge(xception.graphdef(**model), params, batch_stats)
    features = network.features(images[:1, :67, :67])
    assert features.shape[1] == xception.output_size(67, 1) == 4
    assert xception.output_size(67 + 66, 2) == 4
    assert xception.output_size(48, 1) == 3


def test_a_grayscale_network_sees_the_luma_alone(small: Any):
    params, batch_stats, images = small
    grey = np.repeat(np.asarray(xception.grey(images)), 3, axis=-1)
    model = SMALL | {"grayscale": True}
    coloured, _ = run(small, model)
    same, _ = run((params, batch_stats, grey), model)
    plain, _ = run((params, batch_stats, grey), SMALL)
    otherwise, _ = run(small, SMALL)
    np.testing.assert_allclose(coloured, same, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(coloured, plain, rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(coloured - otherwise)).max() > 1e-3


def test_dropout_needs_a_key_and_depends_on_it(small: Any):
    how = {"train": True, "frozen_statistics": True}
    a, b = (run(small, SMALL, **how, dropout_key=jax.random.key(k))[0] for k in (1, 2))
    assert not np.array_equal(a, b)
    with pytest.raises(ValueError, match="dropout_key"):
        run(small, SMALL, **how)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision_stays_near_float32(small: Any, dtype: str, tolerance: float):
    exact, _ = run(small, SMALL)
    half, statistics = run(small, SMALL | {"dtype": dtype})
    assert half.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(statistics))
    # Relative to the logits' size; eight and eleven bits of mantissa through 20 layers.
    error = np.abs(np.asarray(half) - np.asarray(exact)).max() / np.abs(np.asarray(exact)).max()
    assert error < tolerance


def test_the_published_head_is_flattened():
    params, _ = jax.eval_shape(
        lambda: xception.init(jax.random.key(0), num_classes=7, head="mlp", image_size=224)
    )
    assert params["hidden1"]["kernel"].shape == (7 * 7 * 2048, 512)
    assert params["logits"]["kernel"].shape == (512, 7)


def test_rematerialised_blocks_keep_less_for_the_same_gradient():
    def loss(remat: bool, dtype: str) -> Any:
        graphdef = xception.graphdef(**SMALL | {"remat": remat, "dtype": dtype})

        def of(params: Any, batch_stats: Any, images: Any) -> Any:
            logits, moved = xception.apply(
                graphdef, params, batch_stats, images, train=True, dropout_key=jax.random.key(2)
            )
            return jnp.sum(logits**2), moved

        return of

    with jax.enable_x64(True):
        exact = jax.tree.map(
            lambda x: x.astype(jnp.float64), xception.init(jax.random.key(0), **SMALL)
        )
        images = jax.random.uniform(jax.random.key(1), (2, 71, 71, 3), jnp.float64, minval=-1)
        a, b = (
            jax.jit(jax.value_and_grad(loss(remat, "float64"), has_aux=True))(*exact, images)
            for remat in (False, True)
        )
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12, rtol=1e-10), a, b)
    # What a compiled program needs says nothing here: XLA:CPU merges what is computed again
    # with what was computed before.
    shapes = jax.eval_shape(lambda: xception.init(jax.random.key(0), **SMALL))
    batch = jax.ShapeDtypeStruct((16, 71, 71, 3), jnp.float32)

    def kept(remat: bool) -> int:
        f = loss(remat, "float32")
        return count(jax.eval_shape(lambda *x: jax.vjp(f, *x, has_aux=True)[1], *shapes, batch))

    # 0.59 times as much at this size, where the stem and the last two layers weigh most.
    assert kept(remat=True) < 0.65 * kept(remat=False)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"image_size": 70}, {"width": 0.0}),
        *({"num_middle_blocks": -1}, {"image_size": 36, "stem_stride": 1}, {"stem_stride": 3}),
    ],
)
def test_what_makes_no_network_is_refused(wrong: dict[str, Any]):
    with pytest.raises(InputError, match=f"model.{next(iter(wrong))}"):
        xception.graphdef(**SMALL | wrong)
