"""Video clips to aligned faces, clip by clip in several processes.

The faces of a clip are stored in one zip of JPEGs with a JSON, which is written when the clip is
finished. A stopped build resumes with the clips that are not finished.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from fer_jax import storage
from fer_jax.errors import InputError
from fer_jax.media import faces
from fer_jax.media.extraction import (
    Extraction,
    Found,
    accepted_faces,
    crop_face,
    detect_faces,
    recorded,
)
from fer_jax.media.video import Video

# Part of the names of finished clips: raise it when a change here changes their faces.
EXTRACTION = 5
CRASHED = "its decoder crashed"  # the reason of such a clip or picture
MAX_TRACKED_FACES = 8  # per frame, the largest ones


class Clip(NamedTuple):
    """One video file: its chosen frames in order, how many it should have, and has."""

    found: list[Found]
    frames_claimed: int
    frames_decoded: int
    fps: float
    width: int
    height: int


class Job(NamedTuple):
    """A clip to extract from: its file, its name in the ledger, and its window in seconds."""

    path: str
    item: str
    start_s: float = 0.0
    end_s: float = math.inf


def finished_file(job: Job, extraction: Extraction, folder: Path) -> Path:
    """Returns the zip of a clip; its name depends on the file's identity and the extraction."""
    try:
        status = os.stat(job.path)
        identity = [status.st_size, status.st_mtime_ns]
    except OSError:
        identity = []
    key = [EXTRACTION, *job, *identity, sorted(recorded(extraction).items())]
    return folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.zip"


def file_name(spec: Mapping[str, Any]) -> str:
    """Returns the name of the finished file of a clip that a worker of a cluster is to extract."""
    return finished_file(Job(*spec["job"]), Extraction(**spec["extraction"]), Path()).name


def finish(
    spec: Mapping[str, Any],
    file: Path,
    crashed: Collection[int],
    report: Callable[[int], Any],
) -> None:
    """Extracts the faces of a clip as `fer_jax.media.cluster.Task` says; it has one item, 0."""
    job, extraction = Job(*spec["job"]), Extraction(**spec["extraction"])
    report(0)
    if crashed:
        give_up(job, extraction, file.parent)
    else:
        finish_clip(job, extraction, file.parent)


def finish_clip(job: Job, extraction: Extraction, folder: Path) -> Path:
    """Extracts the faces of a clip, one frame in memory at a time; returns its zip."""
    file = finished_file(job, extraction, folder)
    if not file.is_file():
        with new_zip(file) as archive:
            _write_clip(archive, _faces_in_clip(job, extraction, archive))
    return file


