"""fer_jax: facial emotion recognition, evaluated on unseen people and content."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fer_jax.inference.recognizer import Recognizer

__version__ = "0.1.0"

# OpenCV reads these when it is imported; `media.images` checks sizes itself if that was before.
# A small image file may declare gigapixels; the limit is that of videos, too. FFmpeg's messages are
# off, because the caller reports a damaged file.
OPENCV_HAS_LIMIT = "cv2" not in sys.modules or "OPENCV_IO_MAX_IMAGE_PIXELS" in os.environ
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(64_000_000))
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")

# ONNX Runtime would send usage data from the moment it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def load(
    path: str | os.PathLike[str], engine: str = "", *, detector_model: str = ""
) -> "Recognizer":
    """Loads a trained model; `load(path).predict(image)` returns the faces and their emotions.

    `path` is a run's workdir, one of its checkpoints (WORKDIR/checkpoints/STEP), a folder that
    `fer-jax export` wrote, or a file in it. `engine` is "jax", "onnxruntime" or "openvino"; ""
    chooses by the kind of file. `detector_model` is the file of the YuNet face detector; "" for the
    one in ~/.cache/fer_jax, which is downloaded when it is first needed. Raises InputError if
    `path` has no trained model, or it cannot be read.
    """
    # Imported here, so that commands without a network start without JAX.
    from fer_jax.inference import recognizer

    return recognizer.load(path, engine, detector_model=detector_model)
