"""A trained network at work: alone beside the raw engines, and from clip to answers.

The network alone is one call with a batch of faces, ours through `fer_jax.load`'s engines and the
same file in the bare engine at the same precision. The whole path decodes a clip, finds, aligns
and classifies the faces of every frame, beside the `fer` package, which is what many would
install. It needs TensorFlow and other versions than ours, so it runs in an environment of its own:

    python3 -m venv PEER && PEER/bin/pip install fer
    fer-jax benchmark inference --workdir=DIR --clip=CLIP.mp4 --peer_python=PEER/bin/python
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from fer_jax.benchmark import inference_peer
from fer_jax.benchmark.benchmark import (
    Row,
    compare,
    cpu_seconds,
    paired,
    single,
    skipped,
)
from fer_jax.config import default_config, to_json
from fer_jax.errors import InputError, did_you_mean
from fer_jax.export.quantize import quantized_graph
from fer_jax.inference import runtime
from fer_jax.inference.load import ARRAYS, CONFIG, ENGINES, Network, load
from fer_jax.inference.network import model_arguments
from fer_jax.inference.onnx_graph import to_onnx
from fer_jax.inference.recognizer import Recognizer, prefetch_map
from fer_jax.inference.recognizer import load as load_recognizer
from fer_jax.media import faces
from fer_jax.media.video import Frame, Video
from fer_jax.models import xception

DTYPES = ("float32", "bfloat16", "int8")
CALIBRATION = 32  # pictures of noise: what int8 costs does not depend on them
RAW_BAR = "at least 0.95"
PEER_BAR = "at least 2"
PATH = "clip to answers"
NUM_FRAMES = 240  # of the clip, from its start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags."""
    parser.add_argument("--model", type=Path, help="a run or an export; default: untrained, 224 px")
    parser.add_argument("--clip", type=Path, help="for the whole path; 1280 x 720 with faces")
    parser.add_argument("--detector_model", default="", help="YuNet's file")
    parser.add_argument("--peer_python", default=sys.executable, help="where fer is installed")
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 32))
    for name, choices in (("dtypes", DTYPES), ("engines", tuple(ENGINES))):
        parser.add_argument(f"--{name}", nargs="+", default=choices, help=", ".join(choices))
    parser.add_argument("--width", type=float, default=1.0, help="of the untrained network")
    parser.add_argument("--image_size", type=int, default=224, help="likewise")


