"""The compiled kernels of kernels.cc, which replace slower forms in layers.py on CPU.

The machine's C++ compiler builds them at their first use, for the machine's processor, into the
folder of compiled programs. Without a compiler, in dtypes other than float32 and bfloat16, and for
fewer than 16 channels, the plain forms of layers.py are used. $FER_JAX_CPU_KERNELS=no turns the
kernels off; =yes makes it an error if they cannot be built.
"""

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from fer_jax import compilations, storage
from fer_jax.errors import InputError

SWITCH = "FER_JAX_CPU_KERNELS"
OFF = f"{SWITCH}=no"
SOURCE = Path(__file__).with_name("kernels.cc")
HANDLERS = ("forward", "backward", "sums")
COMPILERS = ("c++", "g++", "clang++")
BUILD_TIMEOUT_S = 300
MIN_CHANNELS = 16  # a vector of kernels.cc
TAPS = 9


class Unnormalized(NamedTuple):
    """A BatchNorm's input with a pending affine pass: values * scale + offset."""

    values: jax.Array  # [batch, height, width, channels]
    scale: jax.Array  # [channels], float32 (float64 for float64 values)
    offset: jax.Array  # the same


_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Traces the plain forms: a program that is exported must not depend on this machine."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def usable(x: jax.Array) -> bool:
    """Returns whether to trace the kernels for values [b, h, w, c]; builds them at the first use.

    Prints one line, once, if they cannot be built.
    """
    if _portable.get() or x.dtype not in (jnp.float32, jnp.bfloat16) or x.shape[-1] < MIN_CHANNELS:
        return False
    return jax.default_backend() == "cpu" and prepare()


def prepare() -> bool:
    """Builds the kernels if no earlier process did; prints one line, once, if they cannot be."""
    _print_once(why_not())
    return not why_not()


@functools.cache
def why_not() -> str:
    """Returns why the kernels are not in use on CPU, or "" where they are.

    InputError if $FER_JAX_CPU_KERNELS is "yes" and they cannot be built, or is another word.
    """
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "yes", "no"):
        raise InputError(f"{SWITCH} must be yes or no, got '{switch}'")
    if switch == "no":
        return OFF
    try:
        _register(_build())
    except (OSError, subprocess.SubprocessError) as error:
        reason = _first_line(error)
        if switch == "yes":
            raise InputError(f"the CPU kernels cannot be built: {reason}") from error
        return reason
    return ""


@functools.cache
def _print_once(reason: str) -> None:
    if reason and reason != OFF:
        line = f"fer-jax: training is slower without the CPU kernels: {reason}"
        print(f"{line} ({OFF} hides this line)", file=sys.stderr)


def describe() -> str:
    """Returns which form a network uses on this machine, for `environment.json`."""
    if jax.default_backend() != "cpu":
        return "XLA's"
    reason = why_not()
    return f"plain: {reason}" if reason else "compiled"


def agree(smallest: Callable[[int], int]) -> None:
    """Turns the kernels off if another process of the run cannot use them.

    The processes of a run exchange sums, so all must compile the same program. `smallest` returns
    the smallest of the values that the processes give it.
    """
    global why_not
    if jax.default_backend() == "cpu" and not smallest(int(not why_not())) and not why_not():
        why_not = functools.cache(lambda: "another process of the run cannot build them")


def _first_line(error: Exception) -> str:
    """Returns the first error that a compiler printed, or what went wrong before it ran."""
    if isinstance(error, subprocess.CalledProcessError):
        errors = [line for line in error.stderr.splitlines() if "error" in line]
        return errors[0] if errors else f"{error.cmd[0]} ended with code {error.returncode}"
    return str(error).splitlines()[0]


