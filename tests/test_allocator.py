"""Freed memory stays with the process, unless the user decided otherwise."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
from fer_jax.allocator import keep_freed_memory

kept = keep_freed_memory() if {ask} else False
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
array = np.ones(200_000_000, np.uint8)
del array
print(kept, resident() - before > 150_000_000)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.confstr("CS_GNU_LIBC_VERSION") is None,
    reason="needs glibc",
)
@pytest.mark.parametrize(
    ("ask", "tunables", "printed"),
    [
        (True, "", "True True"),
        (False, "", "False False"),
        (True, "glibc.malloc.arena_max=2", "False False"),
    ],
)
def test_freed_memory_is_kept(ask: bool, tunables: str, printed: str):
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(ask=ask)],
        env=os.environ | {"GLIBC_TUNABLES": tunables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.strip() == printed
