"""Clips and photos to aligned faces, with a reason for everything that gave none.

A clip's faces are kept in one zip of JPEGs with a JSON beside them, written when the clip is
finished: a stopped build goes on with the clips that are not.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from fer_jax.errors import InputError
from fer_jax.media import faces, images
from fer_jax.media.video import Video

# Faces of other extractions are not taken for these: raised when a change here changes them.
EXTRACTION = 3
MAX_TRACKED_FACES = 8  # per frame, the largest ones; a crowd is not followed


class Found(NamedTuple):
    """What one picture or one wanted frame gave.

    Attributes:
      item: its name in the ledger.
      faces: the fields that each face adds to a record: "image" (JPEG bytes), "box",
        "detection_score" and, from clips, "frame_index" and "timestamp"; under "_measured"
        what the gates looked at; and, where all faces are wanted, under "_number" which one of
        those found here it is, the largest being 0.
      reason: why there is no face here; empty where there is one.
    """

    item: str
    faces: list[dict[str, Any]]
    reason: str = ""


class Clip(NamedTuple):
    """What one video file gave: its wanted frames in order, and what it claimed to hold."""

    found: list[Found]
    frames_claimed: int
    frames_decoded: int
    fps: float
    width: int
    height: int


class Job(NamedTuple):
    """A clip to be worked on: its file, its name, and its window in seconds."""

    path: str
    item: str
    start_s: float = 0.0
    end_s: float = math.inf


@dataclasses.dataclass(frozen=True)
class Extraction:
    """How faces are taken out of clips and photos; the flags of `add_arguments`.

    Attributes:
      frames: of a clip, so many at equal intervals; 0 where `every` or `seconds` says which.
      every: of a clip, every k-th frame.
      seconds: of a clip, one frame in so many seconds.
      detector: one of `faces.DETECTORS`.
      detector_model: the file of "yunet"; "" for the one that is kept or fetched.
      boxes: the CSV of "boxes".
      choice: one of `faces.CHOICES`.
      margin: the tight framing is widened by this share.
      min_size: pixels a side that a face needs; 0 for any. So with the two below.
      min_contrast: standard deviation of its grey levels.
      min_sharpness: variance of its Laplacian.
      one_face: only frames with exactly one face are used.
    """

    frames: int = 10
    every: int = 0
    seconds: float = 0.0
    detector: str = "yunet"
    detector_model: str = ""
    boxes: str = ""
    choice: str = "largest"
    margin: float = 0.0
    min_size: float = 0.0
    min_contrast: float = 0.0
    min_sharpness: float = 0.0
    one_face: bool = False


def add_arguments(parser: argparse.ArgumentParser, *, clips: bool, detector: str) -> None:
    """The flags of an `Extraction`, for a builder of clips or of photos."""
    group = parser.add_argument_group("faces")
    if clips:
        which = group.add_mutually_exclusive_group()
        which.add_argument("--frames", type=int, default=10, help="per clip, at equal intervals")
        which.add_argument("--every", type=int, default=0, help="every k-th frame instead")
        which.add_argument("--seconds", type=float, default=0.0, help="a frame each so many")
    group.add_argument(
        "--detector", default=detector, choices=faces.DETECTORS, help="none: already cropped"
    )
    group.add_argument("--detector_model", default="", help="YuNet's file; default: fetched once")
    group.add_argument(
        "--boxes", default="", help="CSV for --detector=boxes: file,x,y,width,height"
    )
    choices = faces.CHOICES if clips else faces.CHOICES[:2]
    group.add_argument("--choice", default="largest", choices=choices, help="which faces are used")
    group.add_argument("--margin", type=float, default=0.0, help="widens the tight crop by a share")
    group.add_argument("--min_size", type=float, default=0.0, help="pixels a side, or refused")
    published = f"published: {faces.PUBLISHED_CONTRAST:g}"
    group.add_argument("--min_contrast", type=float, default=0.0, help=f"grey levels; {published}")
    published = f"published: {faces.PUBLISHED_SHARPNESS:g}"
    group.add_argument("--min_sharpness", type=float, default=0.0, help=f"Laplacian; {published}")
    group.add_argument("--one_face", action="store_true", help="refuse frames with several faces")


def from_arguments(options: argparse.Namespace) -> Extraction:
    """The extraction that the flags ask for.

    Raises:
      InputError: a value that makes no sense, or a detector whose file is not to be had.
    """
    names = [field.name for field in dataclasses.fields(Extraction)]
    extraction = Extraction(**{name: getattr(options, name) for name in names if name in options})
    if extraction.every or extraction.seconds:
        extraction = dataclasses.replace(extraction, frames=0)
    for name in ("frames", "every", "seconds", "min_size", "min_contrast", "min_sharpness"):
        value = getattr(extraction, name)
        if not 0 <= value < math.inf:
            raise InputError(f"--{name} must be at least 0, not {value}")
    if not (extraction.frames or extraction.every or extraction.seconds):
        raise InputError("no frames are asked for; --frames must be at least 1")
    if not -0.5 <= extraction.margin <= 4:
        raise InputError(f"--margin must be in -0.5 to 4, not {extraction.margin}")
    if (extraction.detector == "boxes") != bool(extraction.boxes):
        raise InputError("--detector=boxes and --boxes=FILE belong together")
    # Files may have changed since an earlier plan.
    recorded.cache_clear()
    _boxes.cache_clear()
    if extraction.boxes:
        _boxes(extraction.boxes)
    if extraction.detector in ("yunet", "haar"):
        # Found or fetched now, so that a missing file stops no build half-way.
        if extraction.detector == "yunet":
            try:
                model = faces.detector_model(extraction.detector_model)
            except InputError as error:
                raise InputError(
                    f"{error}; --detector=haar needs no file, and is weaker"
                ) from error
            extraction = dataclasses.replace(extraction, detector_model=str(model))
        faces.make_detector(extraction.detector, extraction.detector_model)
    return extraction


@functools.lru_cache(maxsize=8)
def recorded(extraction: Extraction) -> dict[str, Any]:
    """The extraction as a dataset remembers it: files by their content, not by their place."""
    known = dataclasses.asdict(extraction)
    for name in ("detector_model", "boxes"):
        if known[name]:
            known[name] = hashlib.sha256(Path(known[name]).read_bytes()).hexdigest()[:16]
    return known


@functools.lru_cache(maxsize=1)
def _boxes(path: str) -> dict[tuple[str, int], list[faces.Face]]:
    return faces.read_boxes(Path(path))


def _detect(image: np.ndarray, name: str, frame: int, extraction: Extraction) -> list[faces.Face]:
    """The faces of a BGR picture, the largest first."""
    if extraction.detector == "none":
        left, top, side = images.centre_square(*image.shape[:2])
        return [faces.Face((left, top, side, side), 1.0, None)]
    if extraction.detector == "boxes":
        boxes, parts = _boxes(extraction.boxes), name.split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        found = next((boxes[end, frame] for end in ends if (end, frame) in boxes), [])
    else:
        detect = faces.make_detector(extraction.detector, extraction.detector_model)
        every_one = extraction.choice == "all" or extraction.one_face
        size = faces.ALL_FACES if every_one else faces.LARGE_FACES
        found = detect(image, size)
    return sorted(found, key=lambda face: -face.box[2] * face.box[3])


def _cut(
    image: np.ndarray, face: faces.Face, number: int, extraction: Extraction
) -> dict[str, Any]:
    """The fields of a face in a BGR picture, and under "_reason" why it is not good enough."""
    x, y, width, height = face.box
    outside = x >= image.shape[1] or y >= image.shape[0] or x + width <= 0 or y + height <= 0
    crop = cv2.cvtColor(faces.align(image, face, margin=extraction.margin), cv2.COLOR_BGR2RGB)
    measured = faces.measure(crop)
    return {
        "image": images.encode_jpeg(crop),
        "box": [float(value) for value in face.box],
        "detection_score": face.score,
        "_measured": measured,
        "_number": number if extraction.choice == "all" else None,
        "_reason": "the box is outside the picture"
        if outside
        else faces.gate(
            measured,
            size=extraction.min_size,
            contrast=extraction.min_contrast,
            sharpness=extraction.min_sharpness,
        ),
    }


def _taken(
    item: str, cut: Sequence[dict[str, Any]], num_faces: int, extraction: Extraction
) -> Found:
    """The faces of a picture that pass the gates, or the reason why none does."""
    if not num_faces:
        return Found(item, [], "no face")
    if extraction.one_face and num_faces > 1:
        return Found(item, [], "several faces")
    good = [
        {key: value for key, value in face.items() if key != "_reason"}
        for face in cut
        if face["_reason"] is None
    ]
    return Found(item, good, "" if good else cut[0]["_reason"])


def faces_in_photo(image: np.ndarray, item: str, name: str, extraction: Extraction) -> Found:
    """The faces of one photo.

    Args:
      image: uint8 RGB [height, width, 3].
      item: its name in the ledger.
      name: its path, of which the CSV of boxes has the end.
      extraction: how.
    """
    picture = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    found = _detect(picture, name, 0, extraction)
    used = found if extraction.choice == "all" else found[:1]
    cut = [_cut(picture, face, number, extraction) for number, face in enumerate(used)]
    return _taken(item, cut, len(found), extraction)


def finished_file(job: Job, extraction: Extraction, folder: Path) -> Path:
    """Where a clip's faces are kept: a name from the file's identity and the extraction."""
    try:
        status = os.stat(job.path)
        identity = [status.st_size, status.st_mtime_ns]
    except OSError:
        identity = []
    words = [EXTRACTION, *job, *identity, sorted(recorded(extraction).items())]
    return folder / f"{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]}.zip"


def finish_clip(job: Job, extraction: Extraction, folder: Path) -> Path:
    """Takes the faces out of one clip, unless that is done; returns the zip that holds them.

    One frame and its faces are in memory at a time; the zip is there whole or not at all.
    """
    file = finished_file(job, extraction, folder)
    if not file.is_file():
        _keep(file, lambda archive: _faces_in_clip(job, extraction, archive))
    return file


def _keep(file: Path, make: Callable[[zipfile.ZipFile], Clip]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        clip = make(archive)
        archive.writestr("clip.json", json.dumps(clip._asdict(), indent=1))
    temporary.replace(file)


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
    """The faces of a clip, their JPEGs in the archive and "image" the name there.

    A clip that cannot be opened gives one `Found` with the reason; any other as many as frames
    were to be expected.
    """
    try:
        video = Video(Path(job.path))
    except InputError as error:
        return _no_clip(job, str(error))
    tracked = extraction.choice == "tracked"
    limit = {"all": None, "tracked": MAX_TRACKED_FACES}.get(extraction.choice, 1)
    items: list[str] = []
    seen: list[list[faces.Face] | None] = []  # None where the frame does not exist
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
            cuts.append([])
            if frame.image is None:
                continue
            seen[-1] = _detect(frame.image, job.path, frame.index, extraction)
            for number, face in enumerate(seen[-1][:limit]):
                cut = _cut(frame.image, face, number, extraction)
                cut |= {"frame_index": frame.index, "timestamp": frame.timestamp_s}
                name = f"{frame.index:06}_{number}.jpg"
                archive.writestr(name, cut["image"])
                cuts[-1].append(cut | {"image": name})
    results = [
        Found(item, [], "the file ends before this frame")
        if faces_seen is None
        else _taken(item, cut, len(faces_seen), extraction)
        for item, faces_seen, cut in zip(items, seen, cuts, strict=True)
    ]
    if tracked:
        followed = faces.track([(found or [])[:limit] for found in seen])
        for index, number in enumerate(followed):
            if seen[index] and number is None:
                results[index] = Found(items[index], [], "the followed person is not there")
            elif number is not None:
                cut = [cuts[index][number]]
                results[index] = _taken(items[index], cut, len(seen[index] or []), extraction)
    if not results:
        results = [Found(job.item, [], "no frame in the clip's window")]
    return Clip(results, video.claimed, video.decoded, video.fps, video.width, video.height)


def _no_clip(job: Job, reason: str) -> Clip:
    return Clip([Found(job.item, [], reason)], 0, 0, 0.0, 0, 0)


def extract(
    jobs: Iterable[Job], extraction: Extraction, folder: Path, *, processes: int
) -> Iterator[Job]:
    """Takes the faces out of clips, side by side in processes; yields each one when finished.

    A clip whose decoder brings its process down is kept with that as its reason.

    Args:
      jobs: the clips; those that are finished already come at once.
      extraction: how.
      folder: of the finished clips.
      processes: how many at once.
    """
    waiting: collections.deque[Job] = collections.deque()
    for job in jobs:
        if finished_file(job, extraction, folder).is_file():
            yield job
        else:
            waiting.append(job)
    while waiting:
        # Which clip took its process down is not known: each in flight is tried on its own.
        for job in (yield from _in_processes(waiting, extraction, folder, processes)):
            if (yield from _in_processes(collections.deque([job]), extraction, folder, 1)):
                crashed = _no_clip(job, "its decoder crashed")
                _keep(finished_file(job, extraction, folder), lambda _, clip=crashed: clip)
                yield job


def _in_processes(
    waiting: collections.deque[Job], extraction: Extraction, folder: Path, processes: int
) -> Generator[Job, None, list[Job]]:
    """Works on what is waiting; returns what was in flight when a process died.

    Raises:
      BrokenProcessPool: processes cannot be started at all, which is no clip's fault.
    """
    # Spawned: the parent has threads, which a fork would copy half-way through their locks.
    pool = concurrent.futures.ProcessPoolExecutor(
        min(processes, len(waiting)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
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
                    break  # the futures in flight say so too
                running[future] = waiting.popleft()
            if not running:
                break  # a process died that had nothing to do
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
        # Clips that processes have, or have next, are finished and kept; no other is begun.
        pool.shutdown(cancel_futures=True)


def _submit(pool: concurrent.futures.ProcessPoolExecutor, *call: Any) -> Any:
    """Submits a call; a process started for it is deaf to Ctrl-C, which the parent handles."""
    held = {signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        return pool.submit(*call)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)


def _start_worker() -> None:
    # One core each; and without a parent there is no work.
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)
