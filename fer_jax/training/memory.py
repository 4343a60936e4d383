"""Checks that a train step fits into device memory, and suggests a batch size if it does not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from fer_jax.compilations import announce
from fer_jax.errors import InputError

GIB = 2**30


def compile_that_fits(
    lower: Callable[[int], jax.stages.Lowered], batch_size: int, unit: int, *, what: str
) -> jax.stages.Compiled:
    """Compiles a step ahead of time, and refuses one that does not fit into the devices' memory.

    `lower` lowers the step for a batch size, which must be divisible by `unit`. The InputError says
    what it needs, what is free, and the largest batch that would fit.
    """
    with announce(what):
        compiled = lower(batch_size).compile()
    need, free = needed(compiled), free_bytes()
    if need <= free:
        return compiled
    wrong = (
        f"config.batch_size {batch_size} does not fit: a step needs {_gib(need)} and "
        f"{_gib(free)} are free on each device"
    )
    instead = "raise config.accumulation_steps"
    if jax.default_backend() != "cpu":
        instead += " or set config.model.remat=true"
    smaller = max(unit, batch_size // 2 // unit * unit)
    if smaller < batch_size:
        # The need is linear in the batch size: the state, and the same for every image.
        with announce(f"{what} with batch size {smaller}"):
            of_smaller = needed(lower(smaller).compile())
        per_image = (need - of_smaller) / (batch_size - smaller)
        largest = int(batch_size - (need - free) / per_image) // unit * unit
        if largest >= unit:
            raise InputError(
                f"{wrong}; {largest} would fit (the step was compiled at {batch_size} and "
                f"{smaller}), or {instead}"
            )
    raise InputError(f"{wrong}; no batch would fit: take a smaller network, or {instead}")


def needed(compiled: jax.stages.Compiled) -> int:
    """Returns the bytes on each device that a program needs, with its arguments and results."""
    stats: Any = compiled.memory_analysis()
    return (
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
    )


def describe(compiled: jax.stages.Compiled, free: int) -> str:
    """Says how much memory a step needs on each device, of how much."""
    return f"a step needs {_gib(needed(compiled))} of the {_gib(free)} free on each device"


def free_bytes() -> int:
    """Returns the bytes free on this process's fullest device; on CPU the devices share them."""
    devices = jax.local_devices()
    found = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in stats for stats in found):
        return min(stats["bytes_limit"] - stats.get("bytes_in_use", 0) for stats in found)
    return host_free_bytes() // len(devices)


def host_free_bytes() -> int:
    """Returns the bytes that this process may still take: the machine's, within its cgroup's."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = dict(line.split(":") for line in lines)
    free = [int(sizes["MemAvailable"].split()[0]) * 1024]
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and limit.read_text().strip() != "max":
        free.append(int(limit.read_text()) - int(used.read_text()))
    return min(free)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
