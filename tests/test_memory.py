"""A step that does not fit is refused with the batch that would."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fer_jax.errors import InputError
from fer_jax.training import memory


def lower(batch_size: int) -> Any:
    """A step that needs its state, and for every image a megabyte that stays alive."""

    def step(state: jax.Array, images: jax.Array) -> jax.Array:
        grown = jnp.sort(jnp.tile(images, (1, 2**18)), axis=1)
        return state + jnp.matmul(grown.T[:1], grown)[0, : len(state)]

    images = jax.ShapeDtypeStruct((batch_size, 1), jnp.float32)
    return jax.jit(step).lower(jax.ShapeDtypeStruct((2**18,), jnp.float32), images)


def test_a_step_that_fits_is_compiled():
    compiled = memory.compile_that_fits(lower, 8, 1, what="a step")
    assert compiled(jnp.zeros(2**18), jnp.ones((8, 1))).shape == (2**18,)
    # The state comes in and goes out.
    assert memory.needed(compiled) > 2 * 2**20 + 8 * 2**20


def test_the_batch_that_would_fit_does(monkeypatch: pytest.MonkeyPatch):
    needs = {size: memory.needed(lower(size).compile()) for size in (14, 16)}
    monkeypatch.setattr(memory, "free_bytes", lambda: needs[14])
    with pytest.raises(InputError, match="config.batch_size 40 does not fit") as refused:
        memory.compile_that_fits(lower, 40, 2, what="a step")
    said = str(refused.value)
    found = re.search(r"; (\d+) would fit \(the step was compiled at 40 and 20\)", said)
    assert found and int(found[1]) == 14 and needs[16] > needs[14]
    assert "\n" not in said


def test_a_state_that_does_not_fit_is_no_matter_of_the_batch(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    for batch_size in (4, 16):
        with pytest.raises(InputError, match="no batch would fit"):
            memory.compile_that_fits(lower, batch_size, 4, what="a step")


def test_cpu_devices_share_the_machines_memory():
    assert 0 < memory.free_bytes() <= memory.host_free_bytes() // len(jax.devices()) * 1.5
