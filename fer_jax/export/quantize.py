"""A trained network in int8: a quarter of the size, and faster where processors multiply int8.

Two forms (Nagel et al. 2021, arXiv:2106.08295, describe both):
- Weights alone: every kernel is int8 with a scale per output channel; it computes as before.
- Static: an ONNX graph in which the values between the layers are uint8, too. Their ranges are
  what training faces gave, and half as much again: faces of other sources go further, and what
  is cut off costs more than a coarser step.

Before the static form, channels are brought to one range. The values between two layers have one
scale for all channels, but a kernel may multiply a channel that the next one divides again (Nagel
et al. 2019, arXiv:1906.04721), also through a ReLU.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_jax.data.records import Records, labelled_rows
from fer_jax.errors import InputError
from fer_jax.inference import runtime
from fer_jax.inference.load import SCALE
from fer_jax.inference.onnx_graph import INPUT, LAST, import_onnx

LARGEST = 127  # -128 is not used, so that a scale is the same for both signs
NUM_CALIBRATION = 512
BATCH_SIZE = 32
MARGIN = 1.5  # of the ranges that calibration gave
# A channel is multiplied by so much at most: a range of nearly nothing says little.
MOST_STRETCHED = 32.0


def rounded_kernel(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A kernel in int8.

    Args:
      kernel: float32 [..., channels].

    Returns:
      (int8 [..., channels], scale float32 [channels]): their product is the kernel again, to
      half a scale.
    """
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    # Below the least normal float32 a scale would round to 0: such a channel is all zeros.
    least = LARGEST * np.finfo(np.float32).tiny
    scale = np.where(largest >= least, largest, 1).astype(np.float32) / np.float32(LARGEST)
    return np.round(kernel / scale).astype(np.int8), scale


