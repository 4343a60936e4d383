"""fer_jax: facial emotion recognition, evaluated on unseen people and content."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fer_jax.inference.recognizer import Recognizer

__version__ = "0.1.0"

# OpenCV reads these when it is imported. A small image file can claim gigapixels.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(64_000_000))

# A video file may be a playlist that names other files and URLs: only containers in local files
# are opened. Messages of FFmpeg are off, because a damaged file is reported once, by the caller.
os.environ.setdefault(
    "OPENCV_FFMPEG_CAPTURE_OPTIONS",
    "protocol_whitelist;file|format_whitelist;mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,asf,flv",
)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")


def load(
    path: str | os.PathLike[str], engine: str = "", *, detector_model: str = ""
) -> "Recognizer":
    """Loads a trained model; `load(path).predict(image)` returns the faces and their emotions.

    Args:
      path: a run's workdir, one of its checkpoints (WORKDIR/checkpoints/STEP), a folder that
        `fer-jax export` wrote, or a file in it.
      engine: "jax", "onnxruntime" or "openvino"; "" chooses by the kind of file.
      detector_model: the file of the YuNet face detector; "" for the one in ~/.cache/fer_jax,
        which is downloaded when the first face is searched for.

    Raises:
      InputError: `path` holds no trained model, or it cannot be read.
    """
    # Imported here, so that commands without a network start without JAX.
    from fer_jax.inference import recognizer

    return recognizer.load(path, engine, detector_model=detector_model)
