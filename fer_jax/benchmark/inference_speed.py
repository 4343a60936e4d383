"""A trained network beside the engines used directly, and from a clip to predictions beside `fer`.

`fer` needs other versions of libraries, so it runs in an environment of its own: --peer_python.
"""

import argparse
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from fer_jax.benchmark import fer_package
from fer_jax.benchmark.benchmark import Row, compare, single, skipped
from fer_jax.benchmark.processes import Program, random_batch
from fer_jax.benchmark.train_step import network_config
from fer_jax.config import to_json
from fer_jax.errors import InputError
from fer_jax.export.quantize import quantize_graph
from fer_jax.inference import runtime
from fer_jax.inference.network import ARRAYS, CONFIG, Network, load, model_arguments
from fer_jax.inference.recognizer import Recognizer, prefetch_map
from fer_jax.inference.recognizer import load as load_recognizer
from fer_jax.media import faces
from fer_jax.media.detector import detector_model
from fer_jax.media.video import Frame, Video, frame_image
from fer_jax.models import xception
from fer_jax.schema import TASKS

CALIBRATION = 32  # images of noise: the speed of int8 does not depend on them
PATH = "clip to predictions"
NUM_FRAMES = 240  # of the clip, from its start
UNSUPPORTED = {
    ("jax", "int8"): "its int8 is of the weights alone, and computes in float32",
    ("onnxruntime", "bfloat16"): "ONNX Runtime does not compute in bfloat16 on a CPU",
}

Images = np.ndarray  # uint8 [n, image_size, image_size, 3]


def measure_inference(options: argparse.Namespace) -> Iterator[Row]:
    """Compares the network alone in every engine, then the path from a clip to predictions."""
    opened: list[tuple[str, Network]] = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in options.dtypes:
            exported = _write_network(Path(folder) / dtype, options, dtype)
            direct, networks = {}, []
            for engine in options.engines:
                reason = UNSUPPORTED.get((engine, dtype), "")
                try:
                    network = None if reason else load_recognizer(exported, engine).network
                except InputError as error:
                    network, reason = None, str(error)
                if network is None:
                    yield skipped(f"{engine}, {dtype}", reason)
                    continue
                networks.append(network)
                if engine in DIRECT:
                    direct[engine] = DIRECT[engine]((exported / runtime.ONNX).read_bytes(), dtype)
            opened += [(dtype, network) for network in networks]
            for batch, network in itertools.product(options.batches, networks):
                yield from _measure_network(network, direct, dtype, batch, options.repeats)
        yield from _measure_path(opened, options)


def _write_network(folder: Path, options: argparse.Namespace, dtype: str) -> Path:
    """Exports the network so that it computes in a dtype; returns the folder."""
    folder.mkdir()
    if options.model:
        model = load(options.model)
        config, step, arrays = model.config, model.step, model.arrays
    else:
        config, step = network_config(width=options.width, image_size=options.image_size), 0
        init = jax.jit(lambda key: xception.init(key, **model_arguments(config)))
        arrays = dict(zip(("params", "batch_stats"), init(jax.random.key(0)), strict=True))
    config.model.dtype = "float32" if dtype == "int8" else dtype
    config.test_time_flip = False
    arguments = model_arguments(config)
    about = {"format": runtime.FORMAT, "task": config.task, "step": step}
    about |= {"classes": list(TASKS[config.task])}
    about |= {"image_size": config.model.image_size, "config": json.loads(to_json(config))}
    flat: dict[str, Any] = traverse_util.flatten_dict(arrays, sep="/")
    arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
    save_file(arrays, folder / ARRAYS)
    (folder / CONFIG).write_text(json.dumps(about))
    network: Any = traverse_util.unflatten_dict(arrays, sep="/")
    graph = runtime.to_onnx(network["params"], network["batch_stats"], arguments, about)
    if dtype == "int8":
        graph = quantize_graph(graph, random_batch(CALIBRATION, config.model.image_size)[0])
    (folder / runtime.ONNX).write_bytes(graph.SerializeToString())
    return folder


