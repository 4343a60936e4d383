"""Which steps are traced, and that a trace of them is written."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fer_jax.errors import InputError
from fer_jax.training import loop


def test_the_option_names_steps():
    assert loop.profiled_steps("", num_steps=9) == range(0)
    assert loop.profiled_steps("5", num_steps=9) == range(5, 6)
    assert loop.profiled_steps("5-9", num_steps=9) == range(5, 10)


@pytest.mark.parametrize("option", ["yes", "5-", "0-3", "7-5", "8-10", "1-2-3"])
def test_other_options_are_refused(option: str):
    with pytest.raises(InputError, match="config.profile"):
        loop.profiled_steps(option, num_steps=9)


@pytest.mark.parametrize("resumed_from", [0, 2, 3])
def test_the_trace_covers_its_steps_also_after_a_restart(
    resumed_from: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: said.append("on"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: said.append("off"))
    traced = range(3, 6)
    for number in range(resumed_from + 1, 8):
        loop.start_trace(number, traced, resumed_from=resumed_from, workdir=tmp_path)
        said.append(number)
        loop.end_trace(number, traced, ())
    without_on = [entry for entry in said if entry != "on"]
    assert without_on == [*range(resumed_from + 1, 6), "off", 6, 7]
    assert said[said.index("on") + 1] == max(3, resumed_from + 1)


def test_a_trace_is_written(tmp_path: Path):
    loop.start_trace(1, range(1, 2), resumed_from=0, workdir=tmp_path)
    state = jax.jit(jnp.sin)(jnp.ones(8))
    loop.end_trace(1, range(1, 2), state)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
