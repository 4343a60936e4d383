"""Handles preemption signals: every process of a run stops after the same step.

SIGTERM is what schedulers and `kill` send, SIGINT is Ctrl-C, SIGHUP comes when the terminal is
closed (not under `nohup`), and SIGUSR1 is the warning that `sbatch --signal=USR1@120` asks Slurm
for, two minutes before the time is up. Orbax's own handling
needs `jax.distributed`, and without it the first of them would end the process unsaved.
"""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.errors import PREEMPTED, Preempted
from fer_jax.sharding import batch_sharding, make_mesh, replicated

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# A compilation cannot be interrupted. Before the first step there is nothing to save, so a process
# that is still compiling so long after the signal exits at once.
COMPILATION_GRACE_S = 2.0
INTERRUPTED = 130  # 128 + SIGINT, as in shells


class PreemptionNotice:
    """Whether a signal came, and which.

    Before `training_started` there is nothing to save, and a signal ends the process.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self.training_started = False
        self._in_any: jax.Array | None = None
        self._interrupts = 0
        self._terminals = [number for number in (1, 2) if os.isatty(number)]
        self._deadline = threading.Timer(COMPILATION_GRACE_S, self._exit_if_compiling)
        self._deadline.daemon = True

    def check(self) -> None:
        """Raises Preempted after a signal: in all processes at the same call of each.

        Called once a step, after the step was started. A single process looks at a variable. Each
        of several runs a small program behind the step, which tells whether any of them got a
        signal, and reads its result at the next call, when it is ready: no process waits.
        """
        if jax.process_count() == 1:
            preempted = bool(self.signal_name)
        else:
            before, self._in_any = self._in_any, _any_process(bool(self.signal_name))
            preempted = before is not None and bool(before)
        if preempted:
            raise Preempted(self.signal_name or "a signal to another process")

    def on_signal(self, name: str) -> None:
        """Notes a signal, in a thread that runs whatever the main thread does."""
        self._interrupts += name == "SIGINT"
        if self._interrupts > 1:
            _exit(INTERRUPTED)
        if self.signal_name:
            return
        self.signal_name = name
        if name == "SIGHUP":
            self._discard_terminal_output()
        what = "saving after this step" if self.training_started else "stopping before training"
        hint = "; Ctrl-C again exits at once" if name == "SIGINT" else ""
        print(f"\n{name}: {what}{hint}", file=sys.stderr, flush=True)
        if not self.training_started:
            self._deadline.start()

    def _discard_terminal_output(self) -> None:
        """Redirects what went to the terminal to /dev/null: writing to a closed one fails."""
        null = os.open(os.devnull, os.O_WRONLY)
        for number in self._terminals:
            os.dup2(null, number)
        os.close(null)

    def on_main_thread(self, number: int, frame: Any) -> None:
        """Ends a start that is not compiling; Python calls it between two instructions."""
        del frame
        if not self.training_started:
            name = signal.Signals(number).name
            raise Preempted(f"{name}: training had not begun; rerun the same command to start it")

    def close(self) -> None:
        """Cancels the exit that `on_signal` planned."""
        self._deadline.cancel()

    def _exit_if_compiling(self) -> None:
        # The signal may have come just before training started, and then a step is being saved.
        if not self.training_started:
            _exit(PREEMPTED)


@contextlib.contextmanager
def handle_signals() -> Iterator[PreemptionNotice]:
    """Handles the signals until the block ends; outside of the main thread it handles none."""
    notice = PreemptionNotice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    descriptor_before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    handled = [
        number
        for number in SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, notice.on_main_thread) for number in handled}

    def listen() -> None:
        # Python writes a signal's number at once, also while the main thread is in a library.
        for byte in iter(functools.partial(reading.recv, 1), b""):
            if byte[0] in SIGNALS:
                notice.on_signal(signal.Signals(byte[0]).name)

    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    try:
        yield notice
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python, and cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(descriptor_before)
        writing.close()
        listener.join()
        reading.close()
        notice.close()


def _exit(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _any_process(here: bool) -> jax.Array:
    mesh = make_mesh()
    flags = np.full(len(jax.local_devices()), here)
    return _any(mesh)(jax.make_array_from_process_local_data(batch_sharding(mesh), flags))


@functools.lru_cache(maxsize=1)
def _any(mesh: Any) -> Any:
    return jax.jit(jnp.any, out_shardings=replicated(mesh))
