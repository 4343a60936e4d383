"""Video files and cameras to frames with their timestamps; missing frames are reported.

The packets of a file are listed first, without decoding: only they tell which frames are shown, and
when. Headers count frames that an edit list cuts off, and state rates that vary.
"""

import collections
import contextlib
import functools
import itertools
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition, Stream

from fer_jax.errors import InputError

VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".3gp", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv"),
    *(".mts", ".m2ts", ".ogv"),
)
# A video file may be a playlist that names other files and URLs: only containers in local files
# are opened.
CONTAINERS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,asf,flv,ogg",
}
SKIPS = ("h264", "hevc")  # decoders that can leave out frames without an effect on others
MAX_CLAIMED = 10_000_000  # frames; four days of them
DEFAULT_FPS = 25.0  # of a container without a rate; used only where timestamps are missing, too
ROUNDING_S = 0.0005  # Matroska's timestamps are whole milliseconds
CAMERA_TIMEOUT_S = 5.0
TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, -90: cv2.ROTATE_90_CLOCKWISE}


class Frame(NamedTuple):
    """One chosen frame."""

    index: int  # counted from 0 in the file
    timestamp_s: float  # from the first frame, from the container
    # uint8 BGR [height, width, 3]; None if the file ends before it, or is damaged there.
    image: np.ndarray | None


def frame_image(frame: Frame) -> np.ndarray:
    """Returns a frame's image; InputError if there is none."""
    if frame.image is None:
        raise InputError("the file ends before this frame, or is damaged there")
    return frame.image


class _Shown(NamedTuple):
    """The frames that a file shows, in order, and those that it claims after its end."""

    times: np.ndarray  # float64 [frames], in seconds from the first
    end_s: float  # when the last one ends
    tick_s: float  # the unit of the timestamps
    present: int  # number of them that are in the file
    stamps: np.ndarray  # int64 [present], the container's timestamps
    keys: np.ndarray  # int64, sorted, those of the frames at which decoding can begin
    in_order: bool  # whether decoded frames are known by their order, not by their timestamps


