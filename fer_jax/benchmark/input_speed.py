"""The input of training: records to batches, and clips to faces, beside bare loops and peers."""

import argparse
import dataclasses
import functools
import multiprocessing
import os
import resource
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from data_builders.demo import demo_dataset_builder as demo
from fer_jax.benchmark.benchmark import Row, compare, cpu_seconds, single, skipped
from fer_jax.benchmark.peers import JpegDataset, data_loader
from fer_jax.data import batches
from fer_jax.data import build as builds
from fer_jax.data.builder import Inputs
from fer_jax.data.records import open_records
from fer_jax.data.splits import position
from fer_jax.errors import InputError
from fer_jax.media import clips, cluster, faces
from fer_jax.media.clips import Job
from fer_jax.media.detector import make_detector
from fer_jax.media.extraction import Extraction, Found
from fer_jax.media.images import decode, encode_jpeg, resized
from fer_jax.media.video import VIDEO_SUFFIXES

BATCH_SIZE = 64
WORKERS = 2
NOISE = 4.0  # standard deviation in grey levels, so that a JPEG is as large as a camera's
IMAGES = {"train": 1024, "validation": 16}  # of each split; only training is measured
NUM_CLIPS = 8
CLIP_SECONDS, FPS = 10, 30
SCALING_ROUNDS = 4  # every clip is read so often that the start of the processes costs little


class NoisyFaces(demo.Builder, skip_registration=True):
    """The first images of each split of the demo, larger and with noise."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds --size."""
        super().add_arguments(parser)
        parser.add_argument("--size", type=int, help="pixels of a side")

    def list_inputs(self) -> Inputs:
        """Returns the first `IMAGES` rows of each split."""
        rows, seen = [], Counter()
        for row in demo.list_rows(self.protocol):
            seen[row["split"]] += 1
            if seen[row["split"]] <= IMAGES.get(row["split"], 0):
                rows.append(row)
        return Inputs(rows, [], {})

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Any:
        return self.examples(rows, self._add_noise)

    def _add_noise(self, row: dict[str, Any]) -> list[Found]:
        (found,) = demo.render(row)
        face = resized(decode(found.faces[0]["image"]), self.options.size).astype(np.float32)
        rng = np.random.default_rng(int(position(row["record_id"]) * 2**32))
        face += rng.normal(scale=NOISE, size=face.shape)
        jpeg = encode_jpeg(np.clip(face, 0, 255).astype(np.uint8))
        return [Found(found.item, [{"image": jpeg}])]


def build_records(data_dir: Path, size: int) -> str:
    """Builds rendered faces of `size` pixels a side, unless they exist; returns their name."""
    name = f"photographed_{size}"
    parser = argparse.ArgumentParser()
    NoisyFaces.add_arguments(parser)
    options = parser.parse_args([f"--name={name}", f"--size={size}"])
    builds.build_config(NoisyFaces, "controlled", data_dir, options=options)
    return f"{name}/controlled"


def measure_input(options: argparse.Namespace) -> Iterator[Row]:
    """Compares ours, streamed and from a memory map, with bare decoding and DataLoader.

    In CPU seconds, those of worker processes included: in training the cores have other work.
    """
    size = options.image_size
    if options.images < BATCH_SIZE or size > 256:
        raise InputError(f"--images must be at least {BATCH_SIZE} and --image_size at most 256")
    data_dir = options.data_dir or options.workdir / "data"
    part = open_records(options.dataset or build_records(data_dir, size), "train", data_dir)
    mixture = batches.mix([part], "emotion", weights=[0.0])
    steps = options.images // BATCH_SIZE
    amount = steps * BATCH_SIZE
    jpegs = [part.jpeg(row) for row in mixture.row]

    def batches_of(read: Callable[[np.ndarray], np.ndarray]) -> Callable[[], None]:
        return lambda: _exhaust(
            batches.train_batches(mixture, read, batch_size=BATCH_SIZE, num_steps=steps, seed=0)
        )

    stream = batches_of(functools.partial(mixture.images, image_size=size))
    dataset = JpegDataset(jpegs, amount)

    def bare() -> None:
        _exhaust(dataset[number] for number in range(amount))

    what = f"input, {size} px"
    measure = functools.partial(
        compare,
        amount=amount,
        unit="images per CPU-second",
        repeats=options.repeats,
        clock=family_cpu_seconds,
        batch=BATCH_SIZE,
    )
    yield measure(what, stream, bare, peer_name="bare decode loop")
    with tempfile.TemporaryDirectory(dir=options.workdir) as folder:
        images = batches.memory_map(mixture, size, Path(folder), writes=True, written=lambda: None)
        mapped = batches_of(functools.partial(np.take, images, axis=0))
        yield measure(f"{what}, memory map", mapped, bare, peer_name="bare decode loop")
    peer_name = f"torch DataLoader, {WORKERS} workers"
    if find_spec("torch") is None:
        yield skipped(f"{what} / {peer_name}", "torch is not installed")
    else:
        theirs = data_loader(jpegs, amount, batch_size=BATCH_SIZE, workers=WORKERS)
        yield measure(what, stream, functools.partial(_exhaust, theirs), peer_name=peer_name)


