"""A workdir has one run at a time, and a process that was killed holds nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fer_jax.errors import InputError
from fer_jax.training import lock

HOLDS = """
import sys, time
from pathlib import Path
from fer_jax.training import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_living_process_keeps_others_out_and_a_killed_one_does_not(tmp_path: Path):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(workdir)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"being trained in by process {process.pid} on "):
        with lock.held(workdir):
            pass
    process.kill()
    process.wait()
    process.stdout.close()
    with lock.held(workdir):
        assert str(os.getpid()) in (workdir / lock.FILE).read_text()


def test_it_is_free_again_after_the_block_also_after_an_error(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
        raise ZeroDivisionError
    with lock.held(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        with lock.held(tmp_path):
            pass
    assert (tmp_path / lock.FILE).read_text() == ""


def test_only_the_first_of_several_processes_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lock.jax, "process_index", lambda: 1)
    with lock.held(tmp_path), lock.held(tmp_path):
        assert not list(tmp_path.iterdir())
