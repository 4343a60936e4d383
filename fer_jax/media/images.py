"""Image files to uint8 RGB arrays and back; sizes are checked before anything is decoded."""

import base64
import io
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
from av import error as av_error

import fer_jax
from fer_jax.errors import InputError
from fer_jax.schema import JPEG_QUALITY, MAX_IMAGE_SIZE

MAX_FILE_BYTES = 64 * 2**20
TOO_LARGE = f"file over {MAX_FILE_BYTES // 2**20} MiB"
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".avif"),
    *(".tif", ".tiff", ".pgm", ".ppm", ".heic", ".heif"),  # the last two are refused with advice
)
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a JPEG; the others are data or restarts
GREY_RANGE = 8  # levels between the channels of a pixel that encoding may add to grey
GREY = 128  # of the pixels that a JPEG lacks, as OpenCV fills them
BLOCK = 8  # pixels of a side that a JPEG encodes together
PADDING = bytes(range(255)) * 4
STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def is_still(name: str) -> bool:
    """Whether a file's ending is of pictures that do not move, which FFmpeg takes for clips."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.lower().endswith(".gif")


def is_picture(path: Path) -> bool:
    """Whether a file begins as a picture does, whatever its ending."""
    try:
        with path.open("rb") if path.is_file() else io.BytesIO() as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(STARTS) or (head[:4], head[8:]) == (b"RIFF", b"WEBP")


def decode(data: bytes) -> np.ndarray:
    """Decodes JPEG, PNG, BMP, GIF, WebP, AVIF, TIFF or PNM to uint8 RGB [height, width, 3].

    Grey and 16-bit images are converted; alpha is dropped. Raises InputError if it is empty, too
    large, truncated, or not an image; the reason in a few words.
    """
    if not data:
        raise InputError("empty file")
    if len(data) > MAX_FILE_BYTES:
        raise InputError(TOO_LARGE)
    is_jpeg = data[:2] == b"\xff\xd8"
    end, progressive = _end_of_jpeg(data) if is_jpeg else (0, False)
    if end < 0:
        raise InputError("truncated JPEG")
    image = _decode(data)
    # OpenCV fills what a JPEG lacks with grey, or leaves it blurred, without an error, and the end
    # mark may be a fake. Bytes before the mark change a picture only if some are missing there.
    if progressive:
        whole = _is_whole(data[: end + 2])
    elif is_jpeg and _has_grey_corner(image):
        whole = np.array_equal(_decode(data[:end] + PADDING + data[end:]), image)
    else:
        whole = True
    if not whole:
        raise InputError("truncated JPEG")
    return image


def _has_grey_corner(image: np.ndarray) -> bool:
    """Whether a corner may be a block that is missing; the last one is in any, once turned."""
    # Half a block at most: colours of its neighbours bleed into it.
    side = max(1, min(length % BLOCK or BLOCK for length in image.shape[:2]) // 2)
    ends = (slice(None, side), slice(-side, None))
    return any((image[y, x] == GREY).all() for y in ends for x in ends)


def _decode(data: bytes) -> np.ndarray:
    if not fer_jax.OPENCV_HAS_LIMIT:
        _check_size(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        if "pixels" in str(error).lower():
            raise InputError(_over_limit()) from error
        raise InputError("unreadable image") from error
    if image is None and data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        raise InputError("HEIC is not supported; save the picture as JPEG or PNG")
    if image is None:
        raise InputError("unreadable image")
    return image


def _over_limit() -> str:
    limit = os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]
    return f"over the limit of {limit} pixels; OPENCV_IO_MAX_IMAGE_PIXELS=N raises it"


def _check_size(data: bytes) -> None:
    """Refuses an image whose header declares too many pixels, or that Pillow cannot read."""
    from PIL import Image  # only where OpenCV does not check

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow has a limit of its own
            width, height = Image.open(io.BytesIO(data)).size
    except Image.DecompressionBombError as error:
        raise InputError(_over_limit()) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError("unreadable image") from error
    if width * height > int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]):
        raise InputError(_over_limit())


def _is_whole(jpeg: bytes) -> bool:
    """Whether FFmpeg, which is stricter, decodes a JPEG to its end; it does not know all kinds."""
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": "explode"}
    try:
        decoder.decode(av.Packet(jpeg))
    except (av_error.PatchWelcomeError, av_error.NotImplementedError):
        return True
    except av_error.FFmpegError:
        return False
    return True


def _end_of_jpeg(data: bytes) -> tuple[int, bool]:
    """Returns where a JPEG's end mark is, or -1, and whether its scans refine one picture.

    Thumbnails before the pixels end with the same mark, and after it may come anything: a phone's
    moving picture is a JPEG with a video behind it.
    """
    place, progressive = 2, False
    while found := MARKER.search(data, place):
        place, kind = found.start(), data[found.start() + 1]
        if kind == 0xD9:
            return place, progressive
        progressive = progressive or kind in (0xC2, 0xC6, 0xCA, 0xCE)
        place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return -1, progressive


def read(path: Path) -> np.ndarray:
    """Decodes an image file as `decode` does; InputError also if there is no such file."""
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
    return encode(image, ".jpg", options)


def encode(image: np.ndarray, suffix: str, options: Sequence[int] = ()) -> bytes:
    """Encodes uint8 RGB [height, width, 3] as ".jpg" or ".png", with options of OpenCV."""
    done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"could not encode an image of shape {image.shape}")
    return data.tobytes()


def is_grey(image: np.ndarray, largest: int = GREY_RANGE) -> bool:
    """Whether the channels of all pixels, uint8 [..., 3], are within so many levels."""
    return bool(np.ptp(image, axis=-1).max() <= largest)


def data_uri(data: bytes, kind: str = "jpeg") -> str:
    """Returns an image file's bytes as the URL of an image in a page."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def centre_square(height: int, width: int) -> tuple[int, int, int]:
    """Returns the largest square in the middle of an image: (left, top, side) in pixels."""
    side = min(height, width)
    return (width - side) // 2, (height - side) // 2, side


def square(image: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Crops the centre square of a uint8 image [height, width, 3], reduced to a record's size.

    Returns uint8 [s, s, 3] with s <= 256, and its box (x, y, width, height) in pixels of the input.
    """
    left, top, side = centre_square(*image.shape[:2])
    face = image[top : top + side, left : left + side]
    if side > MAX_IMAGE_SIZE:
        face = cv2.resize(face, (MAX_IMAGE_SIZE, MAX_IMAGE_SIZE), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(face), (float(left), float(top), float(side), float(side))


def resized(face: np.ndarray, size: int, *, out: np.ndarray | None = None) -> np.ndarray:
    """Resizes a uint8 face to `size` pixels a side: averages to reduce, linear to enlarge."""
    interpolation = cv2.INTER_AREA if face.shape[0] > size else cv2.INTER_LINEAR
    return cv2.resize(face, (size, size), dst=out, interpolation=interpolation)
