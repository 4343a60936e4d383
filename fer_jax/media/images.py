"""Image files to uint8 RGB arrays and back; sizes are checked before anything is decoded."""

from pathlib import Path

import cv2
import numpy as np

from fer_jax.errors import InputError
from fer_jax.schema import JPEG_QUALITY, MAX_IMAGE_SIZE

MAX_FILE_BYTES = 64 * 2**20
TOO_LARGE = f"file over {MAX_FILE_BYTES // 2**20} MiB"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")


def decode(data: bytes) -> np.ndarray:
    """Decodes JPEG, PNG, BMP, WebP, TIFF or PNM to uint8 RGB [height, width, 3].

    Grey and 16-bit images are converted; alpha is dropped.

    Raises:
      InputError: empty, too large, truncated, or not an image; the reason in a few words.
    """
    if not data:
        raise InputError("empty file")
    if len(data) > MAX_FILE_BYTES:
        raise InputError(TOO_LARGE)
    # OpenCV fills the missing part of a JPEG with grey, without an error.
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-1024:]:
        raise InputError("truncated JPEG")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        if "pixels" in str(error).lower():
            raise InputError("too many pixels") from error
        raise InputError("unreadable image") from error
    if image is None:
        raise InputError("unreadable image")
    return image


def read(path: Path) -> np.ndarray:
    """Decodes an image file, see `decode`.

    Raises:
      InputError: no such file, or see `decode`; the reason in a few words.
    """
    try:
        if not path.is_file():
            raise InputError("is a folder" if path.is_dir() else "no such file")
        # Checked before the file is read into memory.
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(TOO_LARGE)
        return decode(path.read_bytes())
    except OSError as error:
        raise InputError((error.strerror or str(error)).lower()) from error


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encodes uint8 RGB [height, width, 3] as JPEG for a record, without chroma subsampling."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"could not encode an image of shape {image.shape}")
    return data.tobytes()


def centre_square(height: int, width: int) -> tuple[int, int, int]:
    """Returns the largest square in the middle of an image: (left, top, side) in pixels."""
    side = min(height, width)
    return (width - side) // 2, (height - side) // 2, side


def square(image: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Crops the centre square of a uint8 image [height, width, 3], reduced to a record's size.

    Returns:
      (uint8 [s, s, 3] with s <= 256, its box (x, y, width, height) in pixels of the input).
    """
    left, top, side = centre_square(*image.shape[:2])
    face = image[top : top + side, left : left + side]
    if side > MAX_IMAGE_SIZE:
        face = cv2.resize(face, (MAX_IMAGE_SIZE, MAX_IMAGE_SIZE), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(face), (float(left), float(top), float(side), float(side))


def resized(face: np.ndarray, size: int, *, out: np.ndarray | None = None) -> np.ndarray:
    """Resizes a uint8 face [height, width, 3] to `size` pixels a side, into `out` if given.

    Averages to reduce, interpolates linearly to enlarge.
    """
    interpolation = cv2.INTER_AREA if face.shape[0] > size else cv2.INTER_LINEAR
    return cv2.resize(face, (size, size), dst=out, interpolation=interpolation)
