"""Closed streams, limits that are too low, freed memory that stays with the process."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fer_jax import process
from fer_jax.errors import InputError

PROGRAM = """
import numpy as np
from fer_jax.process import keep_freed_memory

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


CLOSED = """
import sys
from fer_jax.process import open_closed_streams

open_closed_streams()
with open(sys.argv[1], "w") as file:
    print("lost")
    print("lost, too", file=sys.stderr, flush=True)
    file.write(f"kept {file.fileno() > 2}")
"""


def test_output_to_closed_streams_goes_into_no_file(tmp_path: Path):
    command = f'exec "$0" -c "$1" {tmp_path / "file"} <&- >&- 2>&-'
    subprocess.run(["bash", "-c", command, sys.executable, CLOSED], check=True)
    assert (tmp_path / "file").read_text() == "kept True"


def test_too_little_address_space_is_one_line():
    command = 'ulimit -v 3000000; exec "$0" -m fer_jax train'
    ran = subprocess.run(
        ["bash", "-c", command, sys.executable], capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "fer-jax: the address space is limited to 2.9 GiB, and 4 GiB are needed; "
        "run `ulimit -v unlimited` first\n"
    )


def test_too_few_threads_are_one_line(monkeypatch: pytest.MonkeyPatch):
    start, started = threading.Thread.start, []

    def limited(self: threading.Thread) -> None:
        if len(started) == 10:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(InputError, match="only 10 of .* threads can be started; raise the limit"):
        process.check_limits()
    assert not any(thread.is_alive() for thread in started)
