"""Clips and pictures to faces on the workers of a Dask cluster.

The workers share a file system with this machine and write there what a build without Dask would
compute: finished clips, and blocks of pictures. So the records are the same, and a stopped build
goes on with or without Dask. Dask's messages are pickles: whoever reaches the port of its scheduler
can run programs there. A cluster on this machine listens on 127.0.0.1 with certificates of its own;
for others see launch/dask/README.md.
"""

import collections
import contextlib
import dataclasses
import functools
import importlib
import ipaddress
import json
import logging
import math
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import cv2

from fer_jax import storage
from fer_jax.errors import InputError
from fer_jax.media import clips
from fer_jax.media.clips import Job
from fer_jax.media.extraction import Extraction

LOCAL = "local:"
HELP = "workers that take the faces out: a Dask scheduler's address or file, or local:N"
# What decodes, finds and encodes: workers with other versions could make other faces.
PACKAGES = ("fer-jax", "numpy", "opencv-python-headless", "av")
CONNECTS_WITHIN_S = 30
SEEN_WITHIN_S = 90  # a file that another machine wrote: NFS remembers for a minute what is missing
TASK_WITHIN_S = 4 * 3600  # after which a task counts as one that ends its worker
COUNTED_EVERY_S = 1.0  # the threads of the workers, which come and go
AHEAD = 4  # tasks that wait for each thread of the workers
LIVES = 5  # times that Dask may give a task up because workers ended
SHARED = "the source and --data_dir must be on a file system that all workers share"


@contextlib.contextmanager
def connect(address: str) -> Iterator[Any]:
    """Yields a client of the scheduler at an address, in a file, or of N new local workers.

    Raises InputError if Dask is not installed or the scheduler cannot be reached.
    """
    try:
        import distributed
    except ImportError as error:
        raise InputError("--dask needs Dask; install it: pip install 'fer-jax[dask]'") from error
    # What matters of them ends the program in one line.
    for name in [name for name in logging.root.manager.loggerDict if "distributed" in name]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        if address.startswith(LOCAL):
            count = address.removeprefix(LOCAL)
            if not count.isdecimal() or not 0 < int(count) <= 1024:
                raise InputError(f"--dask={address}: after '{LOCAL}' comes the number of workers")
            # Certificates even here: other people may have accounts on this machine.
            options = {"host": "127.0.0.1", "security": True, "dashboard_address": "127.0.0.1:0"}
            options |= {"silence_logs": logging.CRITICAL, "threads_per_worker": 1}
            with clips.without_interrupts():
                started = distributed.LocalCluster(n_workers=int(count), **options)
            cluster = stack.enter_context(started)
            yield stack.enter_context(distributed.Client(cluster))
            return
        if "://" not in address and not Path(address).is_file():
            raise InputError(
                f"--dask={address} is no scheduler: name its address (tls://HOST:8786), its file, "
                f"or {LOCAL}N for N workers on this machine"
            )
        place: dict[str, Any] = {"address" if "://" in address else "scheduler_file": address}
        try:
            client = distributed.Client(**place, timeout=CONNECTS_WITHIN_S)
        except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            if "ssl_context" in reason:
                reason = "its certificates are not set; first `source FOLDER/dask.env`"
            raise InputError(f"no Dask scheduler answers at {address}: {reason}") from error
        stack.enter_context(client)
        found = client.scheduler_info(n_workers=0)["address"]
        reached = urlsplit(str(found))
        if reached.scheme == "tcp" and not _is_loopback(reached.hostname or ""):
            print(
                f"warning: {found} is open: whoever reaches it can run programs "
                "on the workers; launch/dask/README.md says how to start it with certificates",
                file=sys.stderr,
            )
        yield client


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Task(NamedTuple):
    """What a worker does: `finish(spec, file, crashed, report)` of a module.

    That function writes the file, whose name without folder is `file_name(spec)` of the module. It
    calls `report` with the number of each of its items before it begins with it, and finishes those
    in `crashed`, at which a worker ended, without trying.
    """

    item: str  # for messages
    file: Path  # that is there when the task is finished
    module: str
    spec: dict[str, Any]  # JSON


def clip_task(job: Job, extraction: Extraction, folder: Path) -> Task:
    """Returns the task of extracting the faces of a clip."""
    spec = {"job": list(job), "extraction": dataclasses.asdict(extraction)}
    return Task(job.item, folder / clips.file_name(spec), clips.__name__, spec)


