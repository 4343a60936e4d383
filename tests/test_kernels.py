"""The compiled kernels give the plain forms' numbers, and their absence is handled."""

import functools
import itertools
import os
import stat
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.errors import InputError
from fer_jax.models import kernels, xception
from fer_jax.models.layers import Unnormalized, fused_conv3x3, moments, shifted_conv3x3
from fer_jax.sharding import batch_sharding, make_mesh, replicated

needs_kernels = pytest.mark.skipif(bool(kernels.why_not()), reason="the kernels are not in use")
# As many channels as a vector has, several vectors, and a last one that overlaps; few images, whose
# channels are divided, and many.
SHAPES = [(1, 1, 1, 16), (3, 6, 4, 16), (2, 3, 9, 21), (1, 8, 8, 100), (9, 2, 1, 33)]
VALUES = jnp.zeros((1, 2, 2, kernels.MIN_CHANNELS))
# Relative to the largest element. bfloat16's results are rounded once.
TOLERANCES = {"float32": 5e-6, "bfloat16": 2**-8}


def on_grid(rng: np.random.Generator, shape: tuple[int, ...], step: float) -> np.ndarray:
    """Values that bfloat16 holds, whose products and sums with each other float32 holds: a sign
    before a ReLU is then the same in all dtypes."""
    return rng.integers(-64, 65, shape) * step


def drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Returns values, scale, offset, kernel and the output's gradient, float64."""
    channels = shape[-1:]
    return [
        on_grid(rng, shape, 1 / 16),
        on_grid(rng, channels, 1 / 32),
        on_grid(rng, channels, 1 / 64),
        on_grid(rng, (3, 3, *channels), 1 / 32),
        on_grid(rng, shape, 1 / 16),
    ]


def as_arrays(arrays: list[np.ndarray], dtype: str) -> list[jax.Array]:
    """Returns values and gradient in a dtype, the others in float32."""
    return [jnp.asarray(x, dtype if x.ndim == 4 else "float32") for x in arrays]


def computed(arrays: list[jax.Array], relu: bool) -> list[jax.Array]:
    """Returns the output, the gradients of values, scale, offset and kernel, and sums."""
    values, scale, offset, kernel, gradient = arrays
    x = Unnormalized(values, scale, offset)
    of_x, of_kernel = kernels.depthwise_gradient(x, kernel, gradient, relu=relu)
    y = kernels.depthwise(x, kernel, relu=relu)
    return [y, *of_x, of_kernel, kernels.channel_sums(values, gradient)]


def expected(arrays: list[np.ndarray], relu: bool) -> list[np.ndarray]:
    """Computes the same by its definition, in float64."""
    values, scale, offset, kernel, gradient = arrays
    height, width = values.shape[1:3]
    activated = values * scale + offset
    kept = activated > 0 if relu else np.ones_like(activated, bool)
    edges = ((0, 0), (1, 1), (1, 1), (0, 0))
    padded = np.pad(activated * kept, edges)
    padded_gradient = np.pad(gradient, edges)
    y, of_input = np.zeros_like(values), np.zeros_like(values)
    of_kernel = np.zeros_like(kernel)
    for i, j in itertools.product(range(3), range(3)):
        window = padded[:, i : i + height, j : j + width]
        y += window * kernel[i, j]
        of_kernel[i, j] = (window * gradient).sum((0, 1, 2))
        of_input += padded_gradient[:, i : i + height, j : j + width] * kernel[2 - i, 2 - j]
    of_input *= kept
    return [
        y,
        of_input * scale,
        (of_input * values).sum((0, 1, 2)),
        of_input.sum((0, 1, 2)),
        of_kernel,
        np.stack([values.sum((0, 1, 2)), (values * gradient).sum((0, 1, 2))]),
    ]


def check(shape: tuple[int, ...], seed: int) -> None:
    """Compares all results of one shape, in both dtypes, with and without ReLU."""
    exact = drawn(np.random.default_rng(seed), shape)
    theirs = [expected(exact, relu) for relu in (False, True)]

    @jax.jit
    def compute(arrays: list[jax.Array]) -> Any:
        return [computed(arrays, relu) for relu in (False, True)]

    for dtype in TOLERANCES:
        for found, right in zip(compute(as_arrays(exact, dtype)), theirs, strict=True):
            compare(found, right, dtype)


