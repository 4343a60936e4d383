"""ONNX files, which run without JAX: the graph of a network, and the engines that open them.

uint8 faces in, probabilities out. The graph is written layer by layer from the network's
description (Chollet 2017), with BatchNorm folded into the convolution before it. Inside it is NCHW.
"""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import numpy as np

from fer_jax.config import check_config, completed, from_dict
from fer_jax.errors import InputError
from fer_jax.models.layers import EPSILON
from fer_jax.models.xception import ENTRY, LUMA, output_size, stem_sizes
from fer_jax.schema import TASKS

ONNX = "model.onnx"
INT8_FOLDER = "export_int8"  # in a workdir: where `export --quantize=int8` writes
FORMAT = "fer_jax.xception"  # the format that exported files name
OPSET = 17  # the first that all of ONNX Runtime 1.14+, OpenVINO 2023+ and TensorRT 8.6+ read
LAST = "logits"  # name of the last layer and of its output
INPUT, OUTPUT = "images", "probabilities"
OUTPUTS = (OUTPUT, LAST)
BATCH_SIZE = 64  # images at a time: the memory of every layer grows with it

Run = Callable[[np.ndarray], np.ndarray]


def to_onnx(
    params: dict[str, Any],
    batch_stats: dict[str, Any],
    model: dict[str, Any],
    metadata: dict[str, Any],
) -> Any:
    """Writes the graph of `Xception(**model)` with these arrays.

    `metadata` is stored in it as JSON texts. Returns an `onnx.ModelProto`: `images` uint8 [batch,
    s, s, 3] RGB to `probabilities` and `logits` float32 [batch, classes]; any batch size.
    InputError without the package onnx.
    """
    graph = _GraphBuilder(import_onnx())
    params = fold(params, batch_stats)
    scaled = graph.add("Mul", graph.add("Cast", INPUT, to=1), graph.array(np.float32(1 / 127.5)))
    x = graph.add("Sub", scaled, graph.array(np.float32(1)))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    stem_stride = model.get("stem_stride", 2)
    for name, stride in (("stem1", stem_stride), ("stem2", 1)):
        kernel = np.asarray(params[name]["kernel"], np.float32)
        if name == "stem1" and model.get("grayscale"):
            # Every channel is replaced by the luma, which is a weighted sum of the channels.
            kernel = kernel.sum(axis=2, keepdims=True) * np.asarray(LUMA, np.float32)[:, None]
        x = graph.add("Relu", graph.convolution(x, kernel, params[name], stride))
    _, side = stem_sizes(model["image_size"], stem_stride)
    for name in ENTRY:
        x, side = graph.down(x, params[name], side, first_relu=name != "entry1")
    for number in range(1, model["num_middle_blocks"] + 1):
        layer, y = params[f"middle{number}"], x
        for part in ("separable1", "separable2", "separable3"):
            y = graph.separable(y, layer[part])
        x = graph.add("Add", x, y)
    x, side = graph.down(x, params["exit1"], side)
    if side != output_size(model["image_size"], stem_stride):
        raise AssertionError(f"the last activations must not have {side} x {side} cells")
    x = graph.separable(x, params["exit2"], relu=False)
    x = graph.add("Relu", graph.separable(x, params["exit3"]))
    if model["head"] == "gap":
        x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    else:
        x = graph.add("Flatten", graph.add("Transpose", x, perm=[0, 2, 3, 1]))
        x = graph.add("Relu", graph.dense(x, params["hidden1"]))
        x = graph.add("Relu", graph.dense(x, params["hidden2"]))
    logits = graph.dense(x, params[LAST], name=LAST)
    graph.add("Softmax", logits, axis=1, name=OUTPUT)
    return graph.finish(model["image_size"], model["num_classes"], metadata)


