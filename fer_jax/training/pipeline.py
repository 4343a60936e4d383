"""Where a step's batch comes from: decoded as it is needed, a memory map, or the devices.

config.input names one of them. The batches are the same bit for bit, and so is the state of
their iterator: a run may be continued with another.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fer_jax import distributed
from fer_jax.config import Config
from fer_jax.data import batches, decoded
from fer_jax.data.batches import Mixture
from fer_jax.errors import InputError
from fer_jax.sharding import batch_sharding, replicated, to_devices
from fer_jax.training.log import write_atomically
from fer_jax.training.memory import GIB, host_free_bytes

TOLD = 8  # records of a batch that an error names

Place = Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]


def open_source(
    config: Config, mixture: Mixture, mesh: Mesh, workdir: Path, *, num_steps: int, free: int
) -> tuple[grain.DatasetIterator, Place]:
    """Opens what config.input names.

    Args:
      config: of the run.
      mixture: what it trains on.
      mesh: from `make_mesh`.
      workdir: receives the memory map, in decoded/.
      num_steps: of the run.
      free: bytes on each device beside the step.

    Returns:
      (an iterator of host batches, whose `get_state` and `set_state` continue it exactly; what
      turns one into the step's batch {"image": uint8 [b, s, s, 3], "target": float32 [b, k],
      "domain": int32 [b]}).

    Raises:
      InputError: the images find no room.
    """
    size = config.model.image_size
    place: Place = functools.partial(to_devices, mesh=mesh)
    if config.input == "stream":
        return decoded_batches(config, mixture, num_steps=num_steps), place
    if config.input == "memmap":
        images = decoded.memory_map(
            mixture,
            size,
            workdir / "decoded",
            writes=distributed.is_first(),
            written=functools.partial(distributed.wait_for_all, "decoded"),
        )
        read = functools.partial(np.take, images, axis=0)
    else:
        on_devices = _on_devices(mixture, size, mesh, free)
        take = row_taker(mesh, divided=not on_devices.sharding.is_fully_replicated)
        read = functools.partial(np.asarray, dtype=np.int32)

        def take_and_place(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
            placed = to_devices(batch, mesh)
            return placed | {"image": take(on_devices, placed["image"])}

        place = take_and_place

    return _batches(config, mixture, read, num_steps), place


def decoded_batches(config: Config, mixture: Mixture, *, num_steps: int) -> grain.DatasetIterator:
    """The host batches of `batches.train_batches`, decoded as they are needed.

    Args:
      config: of the run.
      mixture: what it trains on.
      num_steps: how many.
    """
    read = functools.partial(batches.decode, mixture, image_size=config.model.image_size)
    return _batches(config, mixture, read, num_steps)


def _batches(
    config: Config, mixture: Mixture, read: Callable[[np.ndarray], np.ndarray], num_steps: int
) -> grain.DatasetIterator:
    return batches.train_batches(
        mixture,
        read,
        batch_size=config.batch_size,
        num_steps=num_steps,
        seed=config.seed,
        process=jax.process_index(),
        num_processes=jax.process_count(),
    )


def told_batch(config: Config, mixture: Mixture, step: int, workdir: Path) -> str:
    """The records of a step's batch in words; all of them go to not_finite.json in the workdir.

    Args:
      config: of the run.
      mixture: what it trains on.
      step: from 1.
      workdir: of the run.
    """
    numbers = batches.drawn(mixture, step - 1, batch_size=config.batch_size, seed=config.seed)
    ids = [
        str(mixture.records[int(mixture.source[n])].columns["record_id"][mixture.row[n]])
        for n in numbers
    ]
    if distributed.is_first():
        file = workdir / "not_finite.json"
        write_atomically(file, json.dumps({"step": step, "record_ids": ids}, indent=1) + "\n")
    more = f" and {len(ids) - TOLD} more (not_finite.json)" if len(ids) > TOLD else ""
    return f"records {', '.join(ids[:TOLD])}{more}"


def _on_devices(mixture: Mixture, image_size: int, mesh: Mesh, free: int) -> jax.Array:
    """All images, uint8 [at least n, s, s, 3]: on every device, or else divided over them."""
    rows = -(-len(mixture) // mesh.size) * mesh.size
    shape = (rows, image_size, image_size, 3)
    sharding = resident_sharding(int(np.prod(shape)), mesh, free)

    def part(index: Any) -> np.ndarray:
        numbers = range(rows)[index[0]]
        images = np.zeros((len(numbers), *shape[1:]), np.uint8)
        decoded.decode_all(mixture, image_size, numbers, images)
        return images

    return jax.make_array_from_callback(shape, sharding, part)


def resident_sharding(size: int, mesh: Mesh, free: int) -> NamedSharding:
    """Where the images go: on every device, else divided over them.

    Args:
      size: of all images, in bytes.
      mesh: from `make_mesh`.
      free: bytes on each device beside the step, the same in every process.

    Raises:
      InputError: they do not fit, on the devices or, while they are decoded, on the host.
    """
    sharding = replicated(mesh) if size <= free else batch_sharding(mesh)
    of_device = size if size <= free else size // mesh.size
    host = distributed.smallest(host_free_bytes())
    of_host = size if size <= free else size // jax.process_count()
    if of_device > free or of_host > host:
        raise InputError(
            f"config.input=device: the images take {size / GIB:.2f} GiB; beside the step "
            f"{max(0, free) / GIB:.2f} GiB are free on each of {mesh.size} devices, and "
            f"{host / GIB:.2f} GiB on the host; set config.input=memmap"
        )
    return sharding


def row_taker(mesh: Mesh, *, divided: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """What takes the rows of a resident array that a batch names.

    A program of its own, not a part of the step: so the step is the same program whatever the
    input, and its results are the same bits.

    Args:
      mesh: from `make_mesh`.
      divided: whether the rows are divided over the mesh, or all of them on every device.

    Returns:
      (images uint8 [n, s, s, 3], numbers int32 [b] divided over the mesh) to uint8
      [b, s, s, 3] divided over the mesh.
    """

    def from_all_devices(images: jax.Array, numbers: jax.Array) -> jax.Array:
        numbers = jax.lax.all_gather(numbers, "data", tiled=True)
        place = numbers - jax.lax.axis_index("data") * len(images)
        here = (0 <= place) & (place < len(images))
        rows = images.at[jnp.where(here, place, 0)].get(mode="promise_in_bounds")
        # Every row is on one device and zero on the others.
        rows = jnp.where(here[:, None, None, None], rows, 0)
        return jax.lax.psum_scatter(rows, "data", tiled=True)

    def from_this_device(images: jax.Array, numbers: jax.Array) -> jax.Array:
        return images.at[numbers].get(mode="promise_in_bounds")

    by_rows = PartitionSpec("data")
    return jax.jit(
        jax.shard_map(
            from_all_devices if divided else from_this_device,
            mesh=mesh,
            in_specs=(by_rows if divided else PartitionSpec(), by_rows),
            out_specs=by_rows,
        )
    )
