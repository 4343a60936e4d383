"""Video files to frames with their timestamps; missing frames are reported.

Frames are decoded in order from the first: seeking leads to other frames in many containers, and
only counting shows how many there are.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from fer_jax.errors import InputError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv")
MAX_FRAME_PIXELS = 64_000_000
DEFAULT_FPS = 25.0  # of a container without a rate; used only where timestamps are missing, too
ROUNDING_S = 0.0005  # Matroska's timestamps are whole milliseconds


class Frame(NamedTuple):
    """One chosen frame.

    Attributes:
      index: counted from 0 in the file.
      timestamp_s: in seconds from the start, from the container.
      image: uint8 BGR [height, width, 3]; None if the file ends before it.
    """

    index: int
    timestamp_s: float
    image: np.ndarray | None


class Video:
    """An open video file, a context manager.

    Attributes:
      claimed: number of frames by the container; 0 if unknown or impossible.
      decoded: number of frames that were decoded, known when `frames` is exhausted.
      fps: frames per second by the container.
      width, height: of a frame, in pixels.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file with one decoding thread.

        Raises:
          InputError: missing, empty, or FFmpeg cannot decode a frame of it.
        """
        self._path = path
        if not path.is_file():
            raise InputError("no such file")
        if not path.stat().st_size:
            raise InputError("empty file")
        self._open()
        claimed = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        # The header of an incomplete file may claim more frames than it has bytes.
        self.claimed = claimed if 0 < claimed <= path.stat().st_size else 0
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.decoded = 0
        if self.width * self.height > MAX_FRAME_PIXELS:
            self.close()
            raise InputError(f"frames of {self.width} x {self.height} pixels are too large")

    def _open(self) -> None:
        # An absolute path is not taken for a URL. One thread, because clips run in parallel.
        options = [cv2.CAP_PROP_N_THREADS, 1]
        self._capture = cv2.VideoCapture(str(self._path.resolve()), cv2.CAP_FFMPEG, options)
        if not self._capture.isOpened():
            raise InputError("not a video, or damaged")

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the decoder."""
        self._capture.release()

    def frames(
        self,
        *,
        count: int = 0,
        every: int = 0,
        seconds: float = 0.0,
        start_s: float = 0.0,
        end_s: float = math.inf,
    ) -> Iterator[Frame]:
        """Yields frames in order; exactly one of `count`, `every` and `seconds` is given.

        Frames that the container claims but lacks come last, without an image.

        Args:
          count: so many frames, each in the middle of one of as many equal intervals; all frames
            of a shorter clip.
          every: every k-th frame, from the first.
          seconds: the first frame of each interval of so many seconds.
          start_s: no earlier frame.
          end_s: no frame from here on.
        """
        if not (count or every or seconds > 0):
            raise ValueError("one of count, every and seconds must be above 0")
        planned = self._equal_intervals(count, start_s, end_s) if count else []
        num_chosen, last, last_interval = 0, -1, -1.0
        for index, timestamp_s, exists in self._expected():
            reached_s = timestamp_s + ROUNDING_S
            interval = (reached_s - start_s) // seconds if seconds else 0.0
            if count:
                chosen = num_chosen < len(planned) and index == planned[num_chosen]
            elif not start_s <= reached_s < end_s:
                chosen = False
            elif every:
                chosen = not num_chosen or index == last + every
            else:
                chosen = interval > last_interval
            if chosen:
                num_chosen, last, last_interval = num_chosen + 1, index, interval
                done, image = self._capture.retrieve() if exists else (False, None)
                yield Frame(index, timestamp_s, image if done else None)

    def _expected(self) -> Iterator[tuple[int, float, bool]]:
        """Yields (index, seconds, whether it exists) of each frame that exists or is claimed.

        An existing frame was just grabbed, and its time is later than the one before. Claimed
        frames follow at the container's rate.
        """
        index, timestamp = 0, -math.inf
        while self._capture.grab():
            stated = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            # Frames without a timestamp state 0; they follow the one before at the rate.
            timestamp = stated if stated > timestamp else timestamp + 1 / self.fps
            yield index, timestamp, True
            index += 1
        self.decoded = index
        for index in range(self.decoded, self.claimed):
            yield index, index / self.fps, False

    def _equal_intervals(self, count: int, start_s: float, end_s: float) -> Sequence[int]:
        """Returns the frames in the middles of `count` intervals."""
        inside: Sequence[int] = range(self.claimed)
        if not self.claimed or start_s > 0 or end_s < math.inf:
            # The container does not state how many frames there are (streams, cut recordings), or
            # which ones are in the window (rates vary): a first pass reads all timestamps.
            before_end = itertools.takewhile(
                lambda frame: frame[1] + ROUNDING_S < end_s, self._expected()
            )
            inside = [index for index, time_s, _ in before_end if start_s <= time_s + ROUNDING_S]
            self.close()
            self._open()
        if len(inside) <= count:
            return inside
        return [inside[(2 * i + 1) * len(inside) // (2 * count)] for i in range(count)]