def quantized_weights(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Kernels as int8.

    Args:
      arrays: float32 by name, the output channels of a kernel in its last axis.

    Returns:
      Vectors as they are; for a kernel the two arrays of `rounded_kernel`, the scale under its
      name and `SCALE`.
    """
    found = {}
    for name, array in arrays.items():
        if array.ndim < 2:
            found[name] = array
        else:
            found[name], found[name + SCALE] = rounded_kernel(array)
    return found


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
      `onnx.ModelProto` with the same inputs and outputs. What is rounded stands between a
      QuantizeLinear and a DequantizeLinear, which engines fuse with the layers around them into
      integer ones. The last layer stays as it is: it is small, and decides.

    Raises:
      InputError: the packages onnx or onnxruntime are not installed.
    """
    graph = _Graph(import_onnx(), model)
    graph.equalize(graph.ranges(crops))
    graph.quantize(graph.ranges(crops))
    graph.onnx.checker.check_model(graph.model, full_check=True)
    return graph.model


class _Graph:
    """A copy of a graph of `to_onnx`, in which it is known who makes and who uses a value.

    Attributes:
      layers: the nodes with kernels that become int8.
      values: the names of what stands between layers, in the order of the nodes.
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
        results = [self.result(layer) for layer in self.layers]
        others = [n.output[0] for n in self.nodes if n.op_type in ("Relu", "Add", "MaxPool")]
        made = {*results, *others}
        self.values = [self.layers[0].input[0]]
        self.values += [n.output[0] for n in self.nodes if n.output[0] in made]

    def result(self, layer: Any) -> str:
        """A layer's output, after the ReLU where nothing else uses it: engines make them one."""
        users = self.users[layer.output[0]]
        alone = len(users) == 1 and users[0].op_type == "Relu"
        return (users[0] if alone else layer).output[0]

    def array(self, name: str) -> np.ndarray:
        """The values of a constant."""
        return self.onnx.numpy_helper.to_array(self.arrays[name])

    def multiply(self, name: str, factor: np.ndarray) -> None:
        """Multiplies a constant."""
        values = (self.array(name) * factor).astype(np.float32)
        self.arrays[name].CopyFrom(self.onnx.numpy_helper.from_array(values, name))

    def ranges(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """The least and the largest of each of `values` on some faces: float32 [2, channels]."""
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
        """Brings channels to one range wherever the one layer that uses them can undo it."""
        for layer in self.layers:
            value = self.result(layer)
            users = self.users[value]
            if len(users) != 1 or users[0] not in self.layers:
                continue
            reached = np.abs(ranges[value]).max(axis=0)
            factor = np.minimum(reached.max() / np.maximum(reached, 1e-12), MOST_STRETCHED)
            for name in layer.input[1:]:
                # [channels] or, with a filter each, [channels, inputs, h, w].
                self.multiply(name, factor.reshape(-1, *[1] * (self.array(name).ndim - 1)))
            kernel = users[0].input[1]
            depthwise = self.array(kernel).shape[1] == 1
            self.multiply(kernel, 1 / factor.reshape((-1, 1, 1, 1) if depthwise else (-1, 1, 1)))

    def quantize(self, ranges: dict[str, np.ndarray]) -> None:
        """Puts `values` and kernels between a QuantizeLinear and a DequantizeLinear."""
        helper, made, constants = self.onnx.helper, [], []
        steps: dict[str, tuple[np.float32, np.uint8]] = {}  # scale and zero point, by value

        def dequantize(name: str, integers: Any, scale: Any, zero: Any, axis: int = 1) -> None:
            """A DequantizeLinear of a value (`integers` is its name) or of a constant."""
            if not isinstance(integers, str):
                constants.append(self.onnx.numpy_helper.from_array(integers, f"{name}.int"))
                integers = f"{name}.int"
            names = [f"{name}.step", f"{name}.zero"]
            constants.extend(map(self.onnx.numpy_helper.from_array, (scale, zero), names))
            inputs, output = [integers, *names], f"{name}.rounded"
            made.append(
                helper.make_node("DequantizeLinear", inputs, [output], name=output, axis=axis)
            )

        def round_value(name: str) -> None:
            maker = self.makers[name]
            if maker.op_type == "MaxPool":  # takes what is rounded already
                steps[name] = steps[maker.input[0].removesuffix(".rounded")]
            else:
                # Pixels go no further than they may.
                margin = 1.0 if maker.op_type == "Transpose" else MARGIN
                low, high = (
                    bound(initial=0) * margin for bound in (ranges[name].min, ranges[name].max)
                )
                scale = np.float32(max(high - low, 1e-12) / 255)
                steps[name] = scale, np.uint8(np.round(-low / scale))
            source = maker.input[0] if maker.op_type == "Relu" else name
            inputs = [source, f"{name}.step", f"{name}.zero"]
            made.append(
                helper.make_node("QuantizeLinear", inputs, [f"{name}.int"], name=f"{name}.int")
            )
            dequantize(name, f"{name}.int", *steps[name])

        for node in self.nodes:
            if node in self.layers:
                kernel, *bias = node.input[1:]
                axis = 0 if node.op_type == "Conv" else 1
                values = np.moveaxis(self.array(kernel), axis, -1)
                integers, scale = rounded_kernel(values)
                integers = np.ascontiguousarray(np.moveaxis(integers, -1, axis))
                dequantize(kernel, integers, scale, np.zeros(len(scale), np.int8), axis)
                for name in bias:  # at most one; as fine as the products that it is added to
                    fine = scale * steps[node.input[0]][0]
                    reach = np.iinfo(np.int32)
                    integers = np.clip(np.round(self.array(name) / fine), reach.min, reach.max)
                    zero = np.zeros(len(fine), np.int32)
                    dequantize(name, integers.astype(np.int32), fine, zero, 0)
                node.input[1:] = [f"{name}.rounded" for name in node.input[1:]]
            node.input[:] = [f"{n}.rounded" if n in steps else n for n in node.input]
            if node.op_type != "Relu":  # below, a zero point of 0 does what it does
                made.append(node)
            if node.output[0] in self.values:
                round_value(node.output[0])
        used = {name for node in made for name in node.input}
        kept = [array for name, array in self.arrays.items() if name in used]
        kept = [self.onnx.TensorProto.FromString(array.SerializeToString()) for array in kept]
        del self.model.graph.node[:], self.model.graph.initializer[:]
        self.model.graph.node.extend(made)
        self.model.graph.initializer.extend([*kept, *constants])
