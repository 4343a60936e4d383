"""A trained network in int8: a quarter of the size, and faster where the processor has int8 products.

Two forms (Nagel et al. 2021, arXiv:2106.08295, describe both):
- weights alone: every kernel as int8 with a scale per output channel; computing is as before.
- static: an ONNX graph whose activations are uint8, too. Their ranges are those that training
  faces gave (never validation or test faces: there is no argument by which they could come in).

Before, channels are brought to one range: what a separable convolution keeps between its two
kernels, and what goes from one to the next through a ReLU, has one scale for all channels, while a
kernel may be multiplied in one layer and divided in the next (Nagel et al. 2019,
arXiv:1906.04721).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_jax.data.records import Records, labelled_rows
from fer_jax.evaluation import runtime
from fer_jax.inference.onnx_graph import INPUT, import_onnx

INT8 = "int8"
SCALE = ".scale"  # after the name of a kernel: of its int8 values
LARGEST = 127  # -128 is not used, so that a scale is the same for both signs
NUM_CALIBRATION = 512
BATCH_SIZE = 32
# A channel is multiplied by so much at most: what calibration never saw of it would be cut off.
MOST_STRETCHED = 32.0
LAST = "logits"
BITS = 127
MARGIN = 1.0


def quantized_weights(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Kernels as int8.

    Args:
      arrays: float32 by name, the output channels of a kernel in its last axis.

    Returns:
      Vectors as they are; instead of each kernel int8 of its shape and, under its name and
      `SCALE`, float32 [channels]: int8 times scale is the kernel again, to half a scale.
    """
    found = {}
    for name, array in arrays.items():
        if array.ndim < 2:
            found[name] = array
            continue
        largest = np.abs(array).max(axis=tuple(range(array.ndim - 1)))
        scale = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(LARGEST)
        found[name] = np.round(array / scale).astype(np.int8)
        found[name + SCALE] = scale
    return found


