"""Starts several processes on this host that train or evaluate together.

    python launch/local.py --processes=2 train --config=configs/demo.py --workdir=runs/demo

After the number of processes comes a verb of `fer-jax` with its options. The processes connect at a
free port of 127.0.0.1, and GPUs are divided evenly. If a process fails, all end within 30 seconds.
SIGTERM, Ctrl-C, SIGUSR1 and SIGHUP (a closed terminal) are passed on. The exit code is that of the
first failure: 75 if all were preempted.
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
ABORTED = 128 + signal.SIGABRT
POLL_S = 0.1
# Seconds that the others have to end after a preemption, and after a failure.
SAVING_S, MESSAGES_S = 25.0, 5.0
SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def free_port() -> int:
    """Returns a port of 127.0.0.1 that is not in use."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Returns the GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
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
    processes: int, port: int, environment: Mapping[str, str], gpus: Sequence[str]
) -> list[dict[str, str]]:
    """Returns the environment of each process; `port` is the first one's."""
    each = len(gpus) // processes
    result = []
    for process in range(processes):
        own = dict(environment) | {
            "FER_JAX_COORDINATOR": f"127.0.0.1:{port}",
            "FER_JAX_PROCESSES": str(processes),
            "FER_JAX_PROCESS": str(process),
        }
        if gpus:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[process * each : (process + 1) * each])
        result.append(own)
    return result


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """Returns the exit code as a shell counts it: 128 plus the signal if one ended the process."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def first_failure(codes: Sequence[int]) -> int:
    """Returns the exit code of the failure that caused the others; 0 if all succeeded."""
    # A preempted process did not fail, and JAX aborts the others if one is lost.
    return min(codes, key=lambda code: (code == 0, code == PREEMPTED, code == ABORTED))


def wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits for all, and ends all if one fails; returns their exit code."""
    first, deadline = 0, float("inf")
    while any(process.poll() is None for process in processes):
        if not first:
            ended = [exit_code(process) for process in processes if process.poll() is not None]
            first = first_failure(ended or [0])
            if first:
                deadline = time.monotonic() + (SAVING_S if first == PREEMPTED else MESSAGES_S)
        elif time.monotonic() > deadline:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        time.sleep(POLL_S)
    if first in (0, PREEMPTED, ABORTED):
        first = first_failure([exit_code(process) for process in processes])
    return first


def main(argv: Sequence[str]) -> int:
    """Starts the processes, passes signals on and waits; returns the exit code."""
    parser = argparse.ArgumentParser(prog="local.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument(
        "verb", nargs=argparse.REMAINDER, help="train or evaluate, with its options"
    )
    arguments = parser.parse_args(argv)
    if arguments.processes < 1 or not arguments.verb:
        parser.error("name at least one process, and a verb")
    gpus = visible_gpus(os.environ)
    if len(gpus) % arguments.processes:
        parser.error(f"{len(gpus)} GPUs cannot be divided among {arguments.processes} processes")
    libc = ctypes.CDLL(None)

    def end_with_parent() -> None:
        libc.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)

    started: list[subprocess.Popen[bytes]] = []
    interrupts = 0

    def pass_on(number: int, frame: object) -> None:
        nonlocal interrupts
        del frame
        interrupts += number == signal.SIGINT
        # A second Ctrl-C ends at once; a scheduler may send the same signal twice. SIGHUP stays
        # what it is, since only it tells that the terminal can no longer be written.
        sent = number if number == signal.SIGHUP else signal.SIGTERM
        for process in started:
            process.send_signal(signal.SIGKILL if interrupts > 1 else sent)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        # `nohup` makes a program ignore that its terminal is closed.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, pass_on)
    command = [sys.executable, "-m", "fer_jax", *arguments.verb]
    for own in environments(arguments.processes, free_port(), os.environ, gpus):
        # In sessions of their own, so that Ctrl-C reaches them once, through this process.
        started.append(
            subprocess.Popen(command, env=own, start_new_session=True, preexec_fn=end_with_parent)
        )
    return wait(started)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
