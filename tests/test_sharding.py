"""What lives where on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from fer_jax.errors import InputError
from fer_jax.sharding import check_batch_size, make_mesh, state_sharding, to_devices

SHAPES = {
    "kernel": jax.ShapeDtypeStruct((3, 3, 64, 128), jnp.float32),
    "odd": jax.ShapeDtypeStruct((7, 9, 1001), jnp.float32),
    "bias": jax.ShapeDtypeStruct((128,), jnp.float32),
}


def specs(strategy: str) -> dict[str, PartitionSpec]:
    shardings = state_sharding(SHAPES, make_mesh(), strategy)
    return {name: sharding.spec for name, sharding in shardings.items()}


def test_data_parallel_copies_and_fsdp_divides_what_is_large_enough():
    assert set(specs("data_parallel").values()) == {PartitionSpec()}
    fsdp = specs("fsdp")
    assert fsdp["kernel"] == PartitionSpec(None, None, None, "data")
    assert fsdp["odd"] == fsdp["bias"] == PartitionSpec()


def test_a_batch_is_divided_over_the_devices():
    mesh = make_mesh()
    placed = to_devices({"x": np.arange(16)}, mesh)["x"]
    assert [shard.data.tolist() for shard in placed.addressable_shards][:2] == [[0, 1], [2, 3]]
    np.testing.assert_array_equal(placed, np.arange(16))


def test_a_batch_size_that_does_not_divide_is_refused_with_those_that_do():
    check_batch_size(32, 4, make_mesh())
    with pytest.raises(InputError, match="8 devices x 2 accumulation steps; use 16 or 32"):
        check_batch_size(20, 2, make_mesh())
    with pytest.raises(InputError, match="use 8$"):
        check_batch_size(4, 1, make_mesh())
