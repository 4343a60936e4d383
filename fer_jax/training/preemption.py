"""Asked to leave: a signal is heard at once and obeyed between two steps, by all processes alike.

SIGTERM is what schedulers and `kill` send, SIGINT is Ctrl-C, and SIGUSR1 is the warning that
`sbatch --signal=USR1@120` asks Slurm for, two minutes before the time is up. Orbax's own notice
needs `jax.distributed`, and without it the first of them would end the process unsaved.
"""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.errors import Preempted
from fer_jax.sharding import batch_sharding, make_mesh, replicated

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A start that is compiling cannot be interrupted; there is nothing to save, so it is not awaited.
START_MAY_TAKE_S = 10.0
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Notice:
    """Whether somebody asked.

    Attributes:
      heard: the name of the signal, "" before one came.
      trained: whether there may be something to save; before that a signal ends the start.
    """

    def __init__(self) -> None:
        """Nothing was heard yet."""
        self.heard = ""
        self.trained = False
        self._asked: jax.Array | None = None
        self._interrupts = 0
        self._deadline = threading.Timer(START_MAY_TAKE_S, _leave, [75])
        self._deadline.daemon = True

    def check(self) -> None:
        """Raises Preempted where somebody asked: in all processes at the same call of each.

        Called once a step, after the step was started. A single process looks at a variable. Of
        several, each says what it heard in a small program that runs behind the step, and reads
        the answer at its next call, when it is long there: nobody waits.
        """
        if jax.process_count() == 1:
            asked = bool(self.heard)
        else:
            before, self._asked = self._asked, _anybody(bool(self.heard))
            asked = before is not None and bool(before)
        if asked:
            raise Preempted(self.heard or "a signal to another process")

    def checking(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A step that checks each time before it is run."""

        @functools.wraps(step)
        def checked(*arguments: Any) -> Any:
            self.check()
            return step(*arguments)

        return checked

    def hear(self, name: str) -> None:
        """Takes a signal, in a thread that no step holds up."""
        self._interrupts += name == "SIGINT"
        if self._interrupts > 1:
            _leave(INTERRUPTED)
        if self.heard:
            return
        self.heard = name
        if self.trained:
            what = "saving after this step"
        else:
            what = "leaving before the first step"
            self._deadline.start()
        hint = "; Ctrl-C again leaves at once" if name == "SIGINT" else ""
        print(f"\n{name}: {what}{hint}", file=sys.stderr, flush=True)

    def obey(self, number: int, frame: Any) -> None:
        """The handler in the main thread, between two of its instructions."""
        del frame
        if not self.trained:
            name = signal.Signals(number).name
            raise Preempted(f"{name}: training had not begun; the same command begins again")

    def forget(self) -> None:
        """Stops what `hear` started."""
        self._deadline.cancel()


@contextlib.contextmanager
def heeded() -> Iterator[Notice]:
    """Listens for the signals meanwhile; in another thread than the main one nothing is heard."""
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    heard_before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, notice.obey) for number in SIGNALS}

    def listen() -> None:
        # The interpreter writes a signal's number as it comes, whatever the main thread is in.
        for byte in iter(functools.partial(reading.recv, 1), b""):
            if byte[0] in SIGNALS:
                notice.hear(signal.Signals(byte[0]).name)

    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    try:
        yield notice
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python, and cannot be set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(heard_before)
        writing.close()
        listener.join()
        reading.close()
        notice.forget()


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _anybody(here: bool) -> jax.Array:
    """Whether it is true in any process: bool [], on every device."""
    mesh = make_mesh()
    flags = np.full(len(jax.local_devices()), here)
    return _any(mesh)(jax.make_array_from_process_local_data(batch_sharding(mesh), flags))


@functools.lru_cache(maxsize=1)
def _any(mesh: Any) -> Any:
    return jax.jit(jnp.any, out_shardings=replicated(mesh))
