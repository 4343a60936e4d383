"""Which array lives where: one mesh axis over all devices, data-parallel or FSDP."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fer_jax.errors import InputError

# An array smaller than this is not worth a gather: FSDP keeps it on every device.
MIN_SHARDED_ELEMENTS = 2**14


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the single axis "data" over the given devices (default: all)."""
    devices = jax.devices() if devices is None else devices
    # Auto, not the default Explicit: under explicit axes the network's convolutions and
    # reductions raise ShardingTypeError; Auto lets the partitioner place the all-reduces.
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis is divided over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_sharding(shapes: Any, mesh: Mesh, strategy: str) -> Any:
    """Shardings for a tree of parameters, statistics and optimizer state.

    Args:
      shapes: a tree of arrays or `jax.ShapeDtypeStruct`.
      mesh: from `make_mesh`.
      strategy: "data_parallel" keeps everything on every device; "fsdp" divides each large
        array along its largest axis that the number of devices divides (ZeRO, Rajbhandari et
        al. 2020), so parameters, moments and averages take 1/n of the memory.

    Returns:
      A tree of `NamedSharding` of the same structure.
    """
    if strategy == "data_parallel":
        return jax.tree.map(lambda _: replicated(mesh), shapes)
    if strategy != "fsdp":
        raise InputError(f"config.sharding cannot be '{strategy}'; choose data_parallel or fsdp")

    def shard(x: Any) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0]
        if not divisible or np.prod(x.shape) < MIN_SHARDED_ELEMENTS:
            return replicated(mesh)
        largest = max(divisible, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "data"))

    return jax.tree.map(shard, shapes)


def check_batch_size(batch_size: int, accumulation_steps: int, mesh: Mesh) -> None:
    """Refuses a batch that cannot be divided over devices and accumulation steps.

    Raises:
      InputError: names the nearest sizes that can.
    """
    unit = mesh.size * accumulation_steps
    if batch_size % unit:
        below, above = batch_size // unit * unit, (batch_size // unit + 1) * unit
        nearest = f"{below} or {above}" if below else str(above)
        raise InputError(
            f"config.batch_size {batch_size} is not divisible by {mesh.size} devices x "
            f"{accumulation_steps} accumulation steps; use {nearest}"
        )


def to_devices(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's part of a batch onto its devices.

    Args:
      batch: a tree of arrays whose leading axis is the global batch divided by the processes.
      mesh: from `make_mesh`.

    Returns:
      The tree as global arrays, sharded along the leading axis.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
