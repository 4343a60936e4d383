"""fer_jax: facial emotion recognition that is tested on content it has never seen."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fer_jax.inference.recognizer import Recognizer

__version__ = "0.1.0"

# OpenCV reads this once, when it is imported: a small image file can claim gigapixels.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(64_000_000))

# Video files may be playlists that name other files and addresses: only containers are opened,
# and only files. What FFmpeg thinks of a damaged file is said once, by us.
os.environ.setdefault(
    "OPENCV_FFMPEG_CAPTURE_OPTIONS",
    "protocol_whitelist;file|format_whitelist;mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,asf,flv",
)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")


def load(
    path: str | os.PathLike[str], engine: str = "", *, detector_model: str = ""
) -> "Recognizer":
    """Opens a trained model, to be used on whatever there is: `load(path).predict(picture)`.

    Args:
      path: a run's workdir, one of its checkpoints (WORKDIR/checkpoints/STEP), the folder that
        `fer-jax export` wrote, or a file in it.
      engine: "jax", "onnxruntime" or "openvino"; "" for the one that the kind of file is for.
      detector_model: the file of the YuNet face detector; "" for the one in ~/.cache/fer_jax,
        which is fetched once, when a face is to be found for the first time.

    Returns:
      A `fer_jax.inference.recognizer.Recognizer`.

    Raises:
      InputError: nothing that was trained is there, or it cannot be read.
    """
    # Here, so that what needs no network starts without JAX.
    from fer_jax.inference import recognizer

    return recognizer.load(path, engine, detector_model=detector_model)