def compare(found: Any, right: Any, dtype: str) -> None:
    for number, (ours, exact) in enumerate(zip(found, right, strict=True)):
        ours, exact = np.asarray(ours, np.float64), np.asarray(exact, np.float64)
        assert ours.shape == exact.shape
        # Sums are in float32 in both; the first two arrays are rounded to the values' dtype.
        tolerance = TOLERANCES[dtype if number < 2 else "float32"]
        difference = np.abs(ours - exact).max()
        assert difference <= tolerance * np.abs(exact).max(), (ours.shape, dtype, number)


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernels_compute_what_is_defined(shape: tuple[int, ...]):
    check(shape, seed=0)


@needs_kernels
def test_random_shapes_are_computed_as_defined():
    rng = np.random.default_rng(int(os.environ.get("FER_JAX_TEST_SEED", "0")))
    for seed in range(int(os.environ.get("FER_JAX_TEST_SHAPES", "20"))):
        if seed % 100 == 99:
            jax.clear_caches()
        shape = rng.integers((1, 1, 1, 16), (10, 41, 41, 101))
        check(tuple(shape.tolist()), seed)


@needs_kernels
@pytest.mark.parametrize("relu", [False, True])
def test_the_fused_form_has_the_plain_forms_gradients(relu: bool):
    values, scale, offset, kernel, gradient = as_arrays(
        drawn(np.random.default_rng(0), (4, 14, 15, 40)), "float32"
    )
    x = Unnormalized(values, scale, offset)
    (ours, pull), (theirs, plain_pull) = (
        jax.vjp(lambda x, kernel, form=form: form(x, kernel, relu), x, kernel)
        for form in (fused_conv3x3, shifted_conv3x3)
    )
    compare([ours], [theirs], "float32")
    compare(jax.tree.leaves(pull(gradient)), jax.tree.leaves(plain_pull(gradient)), "float32")


@needs_kernels
def test_an_array_of_too_few_channels_is_refused():
    with pytest.raises(Exception, match="too few channels"):
        jax.block_until_ready(
            kernels.channel_sums(jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3)))
        )


@needs_kernels
def test_rounding_and_nan_are_as_in_jax():
    values = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 5, 37)), jnp.float32)
    one, zero = jnp.ones(37), jnp.zeros(37)
    kernel = jnp.zeros((3, 3, 37)).at[1, 1].set(1.00390625)  # exact products, to be rounded
    x = values.astype(jnp.bfloat16)
    exact = kernels.depthwise(Unnormalized(x.astype(jnp.float32), one, zero), kernel, relu=False)
    rounded = kernels.depthwise(Unnormalized(x, one, zero), kernel, relu=False)
    np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16))
    for dtype in (jnp.float32, jnp.bfloat16):
        spoiled = values.at[0, 1, 2, 3].set(jnp.nan).astype(dtype)
        y = kernels.depthwise(Unnormalized(spoiled, one, zero), kernel, relu=True)
        assert np.argwhere(np.isnan(np.asarray(y, np.float32)))[:, 3].tolist() == [3] * 9
        assert np.isnan(kernels.channel_sums(spoiled, spoiled)[:, 3]).all()


@needs_kernels
def test_results_depend_neither_on_the_threads_nor_on_the_devices():
    arrays = drawn(np.random.default_rng(0), (8, 9, 10, 50))
    values, scale, offset, kernel, gradient = (jnp.asarray(x, jnp.float32) for x in arrays)
    mesh = make_mesh()

    def step(values: Any, gradient: Any) -> Any:
        x = Unnormalized(values, scale, offset)
        y, pull = jax.vjp(lambda x: fused_conv3x3(x, kernel, True), x)
        return y, pull(gradient)[0].values, moments(values)

    alone: Any = jax.jit(step)(values, gradient)
    for _ in range(3):
        again = jax.jit(step)(values, gradient)
        jax.tree.map(np.testing.assert_array_equal, again, alone)
    divided = jax.jit(step, in_shardings=batch_sharding(mesh))
    program = str(divided.lower(values, gradient).compile().as_text())
    assert "fer_jax_backward" in program and "all-gather" not in program
    for found, first in zip(jax.tree.leaves(divided(values, gradient))[:2], alone[:2], strict=True):
        np.testing.assert_array_equal(found, first)
    whole = jax.jit(step, in_shardings=replicated(mesh))(values, gradient)
    np.testing.assert_array_equal(whole[0], alone[0])


