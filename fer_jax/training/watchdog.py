"""Ends a hung run and dumps the stack of every thread.

What hangs is outside of Python's reach: a collective whose other process is gone, a device, a file
server. So a thread of its own looks at the clock and ends the process. `faulthandler`'s own timer
ends it with exit code 1, counts the time that a suspended job was stopped, and cannot warn first.
"""

import faulthandler
import functools
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
MULTIPLE = 20  # of the median step
MIN_LIMIT_S = 20.0  # however short the median step
# For what may compile, write a checkpoint or wait for a file server.
SLOW_LIMIT_S = 900.0
POLL_S = 0.5
REMEMBERED_STEPS = 101
FIRST_STEPS = 3  # too few for a median


class Watchdog:
    """Watches one activity after the other; each must end in time."""

    def __init__(self, *, min_limit_s: float = MIN_LIMIT_S, slow_limit_s: float = SLOW_LIMIT_S):
        self._min_limit_s, self._slow_limit_s = min_limit_s, slow_limit_s
        self._durations: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self._step_began = 0.0
        self._stopped = threading.Event()
        self._activity: tuple[str, bool, bool] | None = None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def begin(self, what: str, *, slow: bool = False, waits: bool = False) -> None:
        """Begins an activity, named in messages, and ends the one before.

        A slow one may take longer than a step: it compiles, or uses the disk. Of one that waits, a
        line also warns when it takes long for a step.
        """
        # One assignment: the thread sees all of it or none.
        self._activity = (what, slow or waits, waits)

    def step(self, number: int) -> None:
        """Begins a step, which waits for its data first."""
        now = time.monotonic()
        if self._step_began:
            self._durations.append(now - self._step_began)
        self._step_began = now
        self.begin(f"the data of step {number}", waits=True)

    def between_steps(self, what: str) -> None:
        """Begins something slow that is not part of a step, such as saving."""
        self._step_began = 0.0
        self.begin(what, slow=True)

    def wrap(
        self, step: Callable[..., Any], what: str, check: Callable[[], None]
    ) -> Callable[..., Any]:
        """Returns a compiled step that calls `check` first.

        Each call, and what follows it, is an activity.
        """

        @functools.wraps(step)
        def begin_and_run(*arguments: Any) -> Any:
            self.begin(what)
            check()
            result = step(*arguments)
            # What it returned may still be computed.
            self.begin(what)
            return result

        return begin_and_run

    def limit_s(self) -> float:
        """Returns how long a step may take: a multiple of the median, where one is known."""
        if len(self._durations) < FIRST_STEPS:
            return self._slow_limit_s
        return max(self._min_limit_s, MULTIPLE * statistics.median(self._durations))

    def close(self) -> None:
        """Ends its thread."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        watched, passed, warned, before = self._activity, 0.0, False, time.monotonic()
        while not self._stopped.wait(POLL_S):
            now = time.monotonic()
            # A process that was stopped meanwhile (SIGSTOP, a suspended job) has not hung.
            passed += min(now - before, 2 * POLL_S)
            before = now
            if self._activity is not watched:
                watched, passed, warned = self._activity, 0.0, False
            if watched is None:
                continue
            what, slow, waits = watched
            limit = self.limit_s()
            if waits and not warned and passed > limit / 2:
                warned = True
                print(
                    f"waited {passed:.0f} s for {what} ({self._usual()}): the input pipeline is "
                    "slow",
                    file=sys.stderr,
                    flush=True,
                )
            if passed > (max(limit, self._slow_limit_s) if slow else limit):
                self._end(what, passed)

    def _usual(self) -> str:
        if len(self._durations) < FIRST_STEPS:
            return "no step is finished yet"
        return f"a step usually takes {statistics.median(self._durations):.2g} s"

    def _end(self, what: str, passed: float) -> None:
        print(
            f"fer-jax: {what} did not end in {passed:.0f} s ({self._usual()}); ending with exit "
            f"code {EXIT_CODE} and the stacks of all threads; rerun the same command to resume "
            "from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_CODE)