class Video:
    """An open video file, a context manager.

    `fps` and `expected_s`, the length (0 if unknown), are the container's; `width` and `height` are
    pixels of a frame, as it is shown when one has been decoded.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file with one decoding thread; InputError if it is no video, or too large."""
        if not path.is_file():
            raise InputError("no such file")
        self._num_bytes = path.stat().st_size
        if not self._num_bytes:
            raise InputError("empty file")
        # Opened here: FFmpeg takes some names for URLs, and a file may be deleted while it is read.
        self._file = path.open("rb")
        self._open()
        context = self._stream.codec_context
        self.width, self.height = context.width, context.height
        if context.width * context.height > _max_pixels():
            self.close()
            raise InputError(
                f"frames of {self.width} x {self.height} pixels are over the limit of "
                f"{_max_pixels()} pixels; OPENCV_IO_MAX_IMAGE_PIXELS=N raises it"
            )
        fps = float(self._stream.average_rate or self._stream.guessed_rate or 0)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS
        self.expected_s = max(0.0, self._stated_end_s())

    def _open(self) -> None:
        self._file.seek(0)
        try:
            self._container = av.open(
                self._file, "r", options=CONTAINERS, metadata_errors="replace"
            )
        except (FFmpegError, ValueError) as error:
            self._file.close()
            raise InputError("not a video, or damaged") from error
        streams = self._container.streams
        moving = [one for one in streams.video if not one.disposition & Disposition.attached_pic]
        # One of a codec that FFmpeg does not know has no context.
        if not moving or moving[0].codec_context is None:
            reason = "not a video, or damaged"
            if streams.audio and not moving:
                reason = f"not a video: only sound{' and a cover picture' * bool(streams.video)}"
            self.close()  # what belongs to it must not be used from here on
            raise InputError(reason)
        self._stream = moving[0]
        self._is_avi = self._container.format.name == "avi"
        # One thread, because clips run in parallel. Frames may grow within a file.
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.options = {"max_pixels": str(_max_pixels())}

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the decoder."""
        self._container.close()
        self._file.close()

    @property
    def claimed(self) -> int:
        """Number of frames that are in the file or should be, by the length it states."""
        return len(self._shown.times)

    @property
    def present(self) -> int:
        """Number of frames that are in the file."""
        return self._shown.present

    @property
    def length_s(self) -> float:
        """When the last frame ends, in seconds from the first."""
        return self._shown.end_s

    def frames(
        self,
        *,
        count: int = 0,
        every: int = 0,
        seconds: float = 0.0,
        start_s: float = 0.0,
        end_s: float = math.inf,
    ) -> Iterator[Frame]:
        """Yields frames from `start_s` to before `end_s` in order.

        They are `count` frames, those that are shown in the middles of so many equal intervals of
        time (where one is shown in several, also some of the others, equal in number; all frames of
        a shorter clip), or every k-th from the first (`every`), or the first of each interval of so
        many `seconds`. Only what these frames need is decoded, from the key frame before each.
        """
        if not (count or every or seconds > 0):
            raise ValueError("one of count, every and seconds must be above 0")
        times = self._shown.times
        first, last = np.searchsorted(times + ROUNDING_S, (start_s, end_s))
        inside = np.arange(first, last)
        if every:
            inside = inside[::every]
        elif count and len(inside) > count:
            inside = self._equal_intervals(inside, count)
        elif seconds:
            intervals = (times[inside] + ROUNDING_S - start_s) // seconds
            inside = inside[np.diff(intervals, prepend=-1) > 0]
        yield from self._at(inside.tolist())

    def _equal_intervals(self, inside: np.ndarray, count: int) -> np.ndarray:
        """Returns which frames are shown in the middles of `count` intervals of time."""
        times, number = self._shown.times, len(inside)
        within = times[inside]
        even = np.linspace(within[0], within[-1], number)
        if np.abs(within - even).max() <= self._shown.tick_s:
            # A constant rate, but for rounding; a middle may fall on the start of a frame.
            return inside[(2 * np.arange(count) + 1) * number // (2 * count)]
        after = inside[-1] + 1
        end = times[after] if after < len(times) else self._shown.end_s
        middles = within[0] + (np.arange(count) + 0.5) * (end - within[0]) / count
        chosen = np.unique(np.searchsorted(times, middles + self._shown.tick_s / 2, "right") - 1)
        # A frame that is shown for long, as before a jump in time, has several middles.
        others = np.setdiff1d(inside, chosen)
        lacking = count - len(chosen)
        more = others[(2 * np.arange(lacking) + 1) * len(others) // (2 * max(1, lacking))]
        return np.union1d(chosen, more)

    @functools.cached_property
    def _shown(self) -> _Shown:
        stamps, keys = list[tuple[int, int, int]](), list[int]()
        ends = collections.Counter[int]()
        in_order = self._is_avi
        for packet in self._packets(*self._container.streams):
            stamp, stream = packet.dts if packet.pts is None else packet.pts, packet.stream_index
            if not packet.size or stamp is None:
                continue
            ends[stream] = max(ends[stream], stamp + (packet.duration or 0))
            if stream != self._stream.index:
                continue
            # Without timestamps, as in AVI, the times that are known are those of decoding.
            in_order = in_order or packet.pts is None
            if packet.is_keyframe:
                keys.append(stamp)
            if not packet.is_discard:
                stamps.append((stamp, packet.dts or 0, packet.duration or 0))
        table = np.asarray(stamps, np.int64).reshape(-1, 3)
        shown, places = np.unique(table[:, int(in_order)], return_index=True)
        base = float(self._stream.time_base or 0)
        if not len(shown):
            return _Shown(np.empty(0), 0.0, base, 0, shown, shown, in_order)
        times = (shown - shown[0]) * base
        period = float(np.median(np.diff(times))) if len(times) > 1 else 1 / self.fps
        # A container's length is that of its longest stream.
        streams = [self._stream] if self._stream.duration else self._container.streams
        end_s = max(ends[one.index] * float(one.time_base or 0) for one in streams)
        end_s = max(end_s, float(shown[-1] * base) + period)
        missing = max(0, math.floor((self._stated_end_s() - end_s) / period + 0.25))
        # The header of an incomplete file may claim more frames than it has bytes.
        if len(times) + missing > min(MAX_CLAIMED, self._num_bytes):
            missing = 0
        after = times[-1] + period * np.arange(1, missing + 1)
        end = float(times[-1] + (table[places[-1], 2] * base or period) + missing * period)
        return _Shown(
            np.concatenate((times, after)), end, base, len(times), shown, np.unique(keys), in_order
        )

    def _stated_end_s(self) -> float:
        """When the pictures end by the header, else when the longest stream does; 0 if unknown."""
        stream = self._stream
        # AVI counts its frames; FFmpeg lowers the duration to what is in the file.
        length = stream.frames if self._is_avi else stream.duration
        if length and stream.time_base:
            return float(((stream.start_time or 0) + length) * stream.time_base)
        return (self._container.duration or 0) / av.time_base

    def _packets(self, *streams: Stream) -> Iterator[av.Packet]:
        with contextlib.suppress(FFmpegError):  # the file ends within a packet
            yield from self._container.demux(*streams)

    def _at(self, chosen: list[int]) -> Iterator[Frame]:
        """Yields the chosen frames."""
        shown = self._shown
        decoded = self._decoded([index for index in chosen if index < shown.present])
        at, image = -1, None
        for index in chosen:
            if at < index:
                at, image = next(decoded, (self.claimed, None))
            yield Frame(index, float(shown.times[index]), image if at == index else None)

    def _decoded(self, chosen: list[int]) -> Iterator[tuple[int, np.ndarray | None]]:
        """Yields (index, image) of those of the chosen frames that can be decoded."""
        if not chosen:
            return
        # Decoding begins with the last key frame before each; -1: with the first packet.
        shown, place, num_decoded, reached = self._shown, 0, 0, -1
        keys = np.searchsorted(shown.keys, shown.stamps[chosen], "right") - 1
        if shown.in_order:
            keys[:] = -1
        self._container.close()
        self._open()
        stamps = set(shown.stamps[chosen].tolist())
        context, needed = self._stream.codec_context, bool(keys[0] == -1)
        for packet in itertools.chain(self._packets(self._stream), [None]):
            if packet is not None and packet.is_keyframe and packet.pts is not None:
                key = int(np.searchsorted(shown.keys, packet.pts))
                if not needed and key == keys[place]:
                    context.flush_buffers()
                    needed = True
                reached = max(reached, key) if needed else reached
            if not needed:
                continue
            if packet is not None and context.name in SKIPS and not shown.in_order:
                # Frames that no other frame is made from are decoded only where they are chosen.
                context.skip_frame = "DEFAULT" if packet.pts in stamps else "NONREF"
            for frame in _frames_of(context, packet):
                index = num_decoded
                if not shown.in_order:
                    if frame.pts is None:
                        continue
                    index = int(np.searchsorted(shown.stamps, frame.pts))
                num_decoded += 1
                while chosen[place] < index:
                    place += 1
                    if place == len(chosen):
                        return
                if chosen[place] == index:
                    yield index, self._image(frame)
                    place += 1
                    if place == len(chosen):
                        return
            needed = bool(keys[place] <= reached)

    def _image(self, frame: av.VideoFrame) -> np.ndarray | None:
        if frame.is_corrupt:
            return None
        image = frame.to_ndarray(format="bgr24")
        if frame.rotation in TURNS:
            image = cv2.rotate(image, TURNS[frame.rotation])
        self.height, self.width = image.shape[:2]
        return image


def _frames_of(context: av.VideoCodecContext, packet: av.Packet | None) -> Iterable[av.VideoFrame]:
    try:
        return context.decode(packet)
    except (FFmpegError, EOFError):  # damaged, or drained before
        return ()


def _max_pixels() -> int:
    """Returns the limit of a picture's size, which OpenCV keeps, too."""
    return int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])


