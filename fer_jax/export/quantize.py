"""A trained network in int8: a quarter of the size, and faster on processors that multiply int8.

Two forms (Nagel et al. 2021, arXiv:2106.08295, describe both):
- Weights alone: every kernel is int8 with a scale per output channel; it computes in float32.
- Static: an ONNX graph in which the values between the layers are uint8, too. Their ranges come
  from training faces and are widened by half: faces of other datasets exceed them, and values
  that are cut off cost more than coarser steps.

Before the static form, channels are brought to one range, because the values between two layers
have one scale for all channels. One kernel multiplies a channel and the next one divides it again
(Nagel et al. 2019, arXiv:1906.04721), also through a ReLU.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_jax.data.records import Records, labelled_rows
from fer_jax.errors import InputError
from fer_jax.inference import runtime
from fer_jax.inference.network import SCALE
from fer_jax.inference.runtime import INPUT, LAST, import_onnx

LARGEST = 127  # -128 is not used, so that a scale is the same for both signs
NUM_CALIBRATION = 512
BATCH_SIZE = 32
MARGIN = 1.5  # of the calibrated ranges
# The largest factor of a channel, since ranges near zero are not reliable.
MAX_FACTOR = 32.0


def quantize_kernel(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds a float32 kernel [..., channels] to (int8 [..., channels], scale float32 [channels]).

    Their product differs from the kernel by at most half a scale.
    """
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    # Below the smallest normal float32 a scale would round to 0; such channels become zeros.
    least = LARGEST * np.finfo(np.float32).tiny
    scale = np.where(largest >= least, largest, 1).astype(np.float32) / np.float32(LARGEST)
    return np.round(kernel / scale).astype(np.int8), scale