def _build() -> Path:
    """Returns the library, compiled now if no earlier process did.

    Its folder is of this kind of processor, so that machines that share a home directory never
    run each other's instructions.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    compiler = named or [name for name in COMPILERS if shutil.which(name)][:1]
    if not compiler:
        raise OSError("no C++ compiler was found; install g++ or clang++")
    flags = ["-std=c++17", "-O3", "-shared", "-fPIC"]
    if platform.machine() in ("x86_64", "AMD64"):
        flags.append("-march=native")
    command = [*compiler, *flags, "-isystem", jax.ffi.include_dir()]
    source = SOURCE.read_bytes()
    # The headers are those of the installed jaxlib.
    about = f"{metadata.version('jaxlib')} {command}".encode()
    name = hashlib.sha256(about + source).hexdigest()[:16]
    library = compilations.folder() / f"kernels-{name}.so"
    if not library.exists():
        with storage.replacing(library, durable=False) as temporary:
            subprocess.run(
                [*command, str(SOURCE), "-o", str(temporary)],
                check=True,
                capture_output=True,
                text=True,
                timeout=BUILD_TIMEOUT_S,
            )
    return library


def _register(library: Path) -> None:
    functions = ctypes.CDLL(str(library))
    for name in HANDLERS:
        handler = jax.ffi.pycapsule(getattr(functions, name))
        jax.ffi.register_ffi_target(f"fer_jax_{name}", handler, platform="cpu")


def _run(
    name: str, results: Sequence[tuple[Any, Any]], *arguments: jax.Array, **options: Any
) -> list[jax.Array]:
    """Calls a kernel; `results` are (shape of one image's, dtype).

    Results, and arguments of four axes, have an entry for each image. Of a sharded batch each
    device computes its own images, without communication.
    """

    def call(*arguments: jax.Array) -> Any:
        images = arguments[0].shape[0]
        whole = [jax.ShapeDtypeStruct((images, *shape), dtype) for shape, dtype in results]
        return jax.ffi.ffi_call(f"fer_jax_{name}", whole)(*arguments, **options)

    def partition(mesh: Any, given: Any, _: Any) -> Any:
        batch = NamedSharding(mesh, PartitionSpec(*given[0].sharding.spec[:1]))
        whole = NamedSharding(mesh, PartitionSpec())
        of_arguments = tuple(batch if len(one.shape) == 4 else whole for one in given)
        return mesh, call, [batch] * len(results), of_arguments

    # A rule such as "n x0 x1 x2, x3 -> n x4": no axis but that of the images is shared.
    unique = (f"x{number}" for number in itertools.count())
    inputs = [[next(unique) for _ in one.shape] for one in arguments]
    inputs = [["n", *axes[1:]] if len(axes) == 4 else axes for axes in inputs]
    outputs = [["n", *(next(unique) for _ in shape)] for shape, _ in results]
    rule = " -> ".join(", ".join(map(" ".join, side)) for side in (inputs, outputs))
    partitioned = custom_partitioning(call)
    partitioned.def_partition(partition=partition, sharding_rule=rule)
    return partitioned(*arguments)


def depthwise(x: Unnormalized, kernel: jax.Array, *, relu: bool) -> jax.Array:
    """Convolves with zero padding by [3, 3, c]: [b, h, w, c] to the same, in the values' dtype."""
    result = (x.values.shape[1:], x.values.dtype)
    return _run("forward", [result], *x, kernel.astype(jnp.float32), relu=relu)[0]


def depthwise_gradient(
    x: Unnormalized, kernel: jax.Array, gradient: jax.Array, *, relu: bool
) -> tuple[Unnormalized, jax.Array]:
    """Computes the gradients of `depthwise` in x and kernel, in one pass."""
    shape, dtype = x.values.shape[1:], x.values.dtype
    results = [(shape, dtype), ((TAPS + 2, shape[-1]), jnp.float32)]
    taps = kernel.astype(jnp.float32)
    of_values, sums = _run("backward", results, *x, taps, gradient, relu=relu)
    *of_taps, of_scale, of_offset = sums.sum(0)
    of_kernel = jnp.stack(of_taps).reshape(kernel.shape).astype(kernel.dtype)
    return Unnormalized(of_values, of_scale, of_offset), of_kernel


def channel_sums(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sums a and a * b over images and pixels: two [b, h, w, c] to float32 [2, c]."""
    return _run("sums", [((2, a.shape[-1]), jnp.float32)], a, b)[0].sum(0)