def finish_all(tasks: Iterable[Task], folder: Path, client: Any) -> Iterator[Task]:
    """Has a client's workers finish tasks with files in a folder; yields each when it is finished.

    Those whose files are there come at once. Raises InputError if the scheduler is lost, or if a
    worker has other versions or does not see the same files.
    """
    import distributed
    from distributed.scheduler import KilledWorker

    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".shared.tmp_{storage.process_name()}"
    token.touch()
    setup = (token, versions())
    remaining, again = iter(tasks), collections.deque()  # all tasks may not fit into memory
    lives: collections.Counter[Path] = collections.Counter()
    running: dict[Any, Task] = {}
    done = distributed.as_completed()
    threads, counted = 0, -math.inf
    try:
        client.run(check_worker, *setup)
        while True:
            if time.monotonic() > counted + COUNTED_EVERY_S:
                threads, counted = _threads(client), time.monotonic()
                if not threads and not running:
                    print("the scheduler has no workers yet; waiting for one", file=sys.stderr)
            while len(running) < AHEAD * max(threads, 1):
                task = again.popleft() if again else next(remaining, None)
                if task is None:
                    break
                if task.file.is_file():
                    yield task
                    continue
                future = client.submit(finish, task, *setup, pure=False)
                running[future] = task
                done.add(future)
            if not running:
                return
            for future in [next(done), *done.next_batch(block=False)]:
                task = running.pop(future)
                if future.status == "finished":
                    _wait_until_seen(task.file)
                    yield task
                    continue
                error = future.exception() if future.status == "error" else None
                if not isinstance(error, KilledWorker):
                    raise _named(error)
                # Its workers ended, perhaps because of other tasks that they had.
                lives[task.file] += 1
                if lives[task.file] == LIVES:
                    raise InputError(
                        f"workers end again and again, the last at {task.item}: see their logs; "
                        "what is finished is kept"
                    )
                again.append(task)
    finally:
        token.unlink(missing_ok=True)
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.cancel(list(running))


def _threads(client: Any) -> int:
    try:
        return sum(client.nthreads().values())
    except OSError as error:  # also of the connection
        raise _named(None) from error


def _named(error: BaseException | None) -> BaseException:
    """The error of a task as this program raises it; None if the scheduler forgot the task."""
    if error is None:
        return InputError(
            "the Dask scheduler was lost; finished clips are kept, repeat the command"
        )
    return error


def _wait_until_seen(file: Path) -> None:
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not file.is_file():
        if time.monotonic() > deadline:
            raise InputError(f"a worker has written '{file}', which is not there: {SHARED}")
        os.listdir(file.parent)  # makes NFS ask again
        time.sleep(0.2)


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions that decide what a face's pixels are."""
    return {name: version(name) for name in PACKAGES} | {"Python": platform.python_version()}


def check_worker(token: Path, expected: dict[str, str]) -> None:
    """Raises InputError on a worker that has other versions, or does not see the data folder."""
    host = socket.gethostname()
    own = versions()
    if own != expected:
        differing = sorted(name for name in expected if own[name] != expected[name])
        listed = "; ".join(f"{name} {own[name]}, here {expected[name]}" for name in differing)
        raise InputError(f"the worker on {host} has other versions: {listed}; install the same")
    if not token.is_file():
        raise InputError(f"the worker on {host} does not see '{token.parent}': {SHARED}")


def finish(task: Task, token: Path, expected: dict[str, str]) -> None:
    """Finishes a task on a worker.

    A task at which a worker ended before, or that took longer than `TASK_WITHIN_S`, is tried in a
    process of its own. Where that one ends, too, its item is given up.
    """
    check_worker(token, expected)
    host, module = socket.gethostname(), importlib.import_module(task.module)
    try:
        name = module.file_name(task.spec)
    except OSError as error:  # YuNet's file or the boxes
        raise InputError(f"the worker on {host}: {error}; {SHARED}") from error
    if name != task.file.name:
        raise InputError(f"the worker on {host} sees other files, at {task.item}: {SHARED}")
    started = task.file.parent / f".{task.file.stem}.tmp_started"
    cv2.setNumThreads(1)
    if started.exists():
        _finish_alone(task)
    else:
        started.touch()
        limit = threading.Timer(TASK_WITHIN_S, os._exit, [1])
        limit.daemon = True
        limit.start()
        try:
            module.finish(task.spec, task.file, [], lambda number: None)
        finally:
            limit.cancel()
    started.unlink(missing_ok=True)


ALONE = "from fer_jax.media import cluster; cluster.finish_from_input()"


def _finish_alone(task: Task) -> None:
    """Finishes a task in processes, each of which ends at an item that ends it, or at the end."""
    crashed: list[int] = []
    while True:
        given = json.dumps([str(task.file), task.module, task.spec, crashed])
        # Not of `multiprocessing`, which workers may not use: they are its daemons.
        alone = subprocess.Popen(
            [sys.executable, "-c", ALONE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with alone:
            try:
                said, errors = alone.communicate(given, timeout=TASK_WITHIN_S)
            except subprocess.TimeoutExpired:
                alone.kill()
                said, errors = alone.communicate()
        if alone.returncode == 0:
            return
        if alone.returncode > 0:
            raise RuntimeError(errors[-2000:])
        crashed.append(int(said.split()[-1]))


def finish_from_input() -> None:
    """Finishes the task that standard input names, and prints the number of each item it begins."""
    file, module, spec, crashed = json.load(sys.stdin)
    cv2.setNumThreads(1)
    report = functools.partial(print, flush=True)
    importlib.import_module(module).finish(spec, Path(file), crashed, report)
