"""A trained network as an ONNX graph, which runs without JAX: pixels in, probabilities out.

The graph is written layer by layer from the network's description (Chollet 2017), with BatchNorm
folded into the convolution before it. Inside it is NCHW, ONNX' layout.
"""

import json
from typing import Any

import jax
import numpy as np

from fer_jax.errors import InputError
from fer_jax.inference import runtime
from fer_jax.models.layers import EPSILON
from fer_jax.models.xception import ENTRY, LUMA, output_size, stem_sizes

OPSET = 17  # the first that all of ONNX Runtime 1.14+, OpenVINO 2023+ and TensorRT 8.6+ read
LAST = "logits"  # name of the last layer and of its output
INPUT, OUTPUTS = runtime.INPUT, (runtime.OUTPUT, LAST)


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
    graph.add("Softmax", logits, axis=1, name=runtime.OUTPUT)
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