def _exhaust(values: Iterable[Any]) -> None:
    deque(values, maxlen=0)


def family_cpu_seconds() -> float:
    """Returns the CPU seconds of this process, its finished children, and its live workers."""
    ticks = os.sysconf("SC_CLK_TCK")
    used = cpu_seconds()
    for child in multiprocessing.active_children():
        # Fields 14 and 15; the second may contain spaces and ends with a bracket.
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        used += (int(fields[11]) + int(fields[12])) / ticks
    return used


def measure_media(options: argparse.Namespace) -> Iterator[Row]:
    """Compares clips to faces with bare decoding and detection, and with one process."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tall = _render_clip(folder / "1080p.mp4", 1920, 1080)
        paths = _videos_in(options.source) if options.source else _render_clips(folder)
        bare = Extraction(detector="none")
        yield _measure_clips(paths, bare, _decode, "bare cv2 decode loop", options.repeats)
        try:
            detect = make_detector("yunet", options.detector_model)
        except InputError as error:
            yield skipped("clips, detector yunet", str(error))
        else:
            extraction = dataclasses.replace(
                bare, detector="yunet", detector_model=options.detector_model
            )
            alone = functools.partial(_decode, detect=detect)
            name = "decode and detector alone"
            yield _measure_clips(paths, extraction, alone, name, options.repeats)
        jobs = [Job(str(path), f"{path.name}/{n}") for n in range(SCALING_ROUNDS) for path in paths]
        yield _measure_two_processes(jobs, bare, options.repeats)
        if find_spec("distributed") is None:
            yield skipped("clips on two Dask workers", "the extra dask is not installed")
        else:
            yield _measure_two_workers(jobs, bare, options.repeats)
        with tempfile.TemporaryDirectory() as finished:
            _exhaust(clips.extract([Job(str(tall), "1080p")], bare, Path(finished), processes=1))
        # The largest child so far is this one, because the other clips are smaller.
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        yield single("peak memory of a worker, 1080p clip", memory, "MB")


def _videos_in(source: Path) -> list[Path]:
    paths = [path for path in sorted(source.glob("*")) if path.suffix.lower() in VIDEO_SUFFIXES]
    if not paths:
        raise InputError(f"--source '{source}' has no video")
    return paths


def _render_clips(folder: Path) -> list[Path]:
    first = _render_clip(folder / "clip_0.mp4", 1280, 720)
    others = [folder / f"clip_{number}.mp4" for number in range(1, NUM_CLIPS)]
    return [first, *(Path(shutil.copyfile(first, path)) for path in others)]


def _render_clip(path: Path, width: int, height: int) -> Path:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    texture = cv2.resize(small, (width, height))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, (width, height))
    for number in tqdm(range(CLIP_SECONDS * FPS), desc=path.name, unit="frame", disable=None):
        writer.write(np.roll(texture, 4 * number, axis=1))
    writer.release()
    return path


def _decode(path: Path, detect: faces.Detector | None = None) -> None:
    """Grabs every frame and decodes ten of them, as most users would write it."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    count = min(10, total)
    chosen = {int((i + 0.5) * total / count) for i in range(count)}
    index = 0
    while capture.grab():
        if index in chosen:
            _, frame = capture.retrieve()
            if detect is not None:
                detect(frame, faces.LARGE_FACES)
        index += 1
    capture.release()


def _measure_clips(
    paths: list[Path], extraction: Extraction, peer: Any, peer_name: str, repeats: int
) -> Row:
    def extract() -> None:
        with tempfile.TemporaryDirectory() as finished:
            for path in paths:
                clips.finish_clip(Job(str(path), path.name), extraction, Path(finished))

    return compare(
        f"clips, detector {extraction.detector}",
        extract,
        lambda: _exhaust(map(peer, paths)),
        peer_name=peer_name,
        amount=len(paths),
        unit="clips per CPU-second",
        repeats=repeats,
        clock=cpu_seconds,
    )


def _measure_two_processes(jobs: list[Job], extraction: Extraction, repeats: int) -> Row:
    def extract(processes: int) -> None:
        with tempfile.TemporaryDirectory() as finished:
            _exhaust(clips.extract(jobs, extraction, Path(finished), processes=processes))

    return compare(
        "clips in two processes",
        functools.partial(extract, 2),
        functools.partial(extract, 1),
        peer_name="one process",
        amount=len(jobs),
        unit="clips per second",
        repeats=repeats,
    )


def _measure_two_workers(jobs: list[Job], extraction: Extraction, repeats: int) -> Row:
    def extract(client: Any) -> None:
        with tempfile.TemporaryDirectory() as name:
            tasks = [cluster.clip_task(job, extraction, Path(name)) for job in jobs]
            _exhaust(cluster.finish_all(tasks, Path(name), client))

    with cluster.connect("local:1") as one, cluster.connect("local:2") as two:
        return compare(
            "clips on two Dask workers",
            functools.partial(extract, two),
            functools.partial(extract, one),
            peer_name="one worker",
            amount=len(jobs),
            unit="clips per second",
            repeats=repeats,
        )
