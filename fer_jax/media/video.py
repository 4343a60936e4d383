"""Video files to frames: which frames are wanted, when each was shown, and what is missing.

Frames are decoded from the first to the last in order: seeking lands on other frames in many
containers, and only counting tells how many there really are.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from fer_jax.errors import InputError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv")
MAX_FRAME_PIXELS = 64_000_000
DEFAULT_FPS = 25.0  # of a container that names none; only where its timestamps fail, too


class Frame(NamedTuple):
    """One wanted frame.

    Attributes:
      index: counted from 0 in the file.
      timestamp_s: when it is shown, in seconds from the start, as the container says.
      image: uint8 BGR [height, width, 3]; None where the file ended before it.
    """

    index: int
    timestamp_s: float
    image: np.ndarray | None


class Video:
    """An opened video file; close it, or use it in a `with`.

    Attributes:
      claimed: how many frames the container says it holds; 0 where it does not say.
      decoded: how many frames there were, known after `frames` has come to its end.
      fps: frames per second as the container says.
      width: of a frame, pixels.
      height: of a frame, pixels.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file with one decoding thread.

        Raises:
          InputError: missing, empty, or nothing that FFmpeg can decode a picture from.
        """
        self._path = path
        if not path.is_file():
            raise InputError("no such file")
        if not path.stat().st_size:
            raise InputError("empty file")
        self._open()
        self.claimed = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.decoded = 0
        if self.width * self.height > MAX_FRAME_PIXELS:
            self.close()
            raise InputError(f"frames of {self.width} x {self.height} pixels are too large")

    def _open(self) -> None:
        # An absolute path is never read as a URL. One thread: clips are worked on side by side.
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
        """The wanted frames in order; exactly one of `count`, `every` and `seconds` is given.

        Args:
          count: so many frames at equal intervals, each in the middle of its interval; all of
            them where the clip is shorter.
          every: every k-th frame, from the first.
          seconds: the first frame of each stretch of so many seconds.
          start_s: nothing earlier.
          end_s: nothing from here on.

        Yields:
          `Frame`s. What the container claims to hold and does not comes last, without an
          image: as many frames come as were to be expected.
        """
        if not (count or every or seconds > 0):
            raise ValueError("one of count, every and seconds must be above 0")
        planned = self._equal_intervals(count, start_s, end_s) if count else None
        taken, last, index = 0, None, -1
        due_s = start_s  # with `seconds`: when the next frame is due
        for index, timestamp_s in self._grabbed():
            if planned is not None:
                wanted = taken < len(planned) and index == planned[taken]
            elif not start_s <= timestamp_s < end_s:
                wanted = False
            elif every:
                wanted = last is None or index == last + every
            else:
                # Within a microsecond: containers round their timestamps.
                wanted = timestamp_s > due_s - 1e-6
            if wanted:
                taken, last = taken + 1, index
                while seconds and due_s <= timestamp_s + 1e-6:
                    due_s += seconds
                done, image = self._capture.retrieve()
                yield Frame(index, timestamp_s, image if done else None)
        self.decoded = index + 1
        if planned is None:
            step = every or max(1, round(seconds * self.fps))
            first, stop = self._window(self.claimed, start_s, end_s)
            following = first if last is None else last + step
            missing = range(max(following, self.decoded), stop, step)
        else:
            missing = planned[taken:]
        for index in missing:
            yield Frame(index, index / self.fps, None)

    def _grabbed(self) -> Iterator[tuple[int, float]]:
        """Decodes frame after frame: (index, seconds); the time never stands still."""
        index, timestamp = 0, -math.inf
        while self._capture.grab():
            told = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            # Frames without a timestamp say 0: they follow the one before.
            timestamp = told if told > timestamp else timestamp + 1 / self.fps
            yield index, timestamp
            index += 1

    def _equal_intervals(self, count: int, start_s: float, end_s: float) -> list[int]:
        total = self.claimed
        if not total:
            # The container does not say (streams, cut recordings): count, then start again.
            total = sum(1 for _ in self._grabbed())
            self.close()
            self._open()
        first, stop = self._window(total, start_s, end_s)
        length = stop - first
        if length <= count:
            return list(range(first, stop))
        return [first + int((i + 0.5) * length / count) for i in range(count)]

    def _window(self, total: int, start_s: float, end_s: float) -> tuple[int, int]:
        """First index and end of the window among `total` frames, at the container's rate."""

        def index(time_s: float) -> int:
            return min(total, math.ceil(min(time_s * self.fps, total) - 1e-6))

        first = index(start_s)
        return first, max(first, index(end_s))
