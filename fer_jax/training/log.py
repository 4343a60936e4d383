"""Where a run's numbers go: metrics.jsonl, TensorBoard, and one line for the person watching."""

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

from fer_jax.errors import InputError, disk_error_message

Event, SessionLog = event_pb2.Event, event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue] (made by protobuf at import)


class MetricsLog:
    """Writes scalars and images by step, with the method names of CLU's metric writers.

    metrics.jsonl holds each logged step exactly once: what a stopped run wrote after the
    checkpoint it continues from is dropped when the log is opened again.
    """

    def __init__(self, workdir: Path, *, after_step: int = 0, writes: bool = True) -> None:
        """Opens the log; rows beyond `after_step` (the restored step) are removed.

        Args:
          workdir: of the run.
          after_step: the restored step.
          writes: whether this process keeps the log; of several, one does.
        """
        self._file = workdir / "metrics.jsonl"
        self._step = after_step
        # Not its SummaryWriter, whose thread dies of a full disk and leaves its queue to block.
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
        """Appends one row; NaN becomes null.

        Raises:
          InputError: the disk refuses it; names the step.
        """
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
        """Makes everything so far visible to readers, and safe from the machine's end.

        Raises:
          InputError: the disk refuses it; names the step.
        """
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
                f"step {step} could not be logged in '{self._file.parent}': {reason}; the same "
                "command continues from the last checkpoint"
            ) from error


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, oldest first; a half-written last line is left out."""
    file = workdir / "metrics.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def write_atomically(file: Path, content: str | bytes) -> None:
    """Writes a file in one piece or not at all; an OSError names it."""
    temporary = file.with_suffix(file.suffix + ".tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from error


# What a progress line can show, and how.
FIGURES: dict[str, Callable[[float], str]] = {
    "loss": "loss {:.4f}".format,
    "accuracy": "accuracy {:.3f}".format,
    "discriminator_loss": "D {:.3f}".format,
    "generator_loss": "G {:.3f}".format,
    "r1": "R1 {:.3f}".format,
    "augment_p": "augmented {:.2f}".format,
    "real_class_accuracy": "told apart {:.2f}".format,
    "made_class_accuracy": "made {:.2f}".format,
    "images_per_second": "{:.0f} images/s".format,
    "model_flop_per_second": lambda value: f"{value / 1e9:.0f} GFLOP/s",
    "model_flop_utilisation": "MFU {:.1%}".format,
    "data_wait_share": "data wait {:.0%}".format,
}


class ProgressLine:
    """One line that is rewritten on a terminal, and plain lines elsewhere."""

    def __init__(self, num_steps: int, *, stream: TextIO | None = None) -> None:
        """Starts the clock of a run that ends at `num_steps`."""
        self._stream = sys.stderr if stream is None else stream
        self._num_steps = num_steps
        self._in_place = self._stream.isatty()
        self._started = time.monotonic()
        self._first_step: int | None = None

    def show(self, step: int, **figures: float) -> None:
        """Shows a step.

        Args:
          step: steps done.
          **figures: some of `FIGURES`, in this order.
        """
        if self._first_step is None:
            # The rate counts from the first line, so that compilation is not in it.
            self._first_step, self._started = step, time.monotonic()
            eta = "--:--"
        else:
            per_step = (time.monotonic() - self._started) / max(1, step - self._first_step)
            eta = duration(per_step * (self._num_steps - step))
        # Where the devices' peak is known, their use says more than the rate.
        if "model_flop_utilisation" in figures:
            figures = {k: v for k, v in figures.items() if k != "model_flop_per_second"}
        shown = [FIGURES[name](value) for name, value in figures.items()]
        line = "  ".join([f"step {step}/{self._num_steps}", *shown, f"ETA {eta}"])
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + line[:width].ljust(width))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def note(self, text: str) -> None:
        """A line that stays, such as a validation's result."""
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r" + " " * width + "\r")
        self._stream.write(text + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
