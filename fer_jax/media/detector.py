"""Face detectors: YuNet in OpenCV or ONNX Runtime, and OpenCV's cascade; YuNet's file."""

import functools
import hashlib
import http.client
import math
import os
import threading
import urllib.request
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from fer_jax import storage
from fer_jax.errors import InputError, did_you_mean
from fer_jax.media.faces import LARGE_FACES, Detector, Face
from fer_jax.media.images import resized, square

DETECTORS = ("yunet", "haar", "boxes", "none")

# The detector of OpenCV's zoo (MIT).
YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_URL = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/main/models/"
    f"face_detection_yunet/{YUNET_FILE}"
)
YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
YUNET_MAX_BYTES = 4 * 2**20
DOWNLOAD_TIMEOUT_S = 30

MIN_SCORE = 0.6
MAX_OVERLAP = 0.3  # of two faces (intersection over union)
# Smaller images are enlarged to this many pixels at their longer side, because faces are missed
# there (48 px crops: 0.75 against 0.96).
SEARCHED_SIZE = 256
STRIDES = (8, 16, 32)  # of YuNet's three grids of cells, in pixels
MAX_CANDIDATES = 5000  # as in OpenCV
SAMPLED = 24  # images of a dataset that show its framing
# At which they are searched: a fifth of the time at 256, and medians that differ by up to 0.03.
SAMPLED_SIZE = 96

# uint8 BGR image at the size at which it is searched, pixels a side of the smallest face that is
# wanted -> box, score and landmarks of each face
Find = Callable[[np.ndarray, float], Iterable[tuple[Iterable[float], float, np.ndarray | None]]]


@functools.lru_cache(maxsize=8)
def make_detector(
    name: str, model: str = "", *, fast: bool = False, smallest: float = 0.0
) -> Detector:
    """Returns the detector "yunet" (Wu et al. 2023) or "haar" (Viola and Jones 2001).

    `model` is YuNet's file; "" for the cached or downloaded one. `fast` runs YuNet in ONNX Runtime
    if that is installed, in half the time. Its boxes differ by rounding, so datasets are built
    without it: they must not depend on what is installed. The cascade looks for no face that is
    smaller than `smallest` pixels a side, which takes less time. Raises InputError for an unknown
    detector, or if its file is not available or is another file.
    """
    if name == "haar":
        return _at_search_size(_haar(), smallest)
    if name != "yunet":
        raise InputError(f"unknown detector '{name}'{did_you_mean(name, DETECTORS)}")
    file = detector_model(model)
    fast = bool(fast and find_spec("onnxruntime") and find_spec("onnx"))
    try:
        detect = _at_search_size(_yunet_onnxruntime(file) if fast else _yunet_opencv(file))
        detect(np.zeros((64, 64, 3), np.uint8), LARGE_FACES)
    except Exception as error:  # errors of ONNX Runtime have no narrower base
        raise InputError(f"'{file}' is not the YuNet detector; get it from {YUNET_URL}") from error
    return detect


def detector_model(given: str) -> Path:
    """Returns the file of the YuNet detector: the given one, the cached one, or downloads it.

    The cache is ~/.cache/fer_jax (XDG_CACHE_HOME). A download is checked by its SHA-256. Raises
    InputError if there is no such file, or it could not be downloaded.
    """
    if given:
        if not Path(given).is_file():
            raise InputError(f"--detector_model '{given}' does not exist; get it from {YUNET_URL}")
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fer_jax"
    file = cache / YUNET_FILE
    if file.is_file() and _is_yunet(file.read_bytes()):
        return file
    remedy = (
        f"download {YUNET_URL} to {cache} or name the file with --detector_model=FILE; if each "
        "image is one face, build with --detector=none and predict with --faces=crop"
    )
    try:
        with urllib.request.urlopen(YUNET_URL, timeout=DOWNLOAD_TIMEOUT_S) as response:
            data = response.read(YUNET_MAX_BYTES)
        if not _is_yunet(data):
            raise InputError(
                f"the face detector's URL has another file than the known detector; {remedy}"
            )
        storage.write_atomically(file, data)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise InputError(
            f"the face detector could not be downloaded ({reason}); {remedy}"
        ) from error
    return file