def fold(params: dict[str, Any], batch_stats: dict[str, Any]) -> dict[str, Any]:
    """Multiplies kernels by BatchNorm's scale / sqrt(variance + epsilon); its offset remains."""
    folded = {}
    for name, layer in params.items():
        if not isinstance(layer, dict):
            folded[name] = layer
        elif "norm" in layer:
            norm, statistics = layer["norm"], batch_stats[name]["norm"]
            scale = norm["scale"] * jax.lax.rsqrt(statistics["var"] + EPSILON)
            offset = norm["bias"] - statistics["mean"] * scale
            folded[name] = {"kernel": layer["kernel"] * scale, "norm": {"bias": offset}}
        else:
            folded[name] = fold(layer, batch_stats.get(name, {}))
    return folded


class _GraphBuilder:
    """Nodes and arrays in the order in which they were added; values are named by their node."""

    def __init__(self, onnx: Any):
        self.onnx, self.nodes, self.arrays = onnx, [], []

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds a node; returns the name of its output."""
        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(
            self.onnx.helper.make_node(kind, inputs, [output], name=output, **attributes)
        )
        return output

    def array(self, values: np.ndarray | np.float32) -> str:
        """Adds a constant; returns its name."""
        name = f"array_{len(self.arrays)}"
        array = np.ascontiguousarray(values)
        self.arrays.append(self.onnx.numpy_helper.from_array(array.reshape(np.shape(values)), name))
        return name

    def convolution(self, x: str, kernel: Any, layer: Any, stride: int = 1) -> str:
        # [h, w, inputs, filters] to [filters, inputs, h, w].
        weights = np.transpose(np.asarray(kernel, np.float32), (3, 2, 0, 1))
        bias = np.asarray(layer["norm"]["bias"], np.float32)
        strides = [stride, stride]
        return self.add("Conv", x, self.array(weights), self.array(bias), strides=strides)

    def pointwise(self, x: str, layer: Any, stride: int = 1) -> str:
        return self.convolution(x, layer["kernel"][None, None], layer, stride)

    def separable(self, x: str, layer: Any, *, relu: bool = True) -> str:
        if relu:
            x = self.add("Relu", x)
        # [h, w, channels] to [channels, 1, h, w].
        kernel = np.transpose(np.asarray(layer["depthwise"], np.float32), (2, 0, 1))[:, None]
        x = self.add("Conv", x, self.array(kernel), pads=[1, 1, 1, 1], group=len(kernel))
        return self.pointwise(x, layer["pointwise"])

    def down(self, x: str, layer: Any, side: int, *, first_relu: bool = True) -> tuple[str, int]:
        """Adds a block that halves the resolution; returns its output and the side of that."""
        y = self.separable(x, layer["separable1"], relu=first_relu)
        y = self.separable(y, layer["separable2"])
        pads = [side % 2, side % 2, 1, 1]  # as `max_pool3x3` pads
        y = self.add("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=pads)
        shortcut = self.pointwise(x, layer["shortcut"], stride=2)
        return self.add("Add", y, shortcut), -(-side // 2)

    def dense(self, x: str, layer: Any, *, name: str = "") -> str:
        kernel, bias = (np.asarray(layer[part], np.float32) for part in ("kernel", "bias"))
        return self.add("Gemm", x, self.array(kernel), self.array(bias), name=name)

    def finish(self, size: int, classes: int, metadata: dict[str, Any]) -> Any:
        """Returns the checked model."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        images = helper.make_tensor_value_info(INPUT, types.UINT8, ["batch", size, size, 3])
        outputs = [
            helper.make_tensor_value_info(name, types.FLOAT, ["batch", classes]) for name in OUTPUTS
        ]
        graph = helper.make_graph(self.nodes, "xception", [images], outputs, self.arrays)
        model = helper.make_model(
            graph, producer_name="fer_jax", opset_imports=[helper.make_opsetid("", OPSET)]
        )
        model.ir_version = 8  # of opset 17; older runtimes do not read newer versions
        texts = {name: json.dumps(value) for name, value in metadata.items()}
        self.onnx.helper.set_model_props(model, texts)
        self.onnx.checker.check_model(model, full_check=True)
        return model


def import_onnx() -> Any:
    """Imports the package onnx; InputError if it is not installed."""
    try:
        import onnx
    except ImportError as error:
        raise InputError("ONNX is not installed; pip install -e '.[export]'") from error
    return onnx


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
