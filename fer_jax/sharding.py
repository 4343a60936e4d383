"""Which array lives where: one mesh axis over all devices, data-parallel or FSDP."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fer_jax.errors import InputError

# FSDP keeps smaller arrays on every device: they are not worth a gather.
MIN_SHARDED_ELEMENTS = 2**14


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh with the single axis "data" over the given devices (default: all)."""
    devices = jax.devices() if devices is None else devices
    # Auto, not the default Explicit: under explicit axes the network's convolutions and
    # reductions raise ShardingTypeError; Auto lets the partitioner place the all-reduces.
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that divides the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_sharding(shapes: Any, mesh: Mesh, strategy: str) -> Any:
    """Returns the shardings of a tree of parameters, statistics and optimizer state.

    "data_parallel" keeps everything on every device. "fsdp" divides each large array along its
    largest axis that the number of devices divides (ZeRO, Rajbhandari et al. 2020), so that
    parameters, moments and averages take 1/n of the memory.
    """
    if strategy == "data_parallel":
        return jax.tree.map(lambda _: replicated(mesh), shapes)

    def shard(x: Any) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0]
        if not divisible or np.prod(x.shape) < MIN_SHARDED_ELEMENTS:
            return replicated(mesh)
        largest = max(divisible, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "data"))

    return jax.tree.map(shard, shapes)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Returns a tree of `jax.ShapeDtypeStruct` with the shardings of another tree."""
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings
    )


def check_batch_size(batch_size: int, accumulation_steps: int, mesh: Mesh) -> None:
    """Refuses a batch that cannot be divided over devices and accumulation steps."""
    unit = mesh.size * accumulation_steps
    if batch_size % unit:
        below, above = batch_size // unit * unit, (batch_size // unit + 1) * unit
        nearest = f"{below} or {above}" if below else str(above)
        raise InputError(
            f"config.batch_size {batch_size} is not divisible by {mesh.size} devices x "
            f"{accumulation_steps} accumulation steps; use {nearest}"
        )


def describe_devices(mesh: Mesh) -> str:
    """Returns such as "8 NVIDIA H200 devices"."""
    return f"{mesh.size} {mesh.devices.flat[0].device_kind} device{'s' * (mesh.size > 1)}"


def to_devices(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's part of a batch onto its devices, sharded along the leading axis."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
