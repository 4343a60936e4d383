"""A trained network as an ONNX graph, which runs without JAX: pixels in, probabilities out.

The graph is written from the network's own description (Chollet 2017), layer by layer, with
BatchNorm folded into the convolution before it. Inside it is NCHW, ONNX' layout.
"""

import json
from typing import Any

import numpy as np

from fer_jax.errors import InputError
from fer_jax.inference import runtime
from fer_jax.models.fold import fold
from fer_jax.models.xception import ENTRY, LUMA, output_size, stem_sizes

OPSET = 17  # the first that all of ONNX Runtime 1.14+, OpenVINO 2023+ and TensorRT 8.6+ read
LAST = "logits"  # the last layer, and what it gives
INPUT, OUTPUTS = runtime.INPUT, (runtime.OUTPUT, LAST)


def to_onnx(
    params: dict[str, Any],
    batch_stats: dict[str, Any],
    model: dict[str, Any],
    metadata: dict[str, Any],
) -> Any:
    """Writes the graph.

    Args:
      params: of an `Xception`, nested dicts of float32 arrays.
      batch_stats: the same network's.
      model: the keyword arguments that it was made with.
      metadata: stored in the file as JSON texts by name.

    Returns:
      An `onnx.ModelProto`: `images` uint8 [batch, s, s, 3] RGB to `probabilities` and `logits`
      float32 [batch, classes]; any batch size.

    Raises:
      InputError: the package onnx is not installed.
    """
    onnx = import_onnx()
    size, classes = model["image_size"], model["num_classes"]
    graph = _Graph(onnx)
    scaled = graph.add("Mul", graph.add("Cast", INPUT, to=1), graph.array(np.float32(1 / 127.5)))
    x = graph.add("Sub", scaled, graph.array(np.float32(1)))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])

    params, _ = fold(params, batch_stats)

    def convolution(x: str, kernel: Any, layer: Any, stride: int = 1) -> str:
        # [h, w, inputs, filters] to [filters, inputs, h, w].
        weights = np.transpose(np.asarray(kernel, np.float32), (3, 2, 0, 1))
        bias = np.asarray(layer["norm"]["bias"], np.float32)
        return graph.add(
            "Conv", x, graph.array(weights), graph.array(bias), strides=[stride, stride]
        )

    def pointwise(x: str, layer: Any, stride: int = 1) -> str:
        return convolution(x, layer["kernel"][None, None], layer, stride)

    def separable(x: str, layer: Any, *, relu: bool = True) -> str:
        if relu:
            x = graph.add("Relu", x)
        # [h, w, channels] to [channels, 1, h, w].
        kernel = np.transpose(np.asarray(layer["depthwise"], np.float32), (2, 0, 1))[:, None]
        x = graph.add("Conv", x, graph.array(kernel), pads=[1, 1, 1, 1], group=len(kernel))
        return pointwise(x, layer["pointwise"])

    def down(x: str, name: str, side: int, *, first_relu: bool = True) -> tuple[str, int]:
        layer = params[name]
        y = separable(x, layer["separable1"], relu=first_relu)
        y = separable(y, layer["separable2"])
        odd = side % 2
        y = graph.add(
            "MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[odd, odd, 1, 1]
        )  # as `max_pool3x3` pads
        shortcut = pointwise(x, layer["shortcut"], stride=2)
        return graph.add("Add", y, shortcut), -(-side // 2)

    stem_stride = model.get("stem_stride", 2)
    for name, stride in (("stem1", stem_stride), ("stem2", 1)):
        layer = params[name]
        kernel = np.asarray(layer["kernel"], np.float32)
        if name == "stem1" and model.get("grayscale"):
            # Each channel stands for its part of the luma, which all channels would hold.
            kernel = kernel.sum(axis=2, keepdims=True) * np.asarray(LUMA, np.float32)[:, None]
        x = graph.add("Relu", convolution(x, kernel, layer, stride))
    _, side = stem_sizes(size, stem_stride)
    for name in ENTRY:
        x, side = down(x, name, side, first_relu=name != "entry1")
    for number in range(1, model["num_middle_blocks"] + 1):
        layer, y = params[f"middle{number}"], x
        for part in ("separable1", "separable2", "separable3"):
            y = separable(y, layer[part])
        x = graph.add("Add", x, y)
    x, side = down(x, "exit1", side)
    if side != output_size(size, stem_stride):
        raise AssertionError("the graph lost count of its pixels")
    x = separable(x, params["exit2"], relu=False)
    x = graph.add("Relu", separable(x, params["exit3"]))

    def dense(x: str, layer: Any, *, name: str = "") -> str:
        kernel, bias = (np.asarray(layer[part], np.float32) for part in ("kernel", "bias"))
        return graph.add("Gemm", x, graph.array(kernel), graph.array(bias), name=name)

    if model["head"] == "gap":
        x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    else:
        x = graph.add("Flatten", graph.add("Transpose", x, perm=[0, 2, 3, 1]))
        x = graph.add("Relu", dense(x, params["hidden1"]))
        x = graph.add("Relu", dense(x, params["hidden2"]))
    graph.add("Softmax", dense(x, params[LAST], name=LAST), axis=1, name=runtime.OUTPUT)
    return graph.finished(size, classes, metadata)


class _Graph:
    """Nodes and arrays in the order in which they were added."""

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

    def finished(self, size: int, classes: int, metadata: dict[str, Any]) -> Any:
        """The model, checked."""
        helper, types = self.onnx.helper, self.onnx.TensorProto
        images = helper.make_tensor_value_info(INPUT, types.UINT8, ["batch", size, size, 3])
        outputs = [
            helper.make_tensor_value_info(name, types.FLOAT, ["batch", classes]) for name in OUTPUTS
        ]
        graph = helper.make_graph(self.nodes, "xception", [images], outputs, self.arrays)
        model = helper.make_model(
            graph, producer_name="fer_jax", opset_imports=[helper.make_opsetid("", OPSET)]
        )
        model.ir_version = 8  # of opset 17: newer numbers are refused by older runtimes
        texts = {name: json.dumps(value) for name, value in metadata.items()}
        self.onnx.helper.set_model_props(model, texts)
        self.onnx.checker.check_model(model, full_check=True)
        return model


def import_onnx() -> Any:
    """The package onnx.

    Raises:
      InputError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise InputError("ONNX is not installed; pip install -e '.[export]'") from error
    return onnx