def quantize_weights(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rounds kernels, float32 arrays by name with the output channels in their last axis.

    Vectors stay as they are. A kernel becomes the two arrays of `quantize_kernel`; the scale has
    its name and `SCALE`.
    """
    found = {}
    for name, array in arrays.items():
        if array.ndim < 2:
            found[name] = array
        else:
            found[name], found[name + SCALE] = quantize_kernel(array)
    return found


def sample_crops(parts: Sequence[Records], task: str, image_size: int, count: int) -> np.ndarray:
    """Returns about `count` labelled faces from all over some parts: uint8 [n, s, s, 3]."""
    share = -(-count // len(parts))
    crops = []
    for records in parts:
        rows = labelled_rows(records, task)
        # From the whole part, because records of a person are neighbours.
        chosen = rows[np.linspace(0, len(rows) - 1, min(share, len(rows))).astype(int)]
        crops.append(records.images(chosen, image_size))
    return np.concatenate(crops)


def quantize_graph(model: Any, crops: np.ndarray) -> Any:
    """Returns the static form of a graph of `to_onnx`, calibrated on faces, uint8 [n, s, s, 3].

    Rounded values are between a QuantizeLinear and a DequantizeLinear, which engines fuse with the
    layers around them into integer ones. The last layer stays in float32: it is small and
    sensitive. InputError without the packages onnx and onnxruntime.
    """
    graph = _Quantizer(import_onnx(), model)
    graph.equalize(graph.ranges(crops))
    graph.quantize(graph.ranges(crops))
    graph.onnx.checker.check_model(graph.model, full_check=True)
    return graph.model


class _Quantizer:
    """A copy of a graph of `to_onnx`, and which nodes compute and use each value.

    The kernels of `layers` become int8; `values` are the names between layers, in the nodes' order.
    """

    def __init__(self, onnx: Any, model: Any):
        self.onnx, self.model = onnx, onnx.ModelProto()
        self.model.CopyFrom(model)
        self.arrays = {array.name: array for array in self.model.graph.initializer}
        self.nodes = list(self.model.graph.node)
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.layers = [n for n in self.nodes if n.op_type in ("Conv", "Gemm") and n.name != LAST]
        rounded = {self.result(layer) for layer in self.layers}
        rounded |= {n.output[0] for n in self.nodes if n.op_type in ("Relu", "Add", "MaxPool")}
        self.values = [self.layers[0].input[0]]
        self.values += [n.output[0] for n in self.nodes if n.output[0] in rounded]

    def result(self, layer: Any) -> str:
        """Returns a layer's output, after its ReLU if only that uses it: engines fuse them."""
        users = self.users[layer.output[0]]
        fused = len(users) == 1 and users[0].op_type == "Relu"
        return (users[0] if fused else layer).output[0]

    def array(self, name: str) -> np.ndarray:
        """Returns the values of a constant."""
        return self.onnx.numpy_helper.to_array(self.arrays[name])

    def multiply(self, name: str, factor: np.ndarray) -> None:
        """Multiplies a constant."""
        values = (self.array(name) * factor).astype(np.float32)
        self.arrays[name].CopyFrom(self.onnx.numpy_helper.from_array(values, name))

    def ranges(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the minimum and maximum of each of `values` on faces: float32 [2, channels]."""
        watched = self.onnx.ModelProto()
        watched.CopyFrom(self.model)
        del watched.graph.output[:]
        for name in self.values:
            info = self.onnx.helper.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, None)
            watched.graph.output.append(info)
        try:
            session = runtime.onnxruntime_session(watched.SerializeToString())
        except ImportError as error:
            raise InputError("ONNX Runtime is not installed; pip install -e '.[export]'") from error
        found: dict[str, np.ndarray] = {}
        for start in range(0, len(crops), BATCH_SIZE):
            seen: Any = session.run(None, {INPUT: crops[start : start + BATCH_SIZE]})
            for name, values in zip(self.values, seen, strict=True):
                axes = (0, *range(2, values.ndim))
                low, high = values.min(axes), values.max(axes)
                before = found.get(name, (low, high))
                found[name] = np.stack([np.minimum(before[0], low), np.maximum(before[1], high)])
        return found

    def equalize(self, ranges: dict[str, np.ndarray]) -> None:
        """Brings channels to one range if a single layer uses them, which divides them again."""
        for layer in self.layers:
            value = self.result(layer)
            users = self.users[value]
            if len(users) != 1 or users[0] not in self.layers:
                continue
            reached = np.abs(ranges[value]).max(axis=0)
            factor = np.minimum(reached.max() / np.maximum(reached, 1e-12), MAX_FACTOR)
            for name in layer.input[1:]:
                # [channels] or, with a filter each, [channels, inputs, h, w].
                self.multiply(name, factor.reshape(-1, *[1] * (self.array(name).ndim - 1)))
            kernel = users[0].input[1]
            depthwise = self.array(kernel).shape[1] == 1
            self.multiply(kernel, 1 / factor.reshape((-1, 1, 1, 1) if depthwise else (-1, 1, 1)))

    def quantize(self, ranges: dict[str, np.ndarray]) -> None:
        """Puts `values` and kernels between a QuantizeLinear and a DequantizeLinear."""
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._steps: dict[str, tuple[np.float32, np.uint8]] = {}  # scale and zero point, by value
        for node in self.nodes:
            if node in self.layers:
                self._quantize_layer(node)
            node.input[:] = [f"{n}.rounded" if n in self._steps else n for n in node.input]
            if node.op_type != "Relu":  # the zero point of 0 of its output does the same
                self._nodes.append(node)
            if node.output[0] in self.values:
                self._quantize_value(node.output[0], ranges)
        used = {name for node in self._nodes for name in node.input}
        kept = [array for name, array in self.arrays.items() if name in used]
        kept = [self.onnx.TensorProto.FromString(array.SerializeToString()) for array in kept]
        del self.model.graph.node[:], self.model.graph.initializer[:]
        self.model.graph.node.extend(self._nodes)
        self.model.graph.initializer.extend([*kept, *self._constants])

    def _quantize_layer(self, node: Any) -> None:
        kernel, *biases = node.input[1:]
        axis = 0 if node.op_type == "Conv" else 1
        integers, scale = quantize_kernel(np.moveaxis(self.array(kernel), axis, -1))
        integers = np.ascontiguousarray(np.moveaxis(integers, -1, axis))
        self._dequantize(kernel, integers, scale, np.zeros(len(scale), np.int8), axis)
        for name in biases:  # at most one, with the scale of the products it is added to
            fine = scale * self._steps[node.input[0]][0]
            limits = np.iinfo(np.int32)
            integers = np.clip(np.round(self.array(name) / fine), limits.min, limits.max)
            zero = np.zeros(len(fine), np.int32)
            self._dequantize(name, integers.astype(np.int32), fine, zero, 0)
        node.input[1:] = [f"{name}.rounded" for name in node.input[1:]]

    def _quantize_value(self, name: str, ranges: dict[str, np.ndarray]) -> None:
        maker = self.makers[name]
        if maker.op_type == "MaxPool":  # its input is rounded already
            self._steps[name] = self._steps[maker.input[0].removesuffix(".rounded")]
        else:
            # The range of pixels is known.
            margin = 1.0 if maker.op_type == "Transpose" else MARGIN
            low = ranges[name].min(initial=0) * margin
            high = ranges[name].max(initial=0) * margin
            scale = np.float32(max(high - low, 1e-12) / 255)
            self._steps[name] = scale, np.uint8(np.round(-low / scale))
        source = maker.input[0] if maker.op_type == "Relu" else name
        inputs = [source, f"{name}.step", f"{name}.zero"]
        self._add_node("QuantizeLinear", inputs, f"{name}.int")
        self._dequantize(name, f"{name}.int", *self._steps[name])

    def _dequantize(self, name: str, integers: Any, scale: Any, zero: Any, axis: int = 1) -> None:
        """Adds a DequantizeLinear of a constant, or of the value with the name `integers`."""
        to_tensor = self.onnx.numpy_helper.from_array
        if not isinstance(integers, str):
            self._constants.append(to_tensor(integers, f"{name}.int"))
            integers = f"{name}.int"
        self._constants += [to_tensor(scale, f"{name}.step"), to_tensor(zero, f"{name}.zero")]
        inputs = [integers, f"{name}.step", f"{name}.zero"]
        self._add_node("DequantizeLinear", inputs, f"{name}.rounded", axis=axis)

    def _add_node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> None:
        node = self.onnx.helper.make_node(kind, inputs, [name], name=name, **attributes)
        self._nodes.append(node)
