"""Clips to faces, beside the bare decoder and the bare detector over the same frames."""

import argparse
import dataclasses
import functools
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from fer_jax.benchmark.benchmark import Row, compare, cpu_seconds, single, skipped
from fer_jax.errors import InputError
from fer_jax.media import clips, faces
from fer_jax.media.clips import Job
from fer_jax.media.extraction import Extraction
from fer_jax.media.video import VIDEO_SUFFIXES, Video

NUM_CLIPS = 8
SECONDS = 10
DEEPFACE_FRAMES = 20
SCALING_ROUNDS = 4  # so often is every clip read, so that starting the processes weighs little
FPS = 30
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080)}
# Per worker and clip, on the 1080p clip.
MEMORY_BAR = "at most 400 MB"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags."""
    parser.add_argument("--source", type=Path, help="folder of clips; default: drawn ones")
    parser.add_argument("--detector_model", default="", help="YuNet's file")


def run(options: argparse.Namespace) -> list[Row]:
    """Decoding, decoding with detection, two processes, memory, and what others would take."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tall = _draw_clip(folder / "1080p.mp4", *SIZES["1080p"], SECONDS)
        if options.source is None:
            first = _draw_clip(folder / "clip_0.mp4", *SIZES["720p"], SECONDS)
            paths = [first]
            for number in range(1, NUM_CLIPS):
                paths.append(folder / f"clip_{number}.mp4")
                shutil.copyfile(first, paths[-1])
        else:
            paths = _readable(options.source)
        jobs = [Job(str(path), path.name) for path in paths]
        bare = Extraction(detector="none")
        rows = []
        for extraction, peer, peer_name in _pairs(bare, options.detector_model, rows):
            rows.append(
                compare(
                    f"clips, detector {extraction.detector}",
                    functools.partial(_ours, jobs, extraction, folder),
                    functools.partial(_each, paths, peer),
                    peer_name=peer_name,
                    amount=len(jobs),
                    unit="clips per CPU-second",
                    repeats=options.repeats,
                    clock=cpu_seconds,
                )
            )
        rows.append(_scaling(jobs, bare, folder, options.repeats))
        rows.append(_memory(Job(str(tall), "1080p"), bare, folder))
        rows.append(_deepface(paths, options.detector_model, options.repeats))
    return rows


def _pairs(bare: Extraction, model: str, rows: list[Row]) -> Any:
    yield bare, _decode, "bare cv2 decode loop"
    try:
        detector = faces.make_detector("yunet", str(faces.detector_model(model)))
    except InputError as error:
        rows.append(skipped("clips, detector yunet", str(error)))
        return
    extraction = dataclasses.replace(bare, detector="yunet", detector_model=model)
    yield extraction, functools.partial(_decode, detector=detector), "decode and detector alone"


def _readable(source: Path) -> list[Path]:
    paths = []
    for path in sorted(source.glob("*")):
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            continue
        try:
            Video(path).close()
        except InputError as error:
            print(f"left out: {path.name}: {error}")
            continue
        paths.append(path)
    if not paths:
        raise InputError(f"--source '{source}' holds no video that can be read")
    return paths


def _draw_clip(path: Path, width: int, height: int, seconds: int) -> Path:
    """A moving picture with some texture, as MPEG-4."""
    rng = np.random.default_rng(0)
    texture = cv2.resize(
        rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8), (width, height)
    )
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (width, height))
    for number in tqdm(range(seconds * FPS), desc=path.name, unit="frame", disable=None):
        writer.write(np.roll(texture, 4 * number, axis=1))
    writer.release()
    return path


def _ours(jobs: list[Job], extraction: Extraction, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as finished:
        for job in jobs:
            clips.finish_clip(job, extraction, Path(finished))


def _each(paths: list[Path], work: Callable[[Path], None]) -> None:
    for path in paths:
        work(path)


def _decode(path: Path, detector: faces.Detector | None = None) -> None:
    """What anybody would write: grab every frame, look at ten of them."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    count = min(10, total)
    wanted = {int((i + 0.5) * total / count) for i in range(count)}
    index = 0
    while capture.grab():
        if index in wanted:
            _, frame = capture.retrieve()
            if detector is not None:
                detector(frame, faces.LARGE_FACES)
        index += 1
    capture.release()


def _scaling(jobs: list[Job], extraction: Extraction, folder: Path, repeats: int) -> Row:
    many = [
        job._replace(item=f"{job.item}/{number}")
        for number in range(SCALING_ROUNDS)
        for job in jobs
    ]

    def work(processes: int) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as finished:
            for _ in clips.extract(many, extraction, Path(finished), processes=processes):
                pass

    return compare(
        "clips in two processes",
        functools.partial(work, 2),
        functools.partial(work, 1),
        peer_name="one process",
        amount=len(many),
        unit="clips per second",
        repeats=repeats,
        clock=time.perf_counter,
    )


def _memory(job: Job, extraction: Extraction, folder: Path) -> Row:
    with tempfile.TemporaryDirectory(dir=folder) as finished:
        list(clips.extract([job], extraction, Path(finished), processes=1))
    # The largest child so far is this one: the clips before were smaller.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return single("peak memory of a worker, 1080p clip", peak, "MB", bar=MEMORY_BAR)


def _deepface(paths: list[Path], model: str, repeats: int) -> Row:
    """The same frames through the extraction that many would take, with the same detector."""
    what = "faces of a frame"
    try:
        from deepface import DeepFace  # pyright: ignore[reportMissingImports] (an optional peer)

        detector = faces.make_detector("yunet", str(faces.detector_model(model)))
    except (ImportError, InputError) as error:
        return skipped(f"{what}, deepface", str(error))
    images = []
    for path in paths:
        with Video(path) as video:
            images += [f.image for f in video.frames(count=3) if f.image is not None]
        images = [image for image in images if detector(image, faces.LARGE_FACES)][:DEEPFACE_FRAMES]
    if not images:
        return skipped(f"{what}, deepface", "no face in the clips; name some with --source")

    def ours() -> None:
        for image in images:
            for face in detector(image, faces.LARGE_FACES):
                faces.align(image, face)

    def theirs() -> None:
        for image in images:
            DeepFace.extract_faces(image, detector_backend="yunet", enforce_detection=False)

    return compare(
        what,
        ours,
        theirs,
        peer_name="deepface with yunet",
        amount=len(images),
        unit="frames per CPU-second",
        repeats=repeats,
        clock=cpu_seconds,
    )
