"""A camera of this machine, as frames: always the newest, those that came before it are let go."""

import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np

from fer_jax.errors import InputError
from fer_jax.media.video import Frame

PATIENCE_S = 5.0  # that a camera may take for a frame


def frames(number: int, *, fps: float, end_s: float) -> Iterator[Frame]:
    """Frames of a camera, with the seconds since the first; closes it when it is let go.

    Args:
      number: which camera, from 0.
      fps: at most so many a second.
      end_s: after so many seconds it ends.

    Raises:
      InputError: there is no such camera, or it stopped.
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
            if not arrived.wait(PATIENCE_S):
                raise InputError(f"camera {number} gives no pictures")
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
