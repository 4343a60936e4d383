"""Several processes on this host that train or evaluate as one.

    python launch/local.py --processes=2 train --config=configs/demo.py --workdir=runs/demo

What follows the count is a verb of `fer-jax` with its words. The processes find each other at a
free port of 127.0.0.1. One that dies ends all of them, within 30 seconds; SIGTERM and Ctrl-C are
passed on, and the exit code is that of the first that failed: 75 where all were preempted. GPUs,
where there are any, are dealt out evenly.
"""

import argparse
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

PREEMPTED = 75
POLL_S = 0.1
ABORTED = 128 + signal.SIGABRT
# How long the others have when the first has ended: after a preemption, and after a failure.
MAY_SAVE_S, MAY_SPEAK_S = 25.0, 5.0
SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]


def environments(
    processes: int, port: int, environment: Mapping[str, str], devices: Sequence[str]
) -> list[dict[str, str]]:
    """What each process is told.

    Args:
      processes: how many.
      port: of the first.
      environment: what all of them get.
      devices: from `gpus`.
    """
    each = len(devices) // processes
    told = []
    for process in range(processes):
        own = dict(environment) | {
            "FER_JAX_COORDINATOR": f"127.0.0.1:{port}",
            "FER_JAX_PROCESSES": str(processes),
            "FER_JAX_PROCESS": str(process),
        }
        if devices:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(devices[process * each : (process + 1) * each])
        told.append(own)
    return told


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """As a shell counts it: 128 and the signal where one ended it."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def of_all(codes: Sequence[int]) -> int:
    """The exit code of several processes: what failed first of all, not what followed from it."""
    # Who was asked to leave did not fail, and JAX aborts whom it cuts off from the others.
    return min(codes, key=lambda code: (code == 0, code == PREEMPTED, code == ABORTED))


def wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits for all, and ends all when one fails. Returns their exit code."""
    first, deadline = 0, float("inf")
    while any(process.poll() is None for process in processes):
        if not first:
            first = of_all([exit_code(one) for one in processes if one.poll() is not None] or [0])
            if first:
                grace = MAY_SAVE_S if first == PREEMPTED else MAY_SPEAK_S
                deadline = time.monotonic() + grace
        elif time.monotonic() > deadline:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(POLL_S)
    if first in (0, PREEMPTED, ABORTED):
        first = of_all([exit_code(process) for process in processes])
    return first


def main(argv: Sequence[str]) -> int:
    """Starts them, passes signals on, waits. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="local.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="train or evaluate, and its words")
    arguments = parser.parse_args(argv)
    if arguments.processes < 1 or not arguments.words:
        parser.error("name at least one process, and a verb")
    devices = gpus(os.environ)
    if len(devices) % arguments.processes:
        parser.error(f"{len(devices)} GPUs cannot be dealt out to {arguments.processes} processes")
    libc = ctypes.CDLL(None)

    def ends_with_us() -> None:
        libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)

    started: list[subprocess.Popen[bytes]] = []
    interrupts = 0

    def pass_on(number: int, frame: object) -> None:
        nonlocal interrupts
        del frame
        interrupts += number == signal.SIGINT
        for process in started:
            if process.poll() is None:
                # A second Ctrl-C leaves at once; a scheduler may say the same twice.
                process.kill() if interrupts > 1 else process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, pass_on)
    command = [sys.executable, "-m", "fer_jax", *arguments.words]
    for own in environments(arguments.processes, free_port(), os.environ, devices):
        # In sessions of their own: Ctrl-C reaches them through us, once.
        started.append(
            subprocess.Popen(command, env=own, start_new_session=True, preexec_fn=ends_with_us)
        )
    return wait(started)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