def _onnxruntime(model: bytes, dtype: str) -> Callable[[Images], Any]:
    """Opens a file as ONNX Runtime's documentation does; the dtype is the file's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda images: session.run([runtime.OUTPUT], {runtime.INPUT: images})[0]


def _openvino(model: bytes, dtype: str) -> Callable[[Images], Any]:
    """Opens a file as OpenVINO's documentation does, at our precision."""
    core = runtime.import_openvino().Core()
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32"}
    compiled = core.compile_model(core.read_model(model), "CPU", hint)
    return lambda images: compiled([images])[0]


DIRECT = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def _measure_network(
    network: Network, direct: dict[str, Any], dtype: str, batch: int, repeats: int
) -> Iterator[Row]:
    """Compares an engine with the same one used directly, and JAX with all of them."""
    images, _ = random_batch(batch, network.image_size)
    ours = functools.partial(network.probabilities, images)
    what = f"network alone, {network.engine}"
    for engine, run in direct.items():
        if network.engine in (engine, "jax"):
            yield compare(
                what,
                ours,
                functools.partial(run, images),
                peer_name=f"{runtime.ENGINES[engine][0]} used directly",
                amount=batch,
                unit="faces per second",
                repeats=repeats,
                dtype=dtype,
                batch=batch,
            )
    ours()
    started = time.perf_counter()
    for _ in range(repeats):
        ours()
    seconds = (time.perf_counter() - started) / repeats
    yield single(f"{what} {dtype} {batch}", batch / seconds, "faces per second")


def start_fer(python: str, clip: Path, detector: Path) -> Program:
    """Starts fer with another Python; RuntimeError if that does not have it."""
    command = [python, fer_package.__file__, str(clip), str(detector), str(NUM_FRAMES)]
    try:
        return Program(command)
    except OSError as error:
        raise InputError(f"--peer_python '{python}': {error.strerror}") from error


def _measure_path(opened: list[tuple[str, Network]], options: argparse.Namespace) -> Iterator[Row]:
    if options.clip is None:
        yield skipped(PATH, "no clip; name one with --clip")
        return
    try:
        detector = detector_model(options.detector_model)
        peer = start_fer(options.peer_python, options.clip, detector)
    except InputError as error:
        yield skipped(PATH, str(error))
        return
    except RuntimeError as error:
        yield skipped(f"{PATH} / fer", f"{error}; name another environment with --peer_python")
        peer = None
    for dtype, network in opened:
        yield from _measure_clip(Recognizer(network, str(detector)), peer, dtype, options)
    if peer:
        peer.close()


def _frames(clip: Path) -> Iterator[Frame]:
    with Video(clip) as video:
        yield from itertools.islice(video.frames(every=1), NUM_FRAMES)


def _measure_clip(
    recognizer: Recognizer, peer: Program | None, dtype: str, options: argparse.Namespace
) -> Iterator[Row]:
    """Compares frames per second with fer's, and with the parts one after another."""

    def predict_clip() -> int:
        predictions = recognizer.stream(
            _frames(options.clip), decode=frame_image, search_size=faces.LARGE_FACES
        )
        return sum(len(prediction.found) for prediction in predictions)

    frames = [frame for frame in _frames(options.clip) if frame.image is not None]
    image = frame_image(frames[len(frames) // 2])
    what = f"{PATH}, {image.shape[1]}x{image.shape[0]}, {recognizer.network.engine}"
    num_faces = predict_clip()
    for mode, name in fer_package.MODES.items() if peer else ():
        assert peer is not None
        theirs = peer.ask(mode)["faces"]
        yield compare(
            what,
            predict_clip,
            functools.partial(peer.ask, mode),
            peer_name=name,
            amount=len(frames),
            unit=f"frames per second ({num_faces} faces, the peer {theirs})",
            repeats=options.repeats,
            dtype=dtype,
        )
    detect = recognizer.detector()

    def detect_faces(frame: Frame) -> list[faces.Face]:
        return detect(frame_image(frame), faces.LARGE_FACES)

    def find_faces() -> None:
        existing = (frame for frame in _frames(options.clip) if frame.image is not None)
        for _ in prefetch_map(existing, detect_faces, depth=8):
            pass

    yield compare(
        what,
        predict_clip,
        find_faces,
        peer_name="face detection alone",
        amount=len(frames),
        unit="frames per second",
        repeats=options.repeats,
        dtype=dtype,
    )
