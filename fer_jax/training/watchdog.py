"""A run that no longer moves ends, and says where it stood.

What hangs is outside of Python's reach: a collective whose other side is gone, a device, a file
server. So a thread of its own looks at the clock, and ends the process with the stacks of all
threads.
"""

import contextlib
import faulthandler
import functools
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
MULTIPLE = 20  # of the median step
AT_LEAST_S = 20.0
# What may compile, write a checkpoint or wait for a file server.
SLOW_S = 900.0
POLL_S = 0.5
REMEMBERED = 101
FIRST_STEPS = 3  # whose times say nothing yet


class Watchdog:
    """Watches one thing after the other; each must come to its end in time."""

    def __init__(self, *, at_least_s: float = AT_LEAST_S, slow_s: float = SLOW_S) -> None:
        """Starts, with nothing to watch yet.

        Args:
          at_least_s: seconds that anything may take, however short the median step.
          slow_s: seconds for what is known to take longer than a step.
        """
        self._at_least_s, self._slow_s = at_least_s, slow_s
        self._took: deque[float] = deque(maxlen=REMEMBERED)
        self._step_began = 0.0
        self._stopped = threading.Event()
        self._now: tuple[str, bool, bool] | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def doing(self, what: str, *, slow: bool = False, waits: bool = False) -> None:
        """Something begins, and what was before it is done.

        Args:
          what: for the person who reads that it did not end.
          slow: it may take longer than a step: it compiles, or the disk has a say.
          waits: as `slow`, but the person is told after a step's time that it is waited for.
        """
        # One assignment: the thread sees all of it or none.
        self._now = (what, slow or waits, waits)

    def step(self, number: int) -> None:
        """A step begins: the next thing it does is to wait for its data."""
        now = time.monotonic()
        if self._step_began:
            self._took.append(now - self._step_began)
        self._step_began = now
        self.doing(f"the data of step {number}", waits=True)

    def between_steps(self, what: str) -> None:
        """Something slow begins that is no part of a step, such as saving."""
        self._step_began = 0.0
        self.doing(what, slow=True)

    def tending(self, step: Callable[..., Any], what: str) -> Callable[..., Any]:
        """A step, each call of which is something new to watch, and so is what follows it.

        Only the first call may compile; what it returns may still be under way.
        """
        called = False

        @functools.wraps(step)
        def tended(*arguments: Any) -> Any:
            nonlocal called
            self.doing(what, slow=not called)
            called = True
            result = step(*arguments)
            self.doing(what)
            return result

        return tended

    def limit_s(self) -> float:
        """How long a step may take: a multiple of the median, where one is known."""
        if len(self._took) < FIRST_STEPS:
            return self._slow_s
        return max(self._at_least_s, MULTIPLE * statistics.median(self._took))

    def stop(self) -> None:
        """Watches no more."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        watched, passed, told, before = self._now, 0.0, False, time.monotonic()
        while not self._stopped.wait(POLL_S):
            now = time.monotonic()
            # A process that was itself stopped meanwhile (SIGSTOP, a suspended job) has not hung.
            passed += min(now - before, 2 * POLL_S)
            before = now
            if self._now is not watched:
                watched, passed, told = self._now, 0.0, False
            if watched is None:
                continue
            what, slow, waits = watched
            limit = self.limit_s()
            if waits and not told and passed > limit / 2:
                told = True
                print(
                    f"waiting for {what} since {passed:.0f} s ({self._usual()}): the loader stalls",
                    file=sys.stderr,
                    flush=True,
                )
            if passed > (max(limit, self._slow_s) if slow else limit):
                self._end(what, passed)

    def _usual(self) -> str:
        if len(self._took) < FIRST_STEPS:
            return "no step was done yet"
        return f"a step usually takes {statistics.median(self._took):.2g} s"

    def _end(self, what: str, passed: float) -> None:
        print(
            f"fer-jax: {what} did not end in {passed:.0f} s ({self._usual()}); ending with exit "
            f"code {EXIT_CODE} and the stacks of all threads; the same command continues from the "
            "last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_CODE)


@contextlib.contextmanager
def watching() -> Iterator[Watchdog]:
    """A watchdog that stops with the block."""
    watchdog = Watchdog()
    try:
        yield watchdog
    finally:
        watchdog.stop()
