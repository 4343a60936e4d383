"""The fast forms are the plain ones, gradients included, and stay parallel over the batch."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.config import default_config
from fer_jax.data.augment import Augmentation
from fer_jax.models import xception
from fer_jax.models.layers import (
    BatchNorm,
    Unnormalized,
    affine,
    channel_sums,
    depthwise_conv3x3,
    grouped_conv3x3,
    moments,
    pointwise_conv,
    sum_pixels,
)
from fer_jax.sharding import batch_sharding, make_mesh, replicated
from fer_jax.training.step import StepOptions, init_state, make_optimizer, make_schedule, train_step

# Heights that one loop covers, that several cover evenly, and that leave rows over.
SHAPES = [(2, 5, 7, 3), (1, 1, 1, 8), (3, 19, 4, 1), (2, 28, 2, 5), (1, 37, 3, 2)]


def plain_depthwise(x: Unnormalized, kernel: Any, relu: bool) -> Any:
    inputs = x.values * x.scale + x.offset
    return grouped_conv3x3(jnp.maximum(inputs, 0) if relu else inputs, kernel)


def drawn(shape: tuple[int, ...], dtype: str) -> tuple[Unnormalized, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    channels = shape[-1]
    exact = "float64" if dtype == "float64" else "float32"
    x = Unnormalized(
        jnp.asarray(rng.normal(size=shape), dtype),
        jnp.asarray(rng.normal(size=channels), exact),
        jnp.asarray(rng.normal(size=channels), exact),
    )
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels)), exact)
    return x, kernel, jnp.asarray(rng.normal(size=shape), dtype)


def value_and_gradients(f: Any, *arguments: Any, weight: Any) -> list[np.ndarray]:
    @jax.jit
    def both(*arguments: Any) -> Any:
        y, pull = jax.vjp(f, *arguments)
        return y, pull(jax.tree.map(lambda w, like: w.astype(like.dtype), weight, y))

    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(both(*arguments))]


def as_float64(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, "float64"), tree)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_depthwise_convolution_is_the_plain_one(shape: tuple[int, ...], relu: bool):
    with jax.enable_x64(True):
        x, kernel, weight = drawn(shape, "float64")
        found = value_and_gradients(
            lambda x, kernel: depthwise_conv3x3(x, kernel, relu=relu), x, kernel, weight=weight
        )
        expected = value_and_gradients(
            lambda x, kernel: plain_depthwise(x, kernel, relu), x, kernel, weight=weight
        )
    assert len(found) == 5  # the value; values, scale, offset; kernel
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12, rtol=1e-12)


# Relative to the largest element. In bf16 each pixel's gradient is rounded once (2^-9) before
# scale and offset sum it, which gives 1 %; a kernel's gradient accumulated in bf16 is wrong by
# 9 %.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_the_depthwise_convolution_accumulates_in_float32(dtype: str, tolerance: float):
    with jax.enable_x64(True):
        x, kernel, weight = drawn((2, 28, 30, 4), dtype)
        found = value_and_gradients(
            lambda x, kernel: depthwise_conv3x3(x, kernel), x, kernel, weight=weight
        )
        expected = value_and_gradients(
            lambda x, kernel: plain_depthwise(x, kernel, False),
            *as_float64((x, kernel)),
            weight=as_float64(weight),
        )
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-13), ("float32", 2e-6), ("bfloat16", 5e-3)]
)
def test_the_pointwise_convolution_is_a_matrix_product(dtype: str, tolerance: float):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, 9, 7, 33)), dtype)
        weight = jnp.asarray(rng.normal(size=(2, 9, 7, 21)), dtype)
        # Values that bf16 holds, so that the kernel's rounding is no part of the error.
        kernel = jnp.asarray(rng.integers(-8, 8, (33, 21)), jnp.promote_types(dtype, "float32"))
        found = value_and_gradients(pointwise_conv, x, kernel, weight=weight)
        expected = value_and_gradients(
            lambda x, kernel: x @ kernel, *as_float64((x, kernel)), weight=as_float64(weight)
        )
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() < tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_is_the_plain_one(shape: tuple[int, ...]):
    rng = np.random.default_rng(1)

    def ours(x: Any, scale: Any, bias: Any) -> Any:
        mean, variance = moments(x)
        scale = scale * jax.lax.rsqrt(variance + 1e-3)
        return affine(Unnormalized(x, scale, bias - mean * scale))

    def plain(x: Any, scale: Any, bias: Any) -> Any:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + 1e-3) * scale + bias

    with jax.enable_x64(True):
        x, weight = (jnp.asarray(rng.normal(1, 2, shape)) for _ in range(2))
        scale, bias = (jnp.asarray(rng.normal(size=shape[-1])) for _ in range(2))
        for found, expected in zip(
            value_and_gradients(ours, x, scale, bias, weight=weight),
            value_and_gradients(plain, x, scale, bias, weight=weight),
            strict=True,
        ):
            # The variance of one pixel is 0: its gradients are differences of equal numbers.
            np.testing.assert_allclose(found, expected, atol=1e-11, rtol=1e-12)


def test_running_statistics_are_biased_and_move_by_the_momentum():
    norm = BatchNorm(3, momentum=0.9)
    x = np.random.default_rng(0).normal(2, 3, (4, 5, 6, 3)).astype(np.float32)
    norm(jnp.asarray(x), use_running_average=False)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("height", range(1, 40))
def test_every_row_is_summed_once(height: int):
    x = jnp.arange(height, dtype=jnp.float32)[None, :, None, None] + jnp.zeros((2, 1, 3, 2))
    total = sum_pixels(lambda rows: x[:, rows], height)
    np.testing.assert_array_equal(total, 6 * height * (height - 1) / 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_data_parallel_step_communicates_by_all_reduce_only(dtype: str):
    model = dict(default_config().model) | {
        **{"num_classes": 7, "width": 0.03, "num_middle_blocks": 1, "image_size": 71},
        **{"dtype": dtype, "dropout": 0.0},
    }
    schedule = make_schedule(learning_rate=1e-3, num_steps=9, warmup_steps=0, name="constant")
    optimizer = make_optimizer(
        schedule, name="adamw", weight_decay=1e-4, momentum=0.9, max_gradient_norm=1.0
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 71, 71, 3), dtype=np.uint8),
        "target": np.eye(7, dtype=np.float32)[rng.integers(0, 7, 8)],
    }
    state = init_state(jax.random.key(0), optimizer, model=model, ema=False)
    mesh = make_mesh()
    options = StepOptions(
        graphdef=xception.graphdef(**model),
        optimizer=optimizer,
        class_weights=np.ones(7, np.float32),
        augmentation=Augmentation(**default_config().augment),
    )
    step = jax.jit(
        functools.partial(train_step, options=options),
        in_shardings=(replicated(mesh), batch_sharding(mesh), replicated(mesh)),
        out_shardings=replicated(mesh),
    )
    program = str(step.lower(state, batch, jax.random.key(1)).compile().as_text())
    operations = re.findall(
        r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)", program
    )
    assert set(operations) == {"all-reduce"}
    # It also runs: some layouts compile and fail only then.
    assert np.isfinite(step(state, batch, jax.random.key(1))[1].compute()["gradient_norm"])


def test_off_the_cpu_sums_of_channels_are_reductions_in_float32(monkeypatch: pytest.MonkeyPatch):
    a, b = jax.random.normal(jax.random.key(0), (2, 3, 17, 5, 4), jnp.bfloat16)
    lowered = jax.jit(channel_sums).trace(a, b).lower(lowering_platforms=("cuda",))
    assert "dot_general" not in lowered.as_text()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *x, cpu, default: default(*x))
    exact = np.asarray(a, np.float64), np.asarray(a, np.float64) * np.asarray(b, np.float64)
    expected = [x.sum((0, 1, 2)) for x in exact]
    np.testing.assert_allclose(channel_sums(a, b), expected, rtol=1e-4, atol=1e-4)
