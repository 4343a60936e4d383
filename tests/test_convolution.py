"""The convolution against XLA's own, with gradients of three orders."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.models.layers import Padding, conv2d

EVEN: Padding = ((1, 1), (1, 0))
SAME: Padding = ((1, 1), (1, 1))
NONE: Padding = ((0, 0), (0, 0))


def plain(x: jax.Array, weight: jax.Array, padding: Padding, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, weight, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def thrice(
    convolve: Callable[..., jax.Array], padding: Padding, stride: int
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """The answer, and the gradients of what depends on gradients, as R1 and path lengths do."""

    def answer(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(convolve(x, weight, padding, stride)))

    def steepness(x: jax.Array, weight: jax.Array) -> jax.Array:
        by_image, by_weight = jax.grad(answer, (0, 1))(x, weight)
        return jnp.sum(by_image**3) + jnp.sum(by_weight**3)

    def of_both(x: jax.Array, weight: jax.Array) -> jax.Array:
        first, second = jax.grad(steepness, (0, 1))(x, weight)
        return jnp.sum(first**2) + jnp.sum(second**2)

    def everything(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, ...]:
        return (
            convolve(x, weight, padding, stride),
            *jax.grad(answer, (0, 1))(x, weight),
            *jax.grad(steepness, (0, 1))(x, weight),
            *jax.grad(of_both, (0, 1))(x, weight),
        )

    return everything


@pytest.mark.parametrize(
    ("taps", "padding", "stride"),
    [((2, 2), EVEN, 1), ((1, 2), EVEN, 1), ((3, 3), SAME, 1), ((3, 3), NONE, 2)],
    ids=["larger answer", "one row", "same size", "stride"],
)
def test_gradients_of_every_order(taps: tuple[int, int], padding: Padding, stride: int):
    with jax.enable_x64():
        rng = np.random.default_rng(0)
        x, weight = rng.normal(size=(2, 7, 5, 3)), rng.normal(size=(*taps, 3, 2)) / 4
        ours, xla = (
            jax.jit(
                thrice(convolve, padding, stride),
                compiler_options={"xla_backend_optimization_level": 0},
            )(x, weight)
            for convolve in (conv2d, plain)
        )
        for own, other in zip(ours, xla, strict=True):
            np.testing.assert_allclose(own, other, rtol=0, atol=1e-12 * np.abs(other).max())


def test_in_bfloat16_each_gradient_is_rounded_once():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 9, 9, 8)), jnp.bfloat16)
    weight = jnp.asarray(rng.normal(size=(3, 3, 8, 8)), jnp.bfloat16)

    def gradient(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jax.grad(lambda w: jnp.sum(conv2d(x, w, NONE, 2).astype(jnp.float32)))(weight)

    found = gradient(x, weight)
    exact = gradient(x.astype(jnp.float32), weight.astype(jnp.float32))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_the_gradient_of_the_weight_is_no_convolution_with_a_window_as_large_as_the_image():
    """That is what XLA:CPU has only slow loops for, where it must swap image and answer."""

    def slope(x: jax.Array, weight: jax.Array) -> jax.Array:
        return jax.grad(lambda w: jnp.sum(jnp.sin(conv2d(x, w, EVEN, 1))))(weight)

    x, weight = jnp.ones((2, 16, 16, 3)), jnp.ones((2, 2, 3, 4))
    program = jax.jit(slope).lower(x, weight).compile().as_text()
    assert program and "size=16x16" not in program
