"""An exported ONNX file in the engines that need no JAX: uint8 faces in, probabilities out."""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from fer_jax.errors import InputError

ONNX = "model.onnx"
INT8_FOLDER = "export_int8"  # of a workdir, where `export --quantize=int8` writes
FORMAT = "fer_jax.xception"  # of an exported network, whatever the form
INPUT, OUTPUT = "images", "probabilities"
BATCH_SIZE = 64  # at most at once: the memory of every layer grows with it

Run = Callable[[np.ndarray], np.ndarray]


class Session(NamedTuple):
    """A network in an engine.

    Attributes:
      about: what `export` says of it: format, task, classes, image_size, step, config, and of a
        rounded one "quantization".
      run: uint8 RGB [n, s, s, 3] to float32 [n, classes], rows sum to 1; any n, any thread. The
        mean over mirror images, where the run's config says so.
    """

    about: dict[str, Any]
    run: Run


def open_onnx(model: bytes, engine: str, name: str, *, flip: bool = True) -> Session:
    """Makes a network ready to run.

    Args:
      model: an .onnx file that `export` wrote.
      engine: "onnxruntime" or "openvino".
      name: what a message calls the file.
      flip: whether to look at mirror images, too, where the run's config says so.

    Raises:
      InputError: the engine is not installed, or the file is damaged or somebody else's.
    """
    title, extra, prepare = ENGINES[engine]
    try:
        texts, run = prepare(model)
        about = {key: json.loads(text) for key, text in texts.items()}
    except ImportError as error:
        raise InputError(f"{title} is not installed; pip install -e '.[{extra}]'") from error
    except InputError:
        raise
    except Exception as error:  # ONNX Runtime's own derive from nothing narrower
        raise InputError(f"'{name}' is damaged, or no network that {title} reads") from error
    if not about.keys() >= {"task", "classes", "image_size", "step", "config"}:
        raise InputError(f"'{name}' is no network that fer-jax export wrote")
    if flip and about["config"].get("test_time_flip"):
        return Session(about, lambda images: (run(images) + run(images[:, :, ::-1])) / 2)
    return Session(about, run)


def onnxruntime_session(model: bytes) -> Any:
    """An ONNX Runtime session on the CPU.

    Raises:
      ImportError: it is not installed.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised, too
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _onnxruntime(model: bytes) -> tuple[Mapping[str, str], Run]:
    session = onnxruntime_session(model)

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([OUTPUT], {INPUT: images})[0])

    return _ours(session.get_modelmeta().custom_metadata_map), in_batches(run)


def import_openvino() -> Any:
    """OpenVINO, which here tells nobody that it is used.

    Raises:
      ImportError: it is not installed.
    """
    # Its import reports to its maker, unless the package that does so is absent.
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino  # pyright: ignore[reportMissingImports] (an extra)

    return openvino


def _openvino(model: bytes) -> tuple[Mapping[str, str], Run]:
    openvino = import_openvino()
    core = openvino.Core()
    read = core.read_model(model)
    there = read.get_rt_info()["framework"] if read.has_rt_info("framework") else {}
    texts = _ours({key: value.astype(str) for key, value in there.items()})
    # By itself it computes in bfloat16 wherever the processor can; here that is the run's choice.
    lower = json.loads(texts.get("config", "{}")).get("model", {}).get("dtype") == "bfloat16"
    compiled = core.compile_model(
        read,
        "CPU",
        {"INFERENCE_PRECISION_HINT": "bf16" if lower else "f32", "PERFORMANCE_HINT": "LATENCY"},
    )
    number = next(i for i, one in enumerate(compiled.outputs) if OUTPUT in one.names)
    requests = threading.local()

    def run(images: np.ndarray) -> np.ndarray:
        if not hasattr(requests, "one"):
            requests.one = compiled.create_infer_request()
        # Its own arrays are overwritten by the next images.
        return np.array(requests.one.infer([np.ascontiguousarray(images)])[number])

    return texts, in_batches(run)


def _ours(texts: Mapping[str, str]) -> Mapping[str, str]:
    """What a file says of itself; nothing of one that does not say that it is ours."""
    return texts if texts.get("format") == json.dumps(FORMAT) else {}


def in_batches(run: Run) -> Run:
    """The same for any number of faces, `BATCH_SIZE` of them at once."""

    def batched(images: np.ndarray) -> np.ndarray:
        if not len(images):  # which OpenVINO refuses
            return run(np.zeros((1, *images.shape[1:]), np.uint8))[:0]
        if len(images) <= BATCH_SIZE:
            return run(images)
        starts = range(0, len(images), BATCH_SIZE)
        return np.concatenate([run(images[start : start + BATCH_SIZE]) for start in starts])

    return batched


# name: (its title, the extra that brings it, what opens a file in it)
ENGINES = {
    "onnxruntime": ("ONNX Runtime", "export", _onnxruntime),
    "openvino": ("OpenVINO", "openvino", _openvino),
}