@contextlib.contextmanager
def new_zip(file: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip that is there when the block has ended without an error."""
    with storage.replacing(file, durable=False) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            yield archive


def _write_clip(archive: zipfile.ZipFile, clip: Clip) -> None:
    archive.writestr("clip.json", json.dumps(clip._asdict(), indent=1))


def read_clip(file: Path) -> Clip:
    """Reads what `finish_clip` wrote."""
    with zipfile.ZipFile(file) as archive:
        clip = json.loads(archive.read("clip.json"))
        found = [Found(*one) for one in clip.pop("found")]
        for one in found:
            for face in one.faces:
                face["image"] = archive.read(face["image"])
                face["box"] = np.asarray(face["box"], np.float32)
    return Clip(found, **clip)


def _faces_in_clip(job: Job, extraction: Extraction, archive: zipfile.ZipFile) -> Clip:
    """Extracts the faces of a clip; their JPEGs go into the archive, "image" is the name there.

    A clip that cannot be opened gives one `Found` with the reason, any other one per frame that
    should be there.
    """
    try:
        video = Video(Path(job.path))
    except InputError as error:
        return _no_clip(job, str(error))
    tracked = extraction.choice == "tracked"
    limit = {"all": None, "tracked": MAX_TRACKED_FACES}.get(extraction.choice, 1)
    items: list[str] = []
    seen: list[list[faces.Face] | None] = []  # None where the frame does not exist
    reasons: list[str] = []
    cuts: list[list[dict[str, Any]]] = []
    with video:
        for frame in video.frames(
            count=extraction.frames,
            every=extraction.every,
            seconds=extraction.seconds,
            start_s=job.start_s,
            end_s=job.end_s,
        ):
            items.append(f"{job.item}/{frame.index:06}")
            seen.append(None)
            reasons.append("")
            cuts.append([])
            if frame.image is None:
                absent = frame.index >= video.present
                reasons[-1] = "the file ends before this frame" if absent else "a damaged frame"
                continue
            seen[-1] = detect_faces(frame.image, job.path, frame.index, extraction)
            if tracked:
                # A cut may put another person in the same place.
                seen[-1][:limit] = faces.add_looks(frame.image, seen[-1][:limit])
            for number, face in enumerate(seen[-1][:limit]):
                cut = crop_face(frame.image, face, number, extraction)
                cut |= {"frame_index": frame.index, "timestamp": frame.timestamp_s}
                name = f"{frame.index:06}_{number}.jpg"
                archive.writestr(name, cut["image"])
                cuts[-1].append(cut | {"image": name})
    results = [
        Found(item, [], reason)
        if faces_seen is None
        else accepted_faces(item, cut, len(faces_seen), extraction)
        for item, reason, faces_seen, cut in zip(items, reasons, seen, cuts, strict=True)
    ]
    if tracked:
        followed = faces.track([(found or [])[:limit] for found in seen])
        for index, number in enumerate(followed):
            if seen[index] and number is None:
                results[index] = Found(items[index], [], "the tracked person is not in this frame")
            elif number is not None:
                cut = [cuts[index][number]]
                results[index] = accepted_faces(
                    items[index], cut, len(seen[index] or []), extraction
                )
    if not results:
        results = [Found(job.item, [], "no frame in the clip's window")]
    return Clip(results, video.claimed, video.present, video.fps, video.width, video.height)


def _no_clip(job: Job, reason: str) -> Clip:
    return Clip([Found(job.item, [], reason)], 0, 0, 0.0, 0, 0)


def give_up(job: Job, extraction: Extraction, folder: Path) -> None:
    """Finishes a clip that crashes its process, without faces."""
    with new_zip(finished_file(job, extraction, folder)) as archive:
        _write_clip(archive, _no_clip(job, CRASHED))


def extract(
    jobs: Iterable[Job], extraction: Extraction, folder: Path, *, processes: int
) -> Iterator[Job]:
    """Extracts the faces of clips in several processes; yields each clip when it is finished.

    Clips that are finished already come at once. A clip whose decoder crashes its process is
    finished with that as its reason.
    """
    waiting: collections.deque[Job] = collections.deque()
    for job in jobs:
        if finished_file(job, extraction, folder).is_file():
            yield job
        else:
            waiting.append(job)
    while waiting:
        # Which clip crashed its process is not known: each one in flight is tried alone.
        for job in (yield from _in_processes(waiting, extraction, folder, processes)):
            if (yield from _in_processes(collections.deque([job]), extraction, folder, 1)):
                give_up(job, extraction, folder)
                yield job


def _in_processes(
    waiting: collections.deque[Job], extraction: Extraction, folder: Path, processes: int
) -> Generator[Job, None, list[Job]]:
    """Extracts what is waiting; returns what was in flight when a process died."""
    # Spawned: a fork would copy locks that threads of the parent hold.
    pool = concurrent.futures.ProcessPoolExecutor(
        min(processes, len(waiting)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=start_worker,
    )
    running: dict[concurrent.futures.Future[Path], Job] = {}
    lost: list[Job] = []
    try:
        started = _submit(pool, os.getpid)
        while not lost and (waiting or running):
            while waiting and len(running) < 2 * processes:
                try:
                    future = _submit(pool, finish_clip, waiting[0], extraction, folder)
                except BrokenProcessPool:
                    break  # the futures in flight raise it, too
                running[future] = waiting.popleft()
            if not running:
                break  # an idle process died
            done, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                job = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    lost.append(job)
                else:
                    future.result()
                    yield job
        if lost:
            started.result()
        return lost + list(running.values())
    finally:
        # Clips that processes have started on are finished; no other is started.
        pool.shutdown(cancel_futures=True)


def _submit(pool: concurrent.futures.ProcessPoolExecutor, *call: Any) -> Any:
    """Submits a call; a process that is started for it ignores Ctrl-C, which the parent handles."""
    with without_interrupts():
        return pool.submit(*call)


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Defers Ctrl-C; processes and threads that are started meanwhile never see it."""
    resource_tracker.ensure_running()  # its start would end what follows
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def start_worker() -> None:
    """Starts a process of a pool: it uses one core, leaves Ctrl-C to its parent, ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