def run(options: argparse.Namespace) -> list[Row]:
    """The network alone in every engine, then the whole path."""
    for name, known in (("dtypes", DTYPES), ("engines", tuple(ENGINES))):
        for value in getattr(options, name):
            if value not in known:
                raise InputError(f"--{name} cannot be '{value}'{did_you_mean(value, known)}")
    if min(options.batches) < 1:
        raise InputError(f"--batches must be at least 1, not {min(options.batches)}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        engines: list[tuple[str, Network]] = []
        for dtype in options.dtypes:
            folder = _write(Path(name) / dtype, options, dtype)
            raw = {}
            for engine in options.engines:
                if reason := _not_there(engine, dtype):
                    rows.append(skipped(f"{engine}, {dtype}", reason))
                    continue
                try:
                    engines.append((dtype, load_recognizer(folder, engine).network))
                except InputError as error:
                    rows.append(skipped(f"{engine}, {dtype}", str(error)))
                    continue
                if engine in runtime.ENGINES:
                    raw[engine] = RAW[engine](_graph_bytes(folder), dtype)
            here = [one for of, one in engines if of == dtype]
            for batch in options.batches:
                rows += _alone(here, raw, dtype, batch, options.repeats)
        rows += _whole_path(engines, options)
    return rows


def _not_there(engine: str, dtype: str) -> str:
    if (engine, dtype) == ("jax", "int8"):
        return "its int8 is of the weights alone, and computes in float32"
    if (engine, dtype) == ("onnxruntime", "bfloat16"):
        return "ONNX Runtime does not compute in bfloat16 on a CPU"
    return ""


def _write(folder: Path, options: argparse.Namespace, dtype: str) -> Path:
    """The network as an exported folder that computes in a dtype."""
    folder.mkdir()
    if options.model:
        model = load(options.model)
        config, step = model.config, model.step
        arrays = model.arrays
    else:
        config, step = default_config(), 0
        config.model.update({"width": options.width, "image_size": options.image_size})
        init = jax.jit(lambda key: xception.init(key, **model_arguments(config)))
        arrays = dict(zip(("params", "batch_stats"), init(jax.random.key(0)), strict=True))
    config.model.dtype = "float32" if dtype == "int8" else dtype
    config.test_time_flip = False
    arguments = model_arguments(config)
    about = {
        **{"format": runtime.FORMAT, "task": config.task, "step": step},
        **{"classes": [str(n) for n in range(arguments["num_classes"])]},
        **{"image_size": config.model.image_size, "config": json.loads(to_json(config))},
    }
    arrays = jax.tree.map(np.asarray, arrays)
    flat: dict[str, Any] = traverse_util.flatten_dict(arrays, sep="/")
    save_file({key: np.ascontiguousarray(array) for key, array in flat.items()}, folder / ARRAYS)
    (folder / CONFIG).write_text(json.dumps(about))
    graph = to_onnx(arrays["params"], arrays["batch_stats"], arguments, about)
    if dtype == "int8":
        graph = quantized_graph(graph, _pictures(CALIBRATION, config.model.image_size))
    (folder / runtime.ONNX).write_bytes(graph.SerializeToString())
    return folder


def _graph_bytes(folder: Path) -> bytes:
    return (folder / runtime.ONNX).read_bytes()


def _pictures(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def _raw_onnxruntime(model: bytes, dtype: str) -> Callable[[np.ndarray], Any]:
    """What ONNX Runtime's own documentation shows."""
    import onnxruntime

    del dtype  # it is the file's
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda images: session.run([runtime.OUTPUT], {runtime.INPUT: images})[0]


def _raw_openvino(model: bytes, dtype: str) -> Callable[[np.ndarray], Any]:
    """What OpenVINO's own documentation shows, at our precision."""
    openvino = runtime.import_openvino()
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", hint)
    return lambda images: compiled([images])[0]


RAW = {"onnxruntime": _raw_onnxruntime, "openvino": _raw_openvino}


def _alone(
    engines: list[Network], raw: dict[str, Callable[[np.ndarray], Any]], *what: Any
) -> Iterator[Row]:
    """Every engine beside its raw self, and JAX beside all of them."""
    dtype, batch, repeats = what
    for engine in engines:
        images = _pictures(batch, engine.image_size)
        for peer, bare in raw.items():
            if engine.engine not in (peer, "jax"):
                continue
            row = compare(
                f"network alone, {engine.engine}",
                lambda engine=engine, images=images: engine.probabilities(images),
                lambda bare=bare, images=images: bare(images),
                peer_name=f"raw {runtime.ENGINES[peer][0]}",
                amount=batch,
                unit="faces per second",
                repeats=repeats,
                dtype=dtype,
                batch=batch,
            )
            if engine.engine == peer:
                row["unit"] += f" ({RAW_BAR})"
            yield row
        yield single(
            f"network alone, {engine.engine} {dtype} {batch}",
            _milliseconds(
                lambda engine=engine, images=images: engine.probabilities(images), repeats
            ),
            "ms per call",
        )


def _milliseconds(work: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times[1:]))


def _whole_path(engines: list[tuple[str, Network]], options: argparse.Namespace) -> Iterator[Row]:
    """Frames per second of a clip, beside the peer; and what it would be without overlap."""
    if options.clip is None:
        yield skipped(PATH, "no clip; name one with --clip")
        return
    with Video(options.clip) as video:
        size = f"{video.width}x{video.height}"
        frames = [frame for frame in _beginning(video) if frame.image is not None]
    try:
        detector = faces.detector_model(options.detector_model)
    except InputError as error:
        yield skipped(PATH, str(error))
        return
    peer = _Peer(options.peer_python, options.clip, detector)
    with peer:
        for dtype, engine in engines:
            recognizer = Recognizer(engine, str(detector))
            what = f"{PATH}, {size}, {engine.engine}"
            work = _through(recognizer, options.clip)
            found = work()
            for mode, name in inference_peer.MODES.items():
                if peer.reason:
                    yield skipped(f"{what} {dtype} / fer", peer.reason)
                    break
                theirs = peer.ask(mode)
                row = compare(
                    what,
                    work,
                    lambda mode=mode: peer.ask(mode),
                    peer_name=name,
                    amount=len(frames),
                    unit=f"frames per second ({PEER_BAR}; {found} faces, the peer {theirs})",
                    repeats=options.repeats,
                    dtype=dtype,
                )
                yield row
            yield from _overlap(what, recognizer, work, len(frames), found, dtype, options)
            yield single(
                f"{what} {dtype}: a frame at a time, from pixels",
                _milliseconds(
                    lambda recognizer=recognizer: recognizer.predict(
                        frames[len(frames) // 2].image
                    ),
                    options.repeats,
                ),
                "ms",
            )


def _beginning(video: Video) -> Iterator[Frame]:
    return itertools.islice(video.frames(every=1), NUM_FRAMES)


def _frame_image(frame: Frame) -> np.ndarray:
    if frame.image is None:
        raise InputError("the file ends before this frame")
    return frame.image


def _through(recognizer: Recognizer, clip: Path) -> Callable[[], int]:
    """The whole path over a clip; it says how many faces it answered for."""

    def work() -> int:
        with Video(clip) as video:
            answers = recognizer.stream(
                _beginning(video), decode=_frame_image, search_size=faces.LARGE_FACES
            )
            return sum(len(answer.found) for answer in answers)

    return work


def _overlap(
    what: str,
    recognizer: Recognizer,
    work: Callable[[], int],
    num_frames: int,
    num_faces: int,
    dtype: str,
    options: argparse.Namespace,
) -> Iterator[Row]:
    """The whole beside its parts one after the other, each of which has all cores."""
    detect = recognizer.detector()

    def search(frame: Frame) -> int:
        image = _frame_image(frame)
        return sum(len(faces.align(image, face)) for face in detect(image, faces.LARGE_FACES))

    def found() -> None:
        with Video(options.clip) as video:
            existing = (frame for frame in _beginning(video) if frame.image is not None)
            for _ in prefetch_map(existing, search, depth=8):
                pass

    crops = _pictures(8, recognizer.network.image_size)

    def classified() -> None:
        for start in range(0, num_faces, len(crops)):
            recognizer.network.probabilities(crops[: num_faces - start])

    rates, busy = [], []
    for _ in range(1 + options.repeats):
        seconds = []
        for part in (work, found, classified):
            started, used = time.perf_counter(), cpu_seconds()
            part()
            seconds.append(time.perf_counter() - started)
            if part is work:
                busy.append((cpu_seconds() - used) / seconds[0])
        rates.append((num_frames / seconds[0], num_frames / (seconds[1] + seconds[2])))
    yield paired(
        what,
        rates[1:],
        peer_name="finding, then classifying, each with all cores",
        unit="frames per second (above 1: one does not wait for the other)",
        dtype=dtype,
    )
    yield single(f"{what} {dtype}: cores busy", float(np.median(busy[1:])), "cores")


class _Peer:
    """The package fer in a process of its own, which goes through the clip when it is asked to."""

    def __init__(self, python: str, clip: Path, detector: Path):
        self.reason = ""
        # A file: a pipe that nobody reads would stop a library that warns a lot.
        self.said = tempfile.TemporaryFile("w+")
        try:
            self.process = subprocess.Popen(
                [python, inference_peer.__file__, str(clip), str(detector), str(NUM_FRAMES)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.said,
                text=True,
            )
        except OSError as error:
            self.said.close()
            raise InputError(f"--peer_python '{python}': {error.strerror}") from error
        answer = self._read()
        if answer.get("ready") is None:
            self.reason = f"{answer.get('reason', 'it ended')}; name an environment with it by "
            self.reason += "--peer_python"

    def __enter__(self) -> "_Peer":
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin and self.process.stdout  # they were asked for
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.said.close()

    def ask(self, mode: str) -> int:
        """Goes through the clip once; returns how many faces it answered for."""
        assert self.process.stdin is not None  # it was asked for
        self.process.stdin.write(mode + "\n")
        self.process.stdin.flush()
        answer = self._read()
        if "faces" not in answer:
            raise RuntimeError(f"the peer ended: {answer.get('reason', '')}")
        return answer["faces"]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None  # it was asked for
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.said.seek(0)
        return {"reason": "".join(self.said.readlines()[-1:]).strip()}
