"""fer_jax: facial emotion recognition that is tested on content it has never seen."""

import os

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
