"""fer_jax: facial emotion recognition that is tested on content it has never seen."""

import os

__version__ = "0.1.0"

# OpenCV reads this once, when it is imported: a small image file can claim gigapixels.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(64_000_000))
