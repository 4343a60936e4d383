"""The compiled kernels of depthwise.cc, which replace slower forms in layers.py on CPU.

The machine's C++ compiler builds them at their first use, for the machine's processor, into the
folder of compiled programs. Without a compiler, and in dtypes other than float32 and bfloat16, the
plain forms of layers.py are used. $FER_JAX_CPU_KERNELS=no turns the kernels off; =yes makes it an
error if they cannot be built.
"""

import contextlib
import contextvars
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from fer_jax import compilations, storage
from fer_jax.errors import InputError

SWITCH = "FER_JAX_CPU_KERNELS"
OFF = f"{SWITCH}=no"
SOURCE = Path(__file__).with_name("depthwise.cc")
TARGETS = ("forward", "backward", "moments")
COMPILERS = ("c++", "g++", "clang++")
BUILD_TIMEOUT_S = 300
TAPS = 9

_portable = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Traces the plain forms: a program that is exported must not depend on this machine."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def usable(dtype: Any) -> bool:
    """Returns whether to trace the kernels for values of a dtype; builds them at the first use.

    Prints one line, once, if they cannot be built.
    """
    if _portable.get() or dtype not in (jnp.float32, jnp.bfloat16):
        return False
    if jax.default_backend() != "cpu":
        return False
    if reason := why_not():
        _print_once(reason)
    return not reason


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
    if reason != OFF:
        print(
            f"fer-jax: training is slower without the CPU kernels: {reason} ({SWITCH}=no hides "
            "this line)",
            file=sys.stderr,
        )


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
    library = compilations.folder() / f"depthwise-{name}.so"
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
    for name in TARGETS:
        handler = jax.ffi.pycapsule(getattr(functions, name))
        jax.ffi.register_ffi_target(f"fer_jax_{name}", handler, platform="cpu")


def _by_image(call: Callable[..., Any], rule: str) -> Callable[..., Any]:
    """Makes each device of a sharded batch compute its images, without communication.

    `rule` gives the images' axis the same letter in all arrays that have one.
    """

    def partition(mesh: Any, arguments: Any, results: Any) -> Any:
        axes = arguments[0].sharding.spec
        images = NamedSharding(mesh, PartitionSpec(*axes[:1]))
        whole = NamedSharding(mesh, PartitionSpec())
        of_arguments = tuple(
            images if part.strip().startswith("n") else whole
            for part in rule.split("->")[0].split(",")
        )
        return mesh, call, jax.tree.map(lambda _: images, results), of_arguments

    partitioned = custom_partitioning(call)
    partitioned.def_partition(partition=partition, sharding_rule=rule)
    return partitioned


def _call(name: str, results: Any, *arguments: jax.Array, **attributes: Any) -> Any:
    return jax.ffi.ffi_call(f"fer_jax_{name}", results)(*arguments, **attributes)


@functools.cache
def _forward(relu: bool) -> Callable[..., Any]:
    def call(values: Any, scale: Any, offset: Any, kernel: Any) -> Any:
        y = jax.ShapeDtypeStruct(values.shape, values.dtype)
        return _call("forward", y, values, scale, offset, kernel, relu=relu)

    return _by_image(call, "n h w c, d, e, i j f -> n k l m")


@functools.cache
def _backward(relu: bool) -> Callable[..., Any]:
    def call(values: Any, scale: Any, offset: Any, kernel: Any, gradient: Any) -> Any:
        batch, channels = values.shape[0], values.shape[-1]
        results = (
            jax.ShapeDtypeStruct(values.shape, values.dtype),
            jax.ShapeDtypeStruct((batch, TAPS, channels), jnp.float32),
            jax.ShapeDtypeStruct((batch, 2, channels), jnp.float32),
        )
        return _call("backward", results, values, scale, offset, kernel, gradient, relu=relu)

    rule = "n h w c, d, e, i j f, n g k l -> n m o p, n q r, n s t"
    return _by_image(call, rule)


@functools.cache
def _moments() -> Callable[..., Any]:
    def call(x: Any) -> Any:
        sums = jax.ShapeDtypeStruct((x.shape[0], 2, x.shape[-1]), jnp.float32)
        return _call("moments", sums, x)

    return _by_image(call, "n h w c -> n s t")


def depthwise(
    values: jax.Array, scale: jax.Array, offset: jax.Array, kernel: jax.Array, relu: bool
) -> jax.Array:
    """Convolves values * scale + offset, after a ReLU or not, by [3, 3, c] float32.

    Maps [b, h, w, c] to the same, float32 or bfloat16; scale and offset are float32 [c].
    """
    return _forward(relu)(values, scale, offset, kernel)


def depthwise_gradient(
    values: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    kernel: jax.Array,
    gradient: jax.Array,
    relu: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Computes the gradients of `depthwise` in values, scale, offset and kernel, in one pass."""
    of_values, of_kernel, sums = _backward(relu)(values, scale, offset, kernel, gradient)
    sums = sums.sum(0)
    return of_values, sums[0], sums[1], of_kernel.sum(0).reshape(kernel.shape)


def channel_sums(x: jax.Array) -> jax.Array:
    """Sums values and their squares over images and pixels: [b, h, w, c] to float32 [2, c]."""
    return _moments()(x).sum(0)