def _is_yunet(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == YUNET_SHA256


def _at_search_size(find: Find, smallest: float = 0.0) -> Detector:
    """Resizes images for `find` and scales what it finds back."""

    def detect(image: np.ndarray, size: int) -> list[Face]:
        longest = max(image.shape[:2])
        scale = min(max(longest, SEARCHED_SIZE), size) / longest
        if scale != 1:
            shape = [max(1, round(side * scale)) for side in image.shape[1::-1]]
            interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            image = cv2.resize(image, shape, interpolation=interpolation)
        return [
            Face(
                (x / scale, y / scale, width / scale, height / scale),
                score,
                None if landmarks is None else landmarks / np.float32(scale),
            )
            for (x, y, width, height), score, landmarks in find(image, smallest * scale)
        ]

    return detect


def framing(sample: Iterable[np.ndarray]) -> float:
    """Returns how much of a square image's side its largest face takes, the median of a sample.

    `sample` are up to `SAMPLED` uint8 RGB images, which are cut to squares. NaN if OpenCV's
    cascade finds faces in no more than a third as many.
    """
    find, shares = _haar(), []
    for image in sample:
        face = resized(square(image)[0], SAMPLED_SIZE)
        bgr = cv2.cvtColor(face, cv2.COLOR_RGB2BGR)
        sizes = [max(box) for (_, _, *box), *_ in find(bgr, 0.0)]
        shares += [max(sizes) / SAMPLED_SIZE] if sizes else []
    return float(np.median(shares)) if len(shares) > SAMPLED // 3 else math.nan


def _haar() -> Find:
    """OpenCV's cascade of frontal faces, one per thread."""
    # OpenCV's type stubs lack this attribute.
    folder = getattr(cv2, "data").haarcascades  # noqa: B009 (see above)
    cascades = threading.local()

    def find(image: np.ndarray, smallest: float) -> Iterable[tuple[Iterable[float], float, None]]:
        if not hasattr(cascades, "one"):
            cascades.one = cv2.CascadeClassifier(folder + "haarcascade_frontalface_default.xml")
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        side = max(24, round(smallest))
        for box in cascades.one.detectMultiScale(grey, 1.1, 5, minSize=(side, side)):
            yield box, 1.0, None

    return find


def _yunet_opencv(file: Path) -> Find:
    """YuNet in OpenCV, one network per thread."""
    networks = threading.local()

    def find(image: np.ndarray, _: float) -> Iterable[tuple[Iterable[float], float, np.ndarray]]:
        if not hasattr(networks, "one"):
            networks.one = cv2.FaceDetectorYN.create(
                str(file), "", (320, 320), MIN_SCORE, MAX_OVERLAP
            )
        networks.one.setInputSize(image.shape[1::-1])
        rows = networks.one.detect(image)[1]
        for row in [] if rows is None else rows:
            yield row[:4], float(row[-1]), row[4:-1].reshape(5, 2)

    return find


def _yunet_onnxruntime(file: Path) -> Find:
    """YuNet in ONNX Runtime, one thread per call: callers search images in a thread per core."""
    import onnx
    import onnxruntime

    # The file declares one size, but the network does not depend on it.
    model = onnx.load(str(file))
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim[1 if value in model.graph.output else 2 :]:
            axis.dim_param = "any"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    input_name = session.get_inputs()[0].name

    def find(image: np.ndarray, _: float) -> Iterable[tuple[Iterable[float], float, np.ndarray]]:
        height, width = (-(-side // 32) * 32 for side in image.shape[:2])
        batch = np.zeros((1, 3, height, width), np.float32)
        batch[0, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
        outputs = map(np.asarray, session.run(names, {input_name: batch}))
        boxes, landmarks, scores = _candidates(dict(zip(names, outputs, strict=True)), width)
        # As in OpenCV, with whole pixels.
        kept = cv2.dnn.NMSBoxes(
            boxes.astype(np.int32).tolist(),
            scores.tolist(),
            MIN_SCORE,
            MAX_OVERLAP,
            top_k=MAX_CANDIDATES,
        )
        for number in map(int, kept):
            yield boxes[number].tolist(), float(scores[number]), landmarks[number]

    return find


def _candidates(
    outputs: dict[str, np.ndarray], width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decodes the cells of all grids that have a face: x, y, width, height; landmarks; scores.

    `outputs` are "cls", "obj", "bbox" and "kps" for each stride, `width` is the input's in pixels.
    Returns float32 [n, 4], [n, 5, 2] and [n].
    """
    found = []
    for stride in STRIDES:
        cls, obj, bbox, kps = (
            outputs[f"{name}_{stride}"][0] for name in ("cls", "obj", "bbox", "kps")
        )
        scores = np.sqrt(np.clip(cls, 0, 1) * np.clip(obj, 0, 1))[:, 0]
        cells = np.flatnonzero(scores >= MIN_SCORE)
        corner = np.stack(np.divmod(cells, width // stride)[::-1], axis=1)  # (column, row)
        size = np.exp(bbox[cells, 2:])
        boxes = np.concatenate([corner + bbox[cells, :2] - size / 2, size], axis=1) * stride
        landmarks = (corner[:, None] + kps[cells].reshape(-1, 5, 2)) * stride
        found.append((boxes.astype(np.float32), landmarks.astype(np.float32), scores[cells]))
    boxes, landmarks, scores = map(np.concatenate, zip(*found, strict=True))
    return boxes, landmarks, scores