def camera_frames(number: int, *, fps: float, end_s: float) -> Iterator[Frame]:
    """Yields frames of a camera, at most `fps` per second, for `end_s` seconds.

    Cameras are numbered from 0; timestamps start at the first frame. Raises InputError if there is
    no such camera, or it stopped.
    """
    capture = cv2.VideoCapture(number)
    try:
        if not capture.isOpened():
            raise InputError(f"no camera {number} on this machine")
        yield from _newest(capture, number, fps, end_s)
    finally:
        capture.release()


def _newest(capture: cv2.VideoCapture, number: int, fps: float, end_s: float) -> Iterator[Frame]:
    newest: list[tuple[int, float, np.ndarray]] = []
    arrived, stopped = threading.Event(), threading.Event()

    def read() -> None:
        count = 0
        while not stopped.is_set():
            there, image = capture.read()
            if not there:
                return
            newest[:] = [(count, time.monotonic(), image)]
            arrived.set()
            count += 1

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    try:
        began = None
        while True:
            if not arrived.wait(CAMERA_TIMEOUT_S):
                raise InputError(f"camera {number} sends no frames")
            arrived.clear()
            index, taken, image = newest[0]
            began = taken if began is None else began
            if taken - began >= end_s:
                return
            yield Frame(index, taken - began, image)
            time.sleep(max(0.0, taken + 1 / fps - time.monotonic()))
    finally:
        stopped.set()
        reading.join()
