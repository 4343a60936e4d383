"""A signal is heard at once and obeyed at the next check; a second Ctrl-C leaves at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fer_jax.__main__ import main
from fer_jax.errors import Preempted
from fer_jax.training import preemption, train


def heard(notice: preemption.Notice) -> str:
    deadline = time.monotonic() + 5
    while not notice.heard and time.monotonic() < deadline:
        time.sleep(0.01)
    return notice.heard


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_obeyed_at_the_next_check(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
):
    before = [signal.getsignal(one) for one in preemption.SIGNALS]
    with preemption.heeded() as notice:
        notice.trained = True
        notice.check()
        os.kill(os.getpid(), number)
        assert heard(notice) == number.name
        with pytest.raises(Preempted, match="75") as raised:
            notice.check()
        with pytest.raises(Preempted):
            notice.checking(lambda: None)()
    assert raised.value.message == number.name
    assert f"{number.name}: saving after this step" in capfd.readouterr().err
    assert [signal.getsignal(one) for one in preemption.SIGNALS] == before


def test_before_the_first_step_there_is_nothing_to_save():
    with pytest.raises(Preempted) as raised, preemption.heeded():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert "training had not begun" in raised.value.message


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
