"""A signal stops a run after its step; a second Ctrl-C exits at once."""

import os
import pty
import signal
import subprocess
import sys
import threading

import pytest

from fer_jax.__main__ import main
from fer_jax.errors import Preempted
from fer_jax.training import preemption, train

SIGNALLED = """
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
    with preemption.handle_signals() as notice:
        notice.training_started = True
        notice.check()
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 5
        while not notice.signal_name and time.monotonic() < deadline:
            time.sleep(0.01)
        print(notice.signal_name, raised(notice.check))
assert [signal.getsignal(one) for one in preemption.SIGNALS] == before

def begin():
    with preemption.handle_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

print(raised(begin))
"""


def test_a_signal_raises_at_the_next_check_and_before_the_first_step_at_once():
    # In a process of its own: what is sent here would otherwise reach who runs the tests.
    ran = subprocess.run(
        [sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=120, check=True
    )
    *steps, start = ran.stdout.splitlines()
    assert steps == [" ".join([number.name] * 2) for number in preemption.SIGNALS]
    assert start.startswith("SIGTERM: training had not begun")
    for number in preemption.SIGNALS:
        assert f"{number.name}: saving after this step" in ran.stderr


def test_in_another_thread_no_signal_is_handled():
    def body() -> None:
        with preemption.handle_signals() as notice:
            notice.training_started = True
            notice.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_all_processes_stop_at_the_same_check(
    monkeypatch: pytest.MonkeyPatch,
):
    # One process here; what goes over the devices is what several would send.
    monkeypatch.setattr(preemption.jax, "process_count", lambda: 2)
    notice = preemption.PreemptionNotice()
    notice.check()
    notice.signal_name = "SIGTERM"
    notice.check()  # reads what was said at the check before
    with pytest.raises(Preempted) as raised:
        notice.check()
    assert raised.value.message == "SIGTERM"
    assert bool(preemption._any_process(True)) and not bool(preemption._any_process(False))


HANDLES = """
import os, signal, time
from fer_jax.training import preemption
with preemption.handle_signals() as notice:
    notice.training_started = {trained}
    print("ready", flush=True)
    try:
        {body}
    finally:
        print("late", flush=True)
"""


def started(trained: bool, body: str) -> subprocess.Popen[str]:
    code = HANDLES.format(trained=trained, body=body)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_second_interrupt_exits_at_once():
    process = started(True, "[time.sleep(0.1) for _ in range(600)]")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(2)]
    assert lines[1] == "SIGINT: saving after this step; Ctrl-C again exits at once\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")


def test_a_closed_terminal_stops_a_run_as_sigterm_does():
    body = "time.sleep(1); print('more'); notice.check()"
    code = HANDLES.format(trained=True, body=body)
    terminal, other = pty.openpty()
    words = ["setsid", "--ctty", sys.executable, "-c", code]
    process = subprocess.Popen(words, stdin=other, stdout=other, stderr=other)
    os.close(other)
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)
    assert process.wait(timeout=20) == 75


def test_under_nohup_a_closed_terminal_stops_nothing():
    code = HANDLES.format(trained=True, body="os.kill(os.getpid(), signal.SIGHUP); notice.check()")
    code = "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + code
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_start_that_compiles_exits_within_seconds():
    # A call into a library that no signal interrupts, as a compilation is.
    hang = "import ctypes; lock = ctypes.CDLL(None).pthread_mutex_lock; "
    hang += "mutex = ctypes.create_string_buffer(64); lock(mutex); lock(mutex)"
    process = started(False, hang)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (75, "")
    assert err == "\nSIGTERM: stopping before training\n"


def test_the_command_line_prints_a_line_and_returns_75(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def preempted(argv: list[str]) -> None:
        raise Preempted("SIGTERM: step 41 is saved; rerun the same command to resume")

    monkeypatch.setattr(train, "main", preempted)
    assert main(["train"]) == 75
    assert capsys.readouterr().err == (
        "fer-jax: SIGTERM: step 41 is saved; rerun the same command to resume\n"
    )
