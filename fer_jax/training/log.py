"""The log of a run: metrics.jsonl, TensorBoard, the progress line, and the speed."""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from fer_jax import forms
from fer_jax.errors import InputError, disk_error_message
from fer_jax.storage import read_json_lines, write_atomically

Event, SessionLog = event_pb2.Event, event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue] (made by protobuf at import)


class MetricsLog:
    """Writes scalars and images by step, with the method names of CLU's metric writers.

    metrics.jsonl holds each logged step exactly once: rows after the checkpoint that a run resumes
    from are dropped when the log is opened again.
    """

    def __init__(self, workdir: Path, *, after_step: int = 0, writes: bool = True) -> None:
        """Opens the log and drops rows after `after_step`; one of several processes writes."""
        self._file = workdir / "metrics.jsonl"
        self._step = after_step
        # Not its SummaryWriter: at a full disk its thread dies, and its queue then blocks.
        self._events: EventsWriter | None = None
        if not writes:
            return
        with self._writing(after_step):
            kept = [row for row in read_metrics(workdir) if row["step"] <= after_step]
            write_atomically(self._file, "".join(json.dumps(row) + "\n" for row in kept))
            (workdir / "tensorboard").mkdir(exist_ok=True)
            self._events = EventsWriter(str(workdir / "tensorboard" / "events"))
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=after_step + 1, session_log=start))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one row, NaN as null; InputError if the disk is full or read-only."""
        if self._events is None:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        with self._writing(step), self._file.open("a") as file:
            file.write(json.dumps({"step": step} | finite) + "\n")
        for name, value in scalars.items():
            self._add(step, summary.scalar(name, value))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds uint8 batches [n, height, width, 3] to TensorBoard."""
        for name, batch in images.items():
            self._add(step, summary.image(name, batch, dataformats="NHWC"))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Adds the config to TensorBoard as a table."""
        rows = "".join(f"| {name} | {value} |\n" for name, value in hparams.items())
        self._add(0, summary.text("config", "| field | value |\n| --- | --- |\n" + rows))

    def flush(self) -> None:
        """Flushes the log and syncs it to disk; raises as `write_scalars` does."""
        if self._events is None:
            return
        with self._writing(self._step):
            with self._file.open("a") as file:
                os.fsync(file.fileno())
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes."""
        if self._events is not None:
            with self._writing(self._step):
                self._events.close()

    def _add(self, step: int, values: Any) -> None:
        if self._events is not None:
            with self._writing(step):
                event = Event(step=step, wall_time=time.time(), summary=values)
                self._events.write_event(event)

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        self._step = step
        try:
            yield
        except OSError as error:
            if not (reason := disk_error_message(error)):
                raise
            raise InputError(
                f"step {step} could not be logged in '{self._file.parent}': {reason}; rerun "
                "the same command to resume from the last checkpoint"
            ) from error


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl, oldest first, without a half-written last line."""
    return read_json_lines(workdir / "metrics.jsonl", forms.METRICS_ROW)


# What a progress line shows of a row, in this order.
FIGURES: dict[str, Callable[[float], str]] = {
    "train_loss": "loss {:.4f}".format,
    "train_accuracy": "accuracy {:.3f}".format,
    "discriminator_loss": "D {:.3f}".format,
    "generator_loss": "G {:.3f}".format,
    "r1": "R1 {:.3f}".format,
    "augment_p": "augmented {:.2f}".format,
    "real_class_accuracy": "real classes {:.2f}".format,
    "made_class_accuracy": "synthetic classes {:.2f}".format,
    "images_per_second": "{:.0f} images/s".format,
    "model_flop_per_second": lambda value: f"{value / 1e9:.0f} GFLOP/s",
    "model_flop_utilisation": "MFU {:.1%}".format,
    "data_wait_share": "data loading {:.0%}".format,
}


class ProgressLine:
    """One line that is rewritten on a terminal, and plain lines elsewhere."""

    def __init__(self, num_steps: int, *, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._num_steps = num_steps
        self._first: tuple[int, float] | None = None

    def show(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows a step, those of its `scalars` that are in `FIGURES`, and the remaining time."""
        now, eta = time.monotonic(), "--:--"
        if self._first is None:
            # The rate counts from the first line, without the first step's extra time.
            self._first = step, now
        else:
            first_step, started = self._first
            per_step = (now - started) / max(1, step - first_step)
            eta = duration(per_step * (self._num_steps - step))
        shown = {name: text(scalars[name]) for name, text in FIGURES.items() if name in scalars}
        if "model_flop_utilisation" in shown:
            # Where the devices' peak is known, their use says more than the rate.
            del shown["model_flop_per_second"]
        line = "  ".join([f"step {step}/{self._num_steps}", *shown.values(), f"ETA {eta}"])
        if self._stream.isatty():
            self._write("\r" + line[: self._width()].ljust(self._width()))
        else:
            self._write(line + "\n")

    def note(self, text: str) -> None:
        """Shows a line that stays, such as a validation's result."""
        if self._stream.isatty():
            self._write("\r" + " " * self._width() + "\r")
        self._write(text + "\n")

    def _width(self) -> int:
        return shutil.get_terminal_size().columns - 1

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class Stopwatch:
    """Counts steps and the time that they wait for data; `peak` is FLOP/s of all devices."""

    def __init__(
        self,
        reached: int,
        *,
        batch_size: int,
        flop_per_image: float | None = None,
        peak: float | None = None,
    ) -> None:
        self._batch_size, self._flop_per_image, self._peak = batch_size, flop_per_image, peak
        self.restart(reached)

    def restart(self, reached: int) -> None:
        """Restarts at a step, so that what was before, such as a validation, is not counted."""
        self._reached, self._waited, self._since = reached, 0.0, time.monotonic()

    def waited(self, seconds: float) -> None:
        """Adds a wait for data."""
        self._waited += seconds

    def figures(self, reached: int) -> dict[str, float]:
        """Returns the figures since the last restart, and restarts.

        They are {"images_per_second", "data_wait_share" (0 to 1)}, with counted FLOP
        "model_flop_per_second", and with a known peak "model_flop_utilisation" (0 to 1).
        """
        elapsed = time.monotonic() - self._since
        images_per_second = (reached - self._reached) * self._batch_size / elapsed
        speed = {"images_per_second": images_per_second, "data_wait_share": self._waited / elapsed}
        if self._flop_per_image is not None:
            speed["model_flop_per_second"] = images_per_second * self._flop_per_image
            if self._peak is not None:
                speed["model_flop_utilisation"] = speed["model_flop_per_second"] / self._peak
        self.restart(reached)
        return speed


def duration(seconds: float) -> str:
    """Formats seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
