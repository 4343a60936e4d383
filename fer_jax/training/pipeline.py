"""The input pipeline: batches decoded as they are needed, from a memory map, or on the devices.

config.input chooses. The batches are the same bit for bit, and so is the state of their iterator:
a run may resume with another choice.
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
from fer_jax.data import batches
from fer_jax.data.batches import Mixture
from fer_jax.errors import InputError
from fer_jax.sharding import batch_sharding, replicated, to_devices
from fer_jax.storage import write_atomically
from fer_jax.training.memory import GIB, host_free_bytes

NAMED_RECORDS = 8  # of a batch, in an error

Place = Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]


def open_pipeline(
    config: Config, mixture: Mixture, mesh: Mesh, workdir: Path, *, num_steps: int, free: int
) -> tuple[grain.DatasetIterator, Place]:
    """Opens the pipeline that config.input names, of a classifier or a generator.

    A memory map goes to workdir/decoded/; `free` is the number of bytes on each device beside the
    step.

    Returns (an iterator of host batches, whose `get_state` and `set_state` resume it exactly; a
    function from one to the step's batch {"image": uint8 [b, s, s, 3], "target": float32 [b, k],
    "domain": int32 [b]}). InputError if the images do not fit.
    """
    size = config.model.image_size
    place: Place = functools.partial(to_devices, mesh=mesh)
    read = functools.partial(mixture.images, image_size=size)
    if config.input == "memmap":
        images = batches.memory_map(
            mixture,
            size,
            workdir / "decoded",
            writes=distributed.is_first(),
            written=functools.partial(distributed.wait_for_all, "decoded"),
        )
        read = functools.partial(np.take, images, axis=0)
    elif config.input == "device":
        on_devices = _on_devices(mixture, size, mesh, free)
        take = row_taker(mesh, divided=not on_devices.sharding.is_fully_replicated)
        read = functools.partial(np.asarray, dtype=np.int32)

        def take_and_place(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
            placed = to_devices(batch, mesh)
            return placed | {"image": take(on_devices, placed["image"])}

        place = take_and_place

    iterator = batches.train_batches(
        mixture, read, batch_size=config.batch_size, num_steps=num_steps, seed=config.seed
    )
    return iterator, place


def describe_batch(config: Config, mixture: Mixture, step: int, workdir: Path) -> str:
    """Names records of a step's batch, and writes all of them to workdir/not_finite.json."""
    ids = mixture.record_ids(
        batches.batch_indices(mixture, step - 1, batch_size=config.batch_size, seed=config.seed)
    )
    if distributed.is_first():
        file = workdir / "not_finite.json"
        write_atomically(file, json.dumps({"step": step, "record_ids": ids}, indent=1) + "\n")
    rest = len(ids) - NAMED_RECORDS
    more = f" and {rest} more (not_finite.json)" if rest > 0 else ""
    return f"records {', '.join(ids[:NAMED_RECORDS])}{more}"


def _on_devices(mixture: Mixture, image_size: int, mesh: Mesh, free: int) -> jax.Array:
    """Puts all images on every device, or divides them: uint8 [at least n, s, s, 3]."""
    rows = -(-len(mixture) // mesh.size) * mesh.size
    shape = (rows, image_size, image_size, 3)
    sharding = resident_sharding(int(np.prod(shape)), mesh, free)

    def part(index: Any) -> np.ndarray:
        numbers = range(rows)[index[0]]
        images = np.zeros((len(numbers), *shape[1:]), np.uint8)
        batches.decode_all(mixture, image_size, numbers, images)
        return images

    return jax.make_array_from_callback(shape, sharding, part)


def resident_sharding(size: int, mesh: Mesh, free: int) -> NamedSharding:
    """Returns the sharding of the images: on every device if they fit, else divided.

    `size` is the bytes of all images, `free` those on each device beside the step, the same in
    every process. Raises InputError if they do not fit on the devices or, while they are decoded,
    on the host.
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
    """Returns a program that takes a batch's rows of an array on the devices.

    It is not a part of the step, so that the step is the same program with every input and its
    results are the same bits. The rows are divided over the mesh, or else every device has all of
    them.

    Returns (images uint8 [n, s, s, 3], numbers int32 [b] divided over the mesh) to uint8 [b, s, s,
    3] divided over the mesh.
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
