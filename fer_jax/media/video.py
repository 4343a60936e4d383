"""Video files to frames: which frames are wanted, when each was shown, and what is missing.

Frames are decoded from the first to the last in order: seeking lands on other frames in many
containers, and only counting tells how many there really are.
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
DEFAULT_FPS = 25.0  # of a container that names none; only where its timestamps fail, too
ROUNDING_S = 0.0005  # Matroska's timestamps are whole milliseconds


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
      claimed: how many frames the container says it holds; 0 where it does not say, or what
        cannot be.
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
        claimed = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        # More frames than bytes is what a header says that was never completed.
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
        planned = self._equal_intervals(count, start_s, end_s) if count else []
        taken, last, last_stretch = 0, -1, -1.0
        for index, timestamp_s, exists in self._expected():
            reached_s = timestamp_s + ROUNDING_S
            stretch = (reached_s - start_s) // seconds if seconds else 0.0
            if count:
                wanted = taken < len(planned) and index == planned[taken]
            elif not start_s <= reached_s < end_s:
                wanted = False
            elif every:
                wanted = not taken or index == last + every
            else:
                wanted = stretch > last_stretch
            if wanted:
                taken, last, last_stretch = taken + 1, index, stretch
                done, image = self._capture.retrieve() if exists else (False, None)
                yield Frame(index, timestamp_s, image if done else None)

    def _expected(self) -> Iterator[tuple[int, float, bool]]:
        """(index, seconds, whether it is there) of each frame that is there or claimed to be.

        The one that is there was just decoded; time never stands still among them. Those that
        are only claimed follow at the container's rate.
        """
        index, timestamp = 0, -math.inf
        while self._capture.grab():
            told = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            # Frames without a timestamp say 0: they follow the one before.
            timestamp = told if told > timestamp else timestamp + 1 / self.fps
            yield index, timestamp, True
            index += 1
        self.decoded = index
        for index in range(self.decoded, self.claimed):
            yield index, index / self.fps, False

    def _equal_intervals(self, count: int, start_s: float, end_s: float) -> Sequence[int]:
        """The indices in the middles of `count` intervals."""
        inside: Sequence[int] = range(self.claimed)
        if not self.claimed or start_s > 0 or end_s < math.inf:
            # The container does not say how many there are (streams, cut recordings), or which
            # ones are in the window (rates vary): all are looked at once before.
            before_end = itertools.takewhile(
                lambda frame: frame[1] + ROUNDING_S < end_s, self._expected()
            )
            inside = [index for index, time_s, _ in before_end if start_s <= time_s + ROUNDING_S]
            self.close()
            self._open()
        if len(inside) <= count:
            return inside
        return [inside[(2 * i + 1) * len(inside) // (2 * count)] for i in range(count)]
