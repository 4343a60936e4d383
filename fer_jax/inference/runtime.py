"""Exported ONNX files in ONNX Runtime and OpenVINO: uint8 faces in, probabilities out."""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from fer_jax.config import check_config, completed, from_dict
from fer_jax.errors import InputError
from fer_jax.schema import TASKS

ONNX = "model.onnx"
INT8_FOLDER = "export_int8"  # in a workdir: where `export --quantize=int8` writes
FORMAT = "fer_jax.xception"  # the format that exported files name
INPUT, OUTPUT = "images", "probabilities"
BATCH_SIZE = 64  # images at a time: the memory of every layer grows with it

Run = Callable[[np.ndarray], np.ndarray]


def open_onnx(
    model: bytes, engine: str, name: str, *, flip: bool = True
) -> tuple[dict[str, Any], Run]:
    """Opens the bytes of an .onnx file that `export` wrote, in "onnxruntime" or "openvino".

    `name` is for messages. `flip` averages over each image and its mirror image if the run's config
    says so. Returns (its metadata: format, task, classes, image_size, step, config and, if int8,
    quantization; a function of uint8 RGB [n, s, s, 3] to float32 [n, classes], for any n and any
    thread). Raises InputError if the engine is not installed, or the file is damaged or not from
    `export`; the function raises it, too, if the network does not compute probabilities.
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
        raise InputError(f"'{name}' is damaged, or {title} cannot read it") from error
    try:
        config = completed(from_dict(about["config"]))
        check_config(config)
        classes = list(TASKS[config.task])
        ours = config.task, classes, config.model.image_size, int
        if ours != (about["task"], about["classes"], about["image_size"], type(about["step"])):
            raise InputError("its entries contradict its config")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f": {error}" if isinstance(error, InputError) else ""
        raise InputError(f"'{name}' was not written by this fer-jax export{reason}") from error

    def checked(images: np.ndarray) -> np.ndarray:
        probabilities = run(images)
        if probabilities.shape != (len(images), len(classes)) or not np.all(probabilities >= 0):
            raise InputError(f"'{name}' is damaged: it does not compute probabilities")
        return probabilities

    if flip and config.test_time_flip:
        return about, lambda images: (checked(images) + checked(images[:, :, ::-1])) / 2
    return about, checked


def onnxruntime_session(model: bytes) -> Any:
    """Returns an ONNX Runtime session on the CPU; ImportError if it is not installed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # not errors, which are raised
    # Processors without VNNI add pairs of int8 products in 16 bits, which overflow. With this entry
    # they compute exactly and more slowly; others ignore it.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _onnxruntime(model: bytes) -> tuple[Mapping[str, str], Run]:
    session = onnxruntime_session(model)

    def run(images: np.ndarray) -> np.ndarray:
        return np.asarray(session.run([OUTPUT], {INPUT: images})[0])

    return _ours(session.get_modelmeta().custom_metadata_map), in_batches(run)


def import_openvino() -> Any:
    """Imports OpenVINO without its telemetry; ImportError if it is not installed."""
    # The import sends usage data unless the telemetry package is absent.
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino  # pyright: ignore[reportMissingImports] (an extra)

    return openvino


def _openvino(model: bytes) -> tuple[Mapping[str, str], Run]:
    openvino = import_openvino()
    core = openvino.Core()
    read = core.read_model(model)
    metadata = read.get_rt_info()["framework"] if read.has_rt_info("framework") else {}
    texts = _ours({key: value.astype(str) for key, value in metadata.items()})
    # OpenVINO would compute in bfloat16 wherever the processor can; here the run's config decides.
    is_bfloat16 = json.loads(texts.get("config", "{}")).get("model", {}).get("dtype") == "bfloat16"
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if is_bfloat16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(read, "CPU", hints)
    number = next(i for i, output in enumerate(compiled.outputs) if OUTPUT in output.names)
    requests = threading.local()

    def run(images: np.ndarray) -> np.ndarray:
        if not hasattr(requests, "one"):
            requests.one = compiled.create_infer_request()
        # A copy, because OpenVINO reuses its output arrays.
        return np.array(requests.one.infer([np.ascontiguousarray(images)])[number])

    return texts, in_batches(run)


def _ours(texts: Mapping[str, str]) -> Mapping[str, str]:
    """Returns the metadata of a file that `export` wrote, {} of any other."""
    return texts if texts.get("format") == json.dumps(FORMAT) else {}


def in_batches(run: Run) -> Run:
    """Returns the function for any number of images, `BATCH_SIZE` of them at a time."""

    def batched(images: np.ndarray) -> np.ndarray:
        if not len(images):  # OpenVINO takes no empty batch
            return run(np.zeros((1, *images.shape[1:]), np.uint8))[:0]
        if len(images) <= BATCH_SIZE:
            return run(images)
        starts = range(0, len(images), BATCH_SIZE)
        return np.concatenate([run(images[start : start + BATCH_SIZE]) for start in starts])

    return batched


# name: (title, extra that installs it, function that opens a file)
ENGINES = {
    "onnxruntime": ("ONNX Runtime", "export", _onnxruntime),
    "openvino": ("OpenVINO", "openvino", _openvino),
}