def dequantized_weights(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The float32 kernels of what `quantized_weights` returned; other arrays as they are."""
    return {
        name: array * arrays[name + SCALE] if name + SCALE in arrays else array
        for name, array in arrays.items()
        if not name.endswith(SCALE)
    }


def crops_of(parts: Sequence[Records], task: str, image_size: int, count: int) -> np.ndarray:
    """Labelled faces from all over some parts: uint8 [n, s, s, 3], about `count`."""
    share = -(-count // len(parts))
    crops = []
    for records in parts:
        rows = labelled_rows(records, task)
        # From the whole part, not the first person.
        chosen = rows[np.linspace(0, len(rows) - 1, min(share, len(rows))).astype(int)]
        crops.append(records.images(chosen, image_size))
    return np.concatenate(crops)


def quantized_graph(model: Any, crops: np.ndarray) -> Any:
    """The static form.

    Args:
      model: `onnx.ModelProto` from `to_onnx`.
      crops: uint8 [n, s, s, 3], training faces.

    Returns:
      `onnx.ModelProto` with the same inputs and outputs, every quantized value between a
      QuantizeLinear and a DequantizeLinear, which engines fuse into integer layers. The last
      layer stays as it is: it is small, and its rounding would be the probabilities'.

    Raises:
      InputError: ONNX Runtime is not installed.
    """
    onnx = import_onnx()
    graph = _Editable(onnx, model)
    graph.equalize(graph.ranges(crops))
    graph.quantize(graph.ranges(crops))
    onnx.checker.check_model(graph.model, full_check=True)
    return graph.model


class _Editable:
    """A copy of a graph of `to_onnx`, which knows who makes and who uses a value."""

    def __init__(self, onnx: Any, model: Any):
        self.onnx, self.model = onnx, onnx.ModelProto()
        self.model.CopyFrom(model)
        self.nodes = list(self.model.graph.node)
        self.arrays = {array.name: array for array in self.model.graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.users: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.layers = [
            node for node in self.nodes if node.op_type in ("Conv", "Gemm") and node.name != LAST
        ]
        # A layer and its ReLU are one.
        self.values = [self.layers[0].input[0]] + [
            node.output[0]
            for node in self.nodes
            if node.op_type in ("Relu", "Add", "MaxPool")
            or (node in self.layers and self._next(node).op_type != "Relu")
        ]

    def _next(self, node: Any) -> Any:
        return self.users[node.output[0]][0]

    def array(self, name: str) -> np.ndarray:
        """The values of a constant."""
        return self.onnx.numpy_helper.to_array(self.arrays[name])

    def replace(self, name: str, values: np.ndarray) -> None:
        """Gives a constant other values."""
        self.arrays[name].CopyFrom(self.onnx.numpy_helper.from_array(values, name))

    def ranges(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """The least and the largest of every value to be quantized, by channel: [2, channels]."""
        watched = self.onnx.ModelProto()
        watched.CopyFrom(self.model)
        del watched.graph.output[:]
        for name in self.values:
            info = self.onnx.helper.make_tensor_value_info(name, self.onnx.TensorProto.FLOAT, None)
            watched.graph.output.append(info)
        session = runtime.onnxruntime_session(watched.SerializeToString())
        found: dict[str, np.ndarray] = {}
        for start in range(0, len(crops), BATCH_SIZE):
            seen: Any = session.run(None, {INPUT: crops[start : start + BATCH_SIZE]})
            for name, values in zip(self.values, seen, strict=True):
                axes = (0, *range(2, values.ndim))
                now = np.stack([values.min(axes), values.max(axes)])
                before = found.get(name, now)
                found[name] = np.stack(
                    [np.minimum(before[0], now[0]), np.maximum(before[1], now[1])]
                )
        return found

    def equalize(self, ranges: dict[str, np.ndarray]) -> None:
        """Brings channels to one range where the next layer can take the factor back."""
        for layer in self.layers:
            value = layer.output[0]
            if value not in ranges:
                value = self._next(layer).output[0]
            users = self.users[value]
            if len(users) != 1 or users[0] not in self.layers:
                continue
            (user,) = users
            reached = np.abs(ranges[value]).max(axis=0)
            factor = np.minimum(reached.max() / np.maximum(reached, 1e-12), MOST_STRETCHED)
            for name in layer.input[1:]:
                values = self.array(name)
                columns = factor.reshape(-1, *[1] * (values.ndim - 1))
                self.replace(name, (values * columns).astype(np.float32))
            values = self.array(user.input[1])
            # [channels, 1, h, w] of a depthwise kernel, or [filters, channels, h, w].
            rows = factor.reshape((-1, 1, 1, 1) if values.shape[1] == 1 else (1, -1, 1, 1))
            self.replace(user.input[1], (values / rows).astype(np.float32))

    def quantize(self, ranges: dict[str, np.ndarray]) -> None:
        """Puts every value and kernel between a QuantizeLinear and a DequantizeLinear."""
        onnx, made, scales, rounded = self.onnx, [], {}, {}

        def constant(name: str, values: Any) -> str:
            self.model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
            return name

        def dequantized(name: str, values: np.ndarray, scale: np.ndarray, axis: int) -> str:
            inputs = [constant(name + ".int", values), constant(name + ".scale", scale)]
            inputs.append(constant(name + ".zero", np.zeros(len(scale), values.dtype)))
            made.append(
                onnx.helper.make_node("DequantizeLinear", inputs, [name + ".float"], axis=axis)
            )
            return name + ".float"

        def around(name: str) -> None:
            maker = self.makers[name]
            if maker.op_type == "MaxPool":  # chooses among values that are already rounded
                scales[name] = scales[maker.input[0].removesuffix(".rounded")]
            else:
                low = min(0.0, float(ranges[name][0].min())) * MARGIN
                high = max(0.0, float(ranges[name][1].max())) * MARGIN
                scale = np.float32(max(high - low, 1e-12) / 255)
                scales[name] = scale, np.uint8(np.clip(round(-low / float(scale)), 0, 255))
            inputs = [constant(f"{name}.{n}", v) for n, v in zip(("s", "z"), scales[name])]
            for kind, source, target in (
                ("QuantizeLinear", name, name + ".uint8"),
                ("DequantizeLinear", name + ".uint8", name + ".rounded"),
            ):
                made.append(onnx.helper.make_node(kind, [source, *inputs], [target], name=target))
            rounded[name] = name + ".rounded"

        for node in self.nodes:
            if node in self.layers:
                scale_in = scales[node.input[0]][0]
                kernel, bias = node.input[1], [*node.input[2:]]
                values = self.array(kernel)
                axis = 0 if node.op_type == "Conv" else 1
                flat = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
                largest = np.abs(flat).max(axis=1)
                scale = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(BITS)
                shape = [-1 if i == axis else 1 for i in range(values.ndim)]
                integers = np.round(values / scale.reshape(shape)).astype(np.int8)
                node.input[1] = dequantized(kernel, integers, scale, axis)
                if bias:
                    of_sum = (scale_in * scale).astype(np.float32)
                    integers = np.round(self.array(bias[0]) / of_sum)
                    integers = np.clip(integers, -(2**31), 2**31 - 1).astype(np.int32)
                    node.input[2] = dequantized(bias[0], integers, of_sum, 0)
            for index, name in enumerate(node.input):
                node.input[index] = rounded.get(name, name)
            made.append(node)
            if node.output[0] in self.values:
                around(node.output[0])
        used = {name for node in made for name in node.input}
        kept = [array for array in self.model.graph.initializer if array.name in used]
        del self.model.graph.node[:], self.model.graph.initializer[:]
        self.model.graph.node.extend(made)
        self.model.graph.initializer.extend(kept)
