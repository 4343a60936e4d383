"""metrics.jsonl holds each step once, also across restarts; the progress line fits a terminal."""

import io
import json
from pathlib import Path

import numpy as np

from fer_jax.training.log import MetricsLog, ProgressLine, duration, read_metrics


def test_rows_after_the_restored_step_are_dropped(tmp_path: Path):
    log = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write_scalars(step, {"train_loss": step / 10})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "tr')  # killed while writing
    log = MetricsLog(tmp_path, after_step=20)
    log.write_scalars(30, {"train_loss": float("nan")})
    log.close()
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[-1]["train_loss"] is None
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_tensorboard_receives_scalars_images_and_the_config(tmp_path: Path):
    log = MetricsLog(tmp_path)
    log.write_hparams({"seed": 1})
    log.write_images(1, {"faces": np.zeros((2, 8, 8, 3), np.uint8)})
    log.write_scalars(1, {"train_loss": 0.5})
    log.flush()
    log.close()
    events = b"".join(file.read_bytes() for file in (tmp_path / "tensorboard").iterdir())
    for name in (b"config", b"faces", b"train_loss"):
        assert name in events


FIGURES = {
    **{"train_loss": 1.5, "train_accuracy": 0.25, "train_gradient_norm": 2.0},
    **{"images_per_second": 100.0, "data_wait_share": 0.031, "model_flop_per_second": 2.73e12},
}


def test_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    progress = ProgressLine(100, stream=stream)
    progress.show(10, FIGURES)
    progress.note("validated")
    progress.show(20, FIGURES)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "\r" not in stream.getvalue()
    for part in (
        "step 20/100",
        "loss 1.5000",
        "accuracy 0.250",
        "100 images/s",
        "loading 3%",
        "ETA",
    ):
        assert part in lines[2]
    assert "2730 GFLOP/s" in lines[2]
    progress.show(30, FIGURES | {"model_flop_utilisation": 0.412})
    assert "MFU 41.2%" in stream.getvalue() and stream.getvalue().count("GFLOP/s") == 2


def test_one_line_is_rewritten_on_a_terminal():
    stream = io.StringIO()
    stream.isatty = lambda: True
    progress = ProgressLine(100, stream=stream)
    progress.show(10, FIGURES)
    progress.show(20, FIGURES)
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().count("\r") == 2


def test_durations_read_as_clocks():
    assert [duration(s) for s in (0, 59.6, 61, 3600, 36610)] == [
        *("0:00", "1:00", "1:01", "1:00:00", "10:10:10")
    ]
