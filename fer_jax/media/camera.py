"""Frames of a camera of this machine: always the newest one, older ones are skipped."""

import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np

from fer_jax.errors import InputError
from fer_jax.media.video import Frame

FRAME_TIMEOUT_S = 5.0


def frames(number: int, *, fps: float, end_s: float) -> Iterator[Frame]:
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
            if not arrived.wait(FRAME_TIMEOUT_S):
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
