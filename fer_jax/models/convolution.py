"""A convolution whose gradients of every order have a fast form on CPU.

Three functions are each other's derivatives: `_conv2d` of an image and a weight, `_spread`, which
carries an answer back to the image, and `_correlated`, which carries it back to the weight. The
last is why they are here: XLA:CPU computes it as a convolution whose window is the answer. If that
is larger than the image, or has a stride, as in the gradient of a gradient, XLA swaps the two and
then has only a loop without vectors, 40 times slower than a product of matrices for each tap.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

Padding = tuple[tuple[int, int], tuple[int, int]]


def conv2d(x: jax.Array, weight: jax.Array, padding: Padding, stride: int = 1) -> jax.Array:
    """Cross-correlation, as networks call a convolution.

    Args:
      x: [n, h, w, in].
      weight: [rows, columns, in, out] of x's dtype.
      padding: zeros (before, after) the rows and the columns.
      stride: of both.

    Returns:
      [n, h', w', out] of x's dtype.
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
def _spread(
    answer: jax.Array, weight: jax.Array, size: tuple[int, int], padding: Padding, stride: int
) -> jax.Array:
    """`conv2d` transposed in x: [n, h', w', out] to [n, *size, in]."""
    shape = (answer.shape[0], *size, weight.shape[2])
    image = jax.ShapeDtypeStruct(shape, answer.dtype)
    (x,) = jax.linear_transpose(lambda x: _plain(x, weight, padding, stride), image)(answer)
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _correlated(
    x: jax.Array, answer: jax.Array, taps: tuple[int, int], padding: Padding, stride: int
) -> jax.Array:
    """`conv2d` transposed in the weight: to [*taps, in, out]."""
    fits = stride == 1 and answer.shape[1] <= x.shape[1] and answer.shape[2] <= x.shape[2]
    if fits or jax.default_backend() != "cpu":
        shape = (*taps, x.shape[-1], answer.shape[-1])
        weight = jax.ShapeDtypeStruct(shape, x.dtype)
        (found,) = jax.linear_transpose(lambda w: _plain(x, w, padding, stride), weight)(answer)
        return found
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (stride * (size - 1) + 1 for size in answer.shape[1:3])

    answers = answer.reshape(-1, answer.shape[-1])

    def tap(i: int, j: int) -> jax.Array:
        seen = x[:, i : i + rows : stride, j : j + columns : stride]
        # The first factor is turned round in memory: that is done once for all taps. Two axes, for
        # of four in bfloat16 XLA:CPU since jaxlib 0.11 has no such product.
        found = jax.lax.dot_general(
            answers,
            seen.reshape(-1, seen.shape[-1]),
            (((0,), (0,)), ((), ())),
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        )
        return found.T.astype(x.dtype)

    return jnp.stack([jnp.stack([tap(i, j) for j in range(taps[1])]) for i in range(taps[0])])


def _conv2d_backward(padding: Padding, stride: int, saved: Any, answer: jax.Array) -> Any:
    x, weight = saved
    return (
        _spread(answer, weight, x.shape[1:3], padding, stride),
        _correlated(x, answer, weight.shape[:2], padding, stride),
    )


def _spread_backward(
    size: tuple[int, int], padding: Padding, stride: int, saved: Any, x: jax.Array
) -> Any:
    answer, weight = saved
    return (
        _conv2d(x, weight, padding, stride),
        _correlated(x, answer, weight.shape[:2], padding, stride),
    )


def _correlated_backward(
    taps: tuple[int, int], padding: Padding, stride: int, saved: Any, weight: jax.Array
) -> Any:
    x, answer = saved
    return (
        _spread(answer, weight, x.shape[1:3], padding, stride),
        _conv2d(x, weight, padding, stride),
    )


_conv2d.defvjp(lambda *a: (_conv2d(*a), a[:2]), _conv2d_backward)
_spread.defvjp(lambda *a: (_spread(*a), a[:2]), _spread_backward)
_correlated.defvjp(lambda *a: (_correlated(*a), a[:2]), _correlated_backward)
