"""The forms of the depthwise convolution on this device, with BatchNorm and ReLU on reading.

`fer_jax.models.separable` takes the shifted adds on CPU, where they win by far, and XLA's
grouped convolution elsewhere, where nobody has measured yet: this is the measurement.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.benchmark import model_side
from fer_jax.benchmark.benchmark import Row, compare, single
from fer_jax.errors import InputError
from fer_jax.models.normalization import Unnormalized, affine
from fer_jax.models.separable import grouped_conv3x3, shifted_conv3x3

SIZES = ((109, 128), (55, 256), (28, 728), (14, 728), (7, 1536))  # the network's at 224 px
# Arrays that must be moved whatever the form: in and out; and the two and their gradients.
ARRAYS = {"forward": 2, "forward and gradients": 5}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags."""
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtypes", nargs="+", default=("float32", "bfloat16"))
    parser.add_argument("--channels", type=float, default=1.0, help="share of the network's")


def run(options: argparse.Namespace) -> list[Row]:
    """Shifted adds beside the grouped convolution, at every size of the network."""
    if options.batch < 1 or not 0 < options.channels <= 1:
        raise InputError("--batch must be at least 1 and --channels in (0, 1]")
    rows = []
    moves = model_side.measure_rates("float32")["bytes_per_second"]
    rows.append(single("this machine copies", moves / 1e9, "GB/s"))
    for dtype in options.dtypes:
        for size, published in SIZES:
            channels = max(1, round(published * options.channels))
            shape = (options.batch, size, size, channels)
            for work in ARRAYS:
                shifted, grouped = (
                    functools.partial(_make(form, work), *_draw(shape, dtype))
                    for form in (shifted_conv3x3, _grouped)
                )
                what = f"{size}x{size}x{channels} {work}"
                rows.append(
                    compare(
                        f"shifted adds, {what}",
                        lambda run=shifted: jax.block_until_ready(run()),
                        lambda run=grouped: jax.block_until_ready(run()),
                        peer_name="grouped convolution",
                        amount=options.batch,
                        unit="images per second",
                        repeats=options.repeats,
                        dtype=dtype,
                        batch=options.batch,
                    )
                )
                moved = ARRAYS[work] * float(np.prod(shape)) * jnp.dtype(dtype).itemsize
                fastest = min(options.batch / rows[-1][side] for side in ("ours", "peer"))
                rows.append(single(f"{what} {dtype}: of that", moved / moves / fastest, "of 1"))
    return rows


def _grouped(x: Unnormalized, kernel: jax.Array, relu: bool) -> jax.Array:
    inputs = affine(x)
    return grouped_conv3x3(jax.nn.relu(inputs) if relu else inputs, kernel)


def _make(form: Any, work: str) -> Callable[..., Any]:
    if work == "forward":
        return jax.jit(lambda x, kernel, gradient: form(x, kernel, True))

    def both(x: Unnormalized, kernel: jax.Array, gradient: jax.Array) -> Any:
        y, pull = jax.vjp(lambda x, kernel: form(x, kernel, True), x, kernel)
        return y, pull(gradient)

    return jax.jit(both)


def _draw(shape: tuple[int, ...], dtype: str) -> tuple[Unnormalized, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0), 5)
    values, gradient = (jax.random.normal(key, shape, dtype) for key in keys[:2])
    scale, offset = (jax.random.normal(key, shape[-1:]) for key in keys[2:4])
    kernel = jax.random.normal(keys[4], (3, 3, shape[-1]))
    return Unnormalized(values, scale, offset), kernel, gradient
