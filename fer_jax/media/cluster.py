"""Clips to faces on the workers of a Dask cluster, which share a file system with this machine.

A worker writes the finished clips of `fer_jax.media.clips`, so a dataset is the same as one that is
built without Dask, and a stopped build goes on with or without it. Dask's messages are pickles:
whoever reaches the port of its scheduler can run programs there. A cluster on this machine listens
on 127.0.0.1 with certificates of its own; for others see launch/dask/README.md.
"""

import collections
import contextlib
import ipaddress
import json
import logging
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
from typing import Any
from urllib.parse import urlsplit

import cv2

from fer_jax import storage
from fer_jax.errors import InputError
from fer_jax.media import clips
from fer_jax.media.clips import Job
from fer_jax.media.extraction import Extraction

LOCAL = "local:"
HELP = "workers that process the clips: a Dask scheduler's address or file, or local:N"
# What decodes, finds and encodes: workers with other versions could make other faces.
PACKAGES = ("fer-jax", "numpy", "opencv-python-headless", "av")
CONNECTS_WITHIN_S = 30
SEEN_WITHIN_S = 90  # a file that another machine wrote: NFS remembers for a minute what is missing
CLIP_WITHIN_S = 4 * 3600  # after which a clip counts as one that ends its worker
AHEAD = 4  # clips that wait for each thread of the workers
LIVES = 5  # times that a clip's workers may end, for whatever reason
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
            options = {"host": "127.0.0.1", "security": True, "dashboard_address": None}
            options |= {"silence_logs": logging.CRITICAL, "threads_per_worker": 1}
            cluster = stack.enter_context(distributed.LocalCluster(n_workers=int(count), **options))
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


def extract(
    jobs: Iterable[Job], extraction: Extraction, folder: Path, client: Any
) -> Iterator[Job]:
    """Extracts the faces of clips on a client's workers; yields each clip when it is finished.

    As `clips.extract`. Raises InputError if the scheduler is lost, or if a worker has other
    versions or does not see the same files.
    """
    import distributed
    from distributed.scheduler import KilledWorker

    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".shared.tmp_{storage.process_name()}"
    token.touch()
    setup = (extraction, folder, token, versions())
    client.run(check_worker, *setup[2:])
    waiting: collections.deque[Job] = collections.deque()
    for job in jobs:
        if clips.finished_file(job, extraction, folder).is_file():
            yield job
        else:
            waiting.append(job)
    lives: collections.Counter[Job] = collections.Counter()
    running: dict[Any, Job] = {}
    done = distributed.as_completed()
    try:
        while waiting or running:
            threads = sum(client.nthreads().values())
            while waiting and len(running) < AHEAD * max(threads, 1):
                job = waiting.popleft()
                name = clips.finished_file(job, extraction, folder).name
                future = client.submit(finish, job, name, *setup, pure=False)
                running[future] = job
                done.add(future)
            for future in [next(done), *done.next_batch(block=False)]:
                job = running.pop(future)
                if future.status == "finished":
                    _wait_until_seen(clips.finished_file(job, extraction, folder))
                    yield job
                    continue
                error = future.exception() if future.status == "error" else None
                if not isinstance(error, KilledWorker):
                    raise _named(error)
                # Its workers ended, perhaps because of other clips that they had.
                lives[job] += 1
                if lives[job] == LIVES:
                    raise InputError(
                        f"workers end again and again, the last at {job.item}: see their logs; "
                        "finished clips are kept"
                    )
                waiting.append(job)
    finally:
        token.unlink(missing_ok=True)
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.cancel(list(running))


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


def finish(
    job: Job,
    name: str,
    extraction: Extraction,
    folder: Path,
    token: Path,
    expected: dict[str, str],
) -> None:
    """Finishes a clip on a worker; `name` is that of its finished file.

    A clip on which a worker ended before, or that took longer than `CLIP_WITHIN_S`, is tried in a
    process of its own; if that one ends, too, it is finished with this as its reason.
    """
    check_worker(token, expected)
    try:
        file = clips.finished_file(job, extraction, folder)
    except OSError as error:  # YuNet's file or the boxes
        raise InputError(f"the worker on {socket.gethostname()}: {error}; {SHARED}") from error
    if file.name != name:
        host = socket.gethostname()
        raise InputError(f"the worker on {host} sees another file '{job.path}', or none: {SHARED}")
    started = folder / f".{file.stem}.tmp_started"
    cv2.setNumThreads(1)
    if started.exists():
        _finish_alone(job, extraction, folder)
    else:
        started.touch()
        limit = threading.Timer(CLIP_WITHIN_S, os._exit, [1])
        limit.daemon = True
        limit.start()
        try:
            clips.finish_clip(job, extraction, folder)
        finally:
            limit.cancel()
    started.unlink(missing_ok=True)


ALONE = "from fer_jax.media import cluster; cluster.finish_from_input()"


def _finish_alone(job: Job, extraction: Extraction, folder: Path) -> None:
    given = json.dumps([job, vars(extraction), str(folder)])
    try:
        # Not of `multiprocessing`, which workers may not use: they are its daemons.
        ended = subprocess.run(
            [sys.executable, "-c", ALONE],
            input=given,
            capture_output=True,
            text=True,
            timeout=CLIP_WITHIN_S,
        )
    except subprocess.TimeoutExpired:
        clips.give_up(job, extraction, folder, f"it takes over {CLIP_WITHIN_S // 3600} hours")
        return
    if ended.returncode < 0:
        clips.give_up(job, extraction, folder, clips.CRASHED)
    elif ended.returncode:
        raise RuntimeError(ended.stderr[-2000:])


def finish_from_input() -> None:
    """Finishes the clip that standard input names."""
    job, extraction, folder = json.load(sys.stdin)
    cv2.setNumThreads(1)
    clips.finish_clip(Job(*job), Extraction(**extraction), Path(folder))
