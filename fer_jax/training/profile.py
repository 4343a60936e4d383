"""A profiler trace of some steps, for TensorBoard or Perfetto, asked for by one config word."""

import re
from pathlib import Path
from typing import Any

import jax

from fer_jax.errors import InputError


def steps(word: str, *, num_steps: int) -> range:
    """The steps that config.profile names.

    Args:
      word: "" for none, "20" for one, "20-24" for some, both ends included.
      num_steps: of the run.

    Raises:
      InputError: another word, or steps that the run does not have.
    """
    if not word:
        return range(0)
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
    if not found:
        raise InputError(f"config.profile names steps, such as 20-24, not '{word}'")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last <= num_steps:
        raise InputError(f"config.profile '{word}' names steps that a run of {num_steps} lacks")
    return range(first, last + 1)


def turn_on(number: int, traced: range, *, continued_from: int, workdir: Path) -> None:
    """Starts the trace before its first step, or before the first after a restart among them."""
    if number in traced and number in (traced.start, continued_from + 1):
        jax.profiler.start_trace(workdir / "profile")


def turn_off(number: int, traced: range, state: Any) -> None:
    """Ends the trace when its last step is done."""
    if traced and number == traced[-1]:
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
