"""The YuNet detector in ONNX Runtime, which takes half as long as in OpenCV."""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from fer_jax.errors import InputError
from fer_jax.media import faces

STRIDES = (8, 16, 32)  # of the three grids of cells, in pixels
MAX_CANDIDATES = 5000  # as in OpenCV

# float32 BGR [1, 3, h, w], h and w multiples of 32 -> the network's outputs by name
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def make_detector(model: str) -> faces.Detector:
    """Returns YuNet in ONNX Runtime if it is installed, else in OpenCV; they differ by rounding.

    `model` is its file; "" for the cached or downloaded one.

    Raises:
      InputError: the file is not available, or is not this network.
    """
    if find_spec("onnxruntime") and find_spec("onnx"):
        return in_onnxruntime(faces.detector_model(model))
    return faces.make_detector("yunet", model)


@functools.lru_cache(maxsize=4)
def in_onnxruntime(file: Path) -> faces.Detector:
    """Returns `faces.yunet` in ONNX Runtime.

    Raises:
      InputError: the file is not this network.
    """
    try:
        run = _load(file)
    except Exception as error:  # errors of ONNX Runtime have no narrower base
        raise InputError(f"'{file}' is not the YuNet detector") from error

    def detect(image: np.ndarray, size: int) -> list[faces.Face]:
        small, scale = faces.searched(image, size)
        height, width = (-(-side // 32) * 32 for side in small.shape[:2])
        batch = np.zeros((1, 3, height, width), np.float32)
        batch[0, :, : small.shape[0], : small.shape[1]] = small.transpose(2, 0, 1)
        boxes, landmarks, scores = _candidates(run(batch), width)
        # As in OpenCV, with whole pixels.
        kept = cv2.dnn.NMSBoxes(
            boxes.astype(np.int32).tolist(),
            scores.tolist(),
            faces.MIN_SCORE,
            faces.MAX_OVERLAP,
            top_k=MAX_CANDIDATES,
        )
        return [
            faces.Face(
                (x / scale, y / scale, w / scale, h / scale),
                float(scores[number]),
                landmarks[number] / np.float32(scale),
            )
            for number in map(int, kept)
            for x, y, w, h in [boxes[number].tolist()]
        ]

    try:
        detect(np.zeros((64, 64, 3), np.uint8), faces.LARGE_FACES)
    except Exception as error:
        raise InputError(f"'{file}' is not the YuNet detector") from error
    return detect


def _candidates(
    outputs: dict[str, np.ndarray], width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decodes the cells of all grids that have a face.

    Args:
      outputs: "cls", "obj", "bbox" and "kps" for each stride.
      width: of the input, in pixels.

    Returns:
      (float32 [n, 4], float32 [n, 5, 2], float32 [n]): x, y, width, height; landmarks; scores.
    """
    found = []
    for stride in STRIDES:
        cls, obj, bbox, kps = (
            outputs[f"{name}_{stride}"][0] for name in ("cls", "obj", "bbox", "kps")
        )
        scores = np.sqrt(np.clip(cls, 0, 1) * np.clip(obj, 0, 1))[:, 0]
        cells = np.flatnonzero(scores >= faces.MIN_SCORE)
        corner = np.stack(np.divmod(cells, width // stride)[::-1], axis=1)  # (column, row)
        size = np.exp(bbox[cells, 2:])
        boxes = np.concatenate([corner + bbox[cells, :2] - size / 2, size], axis=1) * stride
        landmarks = (corner[:, None] + kps[cells].reshape(-1, 5, 2)) * stride
        found.append((boxes.astype(np.float32), landmarks.astype(np.float32), scores[cells]))
    boxes, landmarks, scores = map(np.concatenate, zip(*found, strict=True))
    return boxes, landmarks, scores


def _load(file: Path) -> Run:
    import onnx
    import onnxruntime

    # The file declares one size, but the network does not depend on it.
    model = onnx.load(str(file))
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim[1 if value in model.graph.output else 2 :]:
            axis.dim_param = "any"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Callers search images in a thread per core.
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    input_name = session.get_inputs()[0].name

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return dict(
            zip(names, map(np.asarray, session.run(names, {input_name: batch})), strict=True)
        )

    return run
