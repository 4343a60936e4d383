"""A signal is heard at once and obeyed at the next check; a second Ctrl-C leaves at once."""

import signal
import subprocess
import sys
import threading

import pytest

from fer_jax.__main__ import main
from fer_jax.errors import Preempted
from fer_jax.training import preemption, train

HEARD = """
import os, signal, time
from fer_jax.errors import Preempted
from fer_jax.training import preemption

def raised(check):
    try:
        check()
    except Preempted as error:
        return error.message

before = [signal.getsignal(one) for one in preemption.SIGNALS]
for number in preemption.SIGNALS:
    with preemption.heeded() as notice:
        notice.trained = True
        notice.check()
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 5
        while not notice.heard and time.monotonic() < deadline:
            time.sleep(0.01)
        print(notice.heard, raised(notice.check), raised(notice.checking(lambda: None)))
assert [signal.getsignal(one) for one in preemption.SIGNALS] == before

def begin():
    with preemption.heeded():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

print(raised(begin))
"""


def test_a_signal_is_obeyed_at_the_next_check_and_before_the_first_step_at_once():
    # In a process of its own: what is sent here would otherwise reach who runs the tests.
    ran = subprocess.run(
        [sys.executable, "-c", HEARD], capture_output=True, text=True, timeout=120, check=True
    )
    *steps, start = ran.stdout.splitlines()
    assert steps == [" ".join([number.name] * 3) for number in preemption.SIGNALS]
    assert start.startswith("SIGTERM: training had not begun")
    for number in preemption.SIGNALS:
        assert f"{number.name}: saving after this step" in ran.stderr


def test_in_another_thread_nothing_is_heard_and_nothing_changes():
    def body() -> None:
        with preemption.heeded() as notice:
            notice.trained = True
            notice.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_of_several_processes_one_is_enough_and_all_hear_it_at_the_same_check(
    monkeypatch: pytest.MonkeyPatch,
):
    # One process here; what goes over the devices is what several would send.
    monkeypatch.setattr(preemption.jax, "process_count", lambda: 2)
    notice = preemption.Notice()
    notice.check()
    notice.heard = "SIGTERM"
    notice.check()  # reads what was said at the check before
    with pytest.raises(Preempted) as raised:
        notice.check()
    assert raised.value.message == "SIGTERM"
    assert bool(preemption._anybody(True)) and not bool(preemption._anybody(False))


LISTENS = """
import time
from fer_jax.training import preemption
with preemption.heeded() as notice:
    notice.trained = {trained}
    print("ready", flush=True)
    try:
        {body}
    finally:
        print("late", flush=True)
"""


def started(trained: bool, body: str) -> subprocess.Popen[str]:
    code = LISTENS.format(trained=trained, body=body)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_second_interrupt_leaves_at_once():
    process = started(True, "[time.sleep(0.1) for _ in range(600)]")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(2)]
    assert lines[1] == "SIGINT: saving after this step; Ctrl-C again leaves at once\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")


def test_the_command_line_says_it_in_a_line_and_returns_75(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def preempted(argv: list[str]) -> None:
        raise Preempted("SIGTERM: step 41 is saved; the same command continues")

    monkeypatch.setattr(train, "main", preempted)
    assert main(["train"]) == 75
    assert capsys.readouterr().err == (
        "fer-jax: SIGTERM: step 41 is saved; the same command continues\n"
    )
