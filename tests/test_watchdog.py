"""A hung run ends with the stacks; one that is slow or was stopped (SIGSTOP) does not."""

import contextlib
import signal
import subprocess
import sys
import time

import pytest

from fer_jax.errors import Preempted
from fer_jax.training import watchdog
from fer_jax.training.log import Stopwatch

PROGRAM = """
import sys, time
from fer_jax.training.watchdog import Watchdog
watchdog = Watchdog(min_limit_s={min_limit_s}, slow_limit_s={slow_limit_s})
for number in range(1, 6):
    watchdog.step(number)
    watchdog.begin(f"step {{number}}")
    time.sleep(0.01)
print("ready", flush=True)
{body}
watchdog.close()
print("done", flush=True)
"""


def run(body: str, slow_limit_s: float = 600.0, min_limit_s: float = 1.0) -> subprocess.Popen[str]:
    code = PROGRAM.format(body=body, slow_limit_s=slow_limit_s, min_limit_s=min_limit_s)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_step_that_hangs_ends_with_the_stacks_of_all_threads():
    hung = "import threading\nthreading.Thread(target=time.sleep, args=[60], daemon=True).start()\n"
    out, err = run(hung + "time.sleep(60)").communicate(timeout=30)
    assert "done" not in out
    first = err.splitlines()[0]
    assert first.startswith("fer-jax: step 5 did not end in ")
    assert "a step usually takes 0.0" in first and "exit code 70" in first
    assert err.count("most recent call first") >= 3  # main, the other, the watchdog's own
    assert 'File "<string>", line 12 in <module>' in err  # where it hangs


def test_the_exit_code_of_a_hang_is_its_own():
    process = run("time.sleep(60)")
    process.communicate(timeout=30)
    assert process.returncode == watchdog.EXIT_CODE == 70


def test_a_slow_input_pipeline_is_reported_and_has_longer():
    out, err = run("watchdog.step(6)\ntime.sleep(3)").communicate(timeout=30)
    assert out == "done\n"
    assert err.startswith("waited ") and " s for the data of step 6 (" in err
    assert err.rstrip().endswith("the input pipeline is slow") and len(err.splitlines()) == 1
    out, err = run("watchdog.step(6)\ntime.sleep(60)", slow_limit_s=2.0).communicate(timeout=30)
    assert out == "" and "fer-jax: the data of step 6 did not end in " in err


def test_what_may_be_slow_is_not_ended():
    out, err = run("watchdog.between_steps('saving')\ntime.sleep(2.5)\n").communicate(timeout=30)
    assert (out, err) == ("done\n", "")
    for rest in ("step(60)", "step(0); time.sleep(60)  # for its result, or the next data"):
        body = "step = watchdog.wrap(time.sleep, 'a batch', lambda: None)\n" + rest
        out, err = run(body).communicate(timeout=30)
        assert "fer-jax: a batch did not end in " in err


def test_a_wrapped_step_checks_first():
    def check() -> None:
        raise Preempted("SIGTERM")

    with contextlib.closing(watchdog.Watchdog()) as dog, pytest.raises(Preempted):
        dog.wrap(pytest.fail, "a batch", check)("it ran")


def test_a_process_that_was_stopped_has_not_hung():
    process = run("time.sleep(1.5)", min_limit_s=3.0)
    time.sleep(0.8)  # it has looked at the clock once
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=30) == ("done\n", "")


def test_the_limit_is_a_multiple_of_the_median_step(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
    with contextlib.closing(watchdog.Watchdog()) as dog:
        assert dog.limit_s() == watchdog.SLOW_LIMIT_S
        for number, took in enumerate([100.0, 3.0, 3.0, 3.0, 3.0], 1):
            dog.step(number)
            now += took
        dog.step(6)
        assert dog.limit_s() == 60.0
        dog.between_steps("saving")
        now += 1000.0
        dog.step(7)
        now += 3.0
        dog.step(8)
        assert dog.limit_s() == 60.0


def test_the_stopwatch_counts_steps_and_waits(monkeypatch: pytest.MonkeyPatch):
    now = 10.0
    monkeypatch.setattr("fer_jax.training.log.time.monotonic", lambda: now)
    stopwatch = Stopwatch(4, batch_size=8, flop_per_image=100.0, peak=4000.0)
    now += 2.0
    stopwatch.waited(0.5)
    figures = stopwatch.figures(9)
    assert figures == {
        "images_per_second": 20.0,
        "data_wait_share": 0.25,
        "model_flop_per_second": 2000.0,
        "model_flop_utilisation": 0.5,
    }
    now += 1.0
    assert stopwatch.figures(10)["images_per_second"] == 8.0