def test_other_dtypes_few_channels_and_portable_programs_take_the_plain_forms():
    assert not kernels.usable(VALUES.astype(jnp.float16))
    with jax.enable_x64(True):
        assert not kernels.usable(VALUES.astype(jnp.float64))
    assert not kernels.usable(VALUES[..., 1:])
    with kernels.portable():
        assert not kernels.usable(VALUES)
    assert kernels.usable(VALUES) == (not kernels.why_not())


def network_text() -> str:
    model = {"num_classes": 7, "width": 0.25, "num_middle_blocks": 1, "image_size": 71}
    arrays = jax.eval_shape(lambda: xception.init(jax.random.key(0), **model))
    images = jax.ShapeDtypeStruct((2, 71, 71, 3), jnp.float32)

    def predict(arrays: Any, images: Any) -> Any:
        return xception.apply(xception.graphdef(**model), arrays[0], arrays[1], images)

    return jax.jit(predict).lower(arrays, images).as_text()


@needs_kernels
def test_the_network_uses_the_kernels_but_not_where_it_must_be_portable():
    # Two per block with three in the middle one, and two at the exit.
    assert network_text().count("@fer_jax_forward") == 2 * 4 + 3 + 2
    with kernels.portable():
        assert "fer_jax_" not in network_text()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A process that has not built the kernels, and a cache that does not have them."""
    monkeypatch.setattr(kernels, "why_not", functools.cache(kernels.why_not.__wrapped__))
    kernels._print_once.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(kernels.SWITCH, "")
    monkeypatch.delenv("CXX", raising=False)
    return monkeypatch


def test_without_a_compiler_one_line_says_what_to_install(
    fresh: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fresh.setenv("PATH", "")
    assert not kernels.usable(VALUES) and not kernels.usable(VALUES)
    printed = capsys.readouterr().err
    assert (
        printed.count("\n") == 1 and "install g++" in printed and f"{kernels.SWITCH}=no" in printed
    )


def test_the_switch_turns_the_kernels_off_or_demands_them(
    fresh: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    fresh.setenv("PATH", "")
    fresh.setenv(kernels.SWITCH, "no")
    assert not kernels.usable(VALUES) and not capsys.readouterr().err
    kernels.why_not.cache_clear()
    fresh.setenv(kernels.SWITCH, "yes")
    with pytest.raises(InputError, match="cannot be built: no C"):
        kernels.usable(VALUES)
    fresh.setenv(kernels.SWITCH, "on")
    with pytest.raises(InputError, match="must be yes or no, got 'on'"):
        kernels.usable(VALUES)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    fresh: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\necho 'In file included' >&2; echo 'x.cc: error: bad' >&2; exit 1\n"
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    fresh.setenv("CXX", str(compiler))
    assert not kernels.usable(VALUES)
    assert "x.cc: error: bad" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    # A compiler that writes something else than a library.
    compiler.write_text('#!/bin/sh\nfor last; do :; done; echo no > "$last"\n')
    kernels.why_not.cache_clear()
    assert kernels.why_not()


def test_all_processes_of_a_run_use_the_same_form(fresh: pytest.MonkeyPatch):
    fresh.setattr(kernels, "why_not", lambda: "")
    kernels.agree(lambda value: value)
    assert kernels.describe() == "compiled"
    kernels.agree(lambda value: 0)
    assert kernels.describe().startswith("plain: another process")


@needs_kernels
def test_the_kernels_are_built_once(fresh: pytest.MonkeyPatch, tmp_path: Path):
    fresh.setattr(kernels, "_register", lambda library: None)
    assert not kernels.why_not()
    (library,) = (tmp_path / "cache").rglob("kernels-*")
    built = library.stat().st_mtime_ns
    kernels.why_not.cache_clear()
    assert not kernels.why_not() and library.stat().st_mtime_ns == built
