"""The frame of the benchmarks: ratios, spreads, what is said about them, and its mistakes."""

import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import pytest

from fer_jax.__main__ import main
from fer_jax.benchmark import benchmark, inference_speed, input_speed, processes, training_speed
from fer_jax.errors import InputError
from fer_jax.models import xception
from fer_jax.training.log import read_metrics

pytestmark = pytest.mark.usefixtures("short_network")


def stepping(times: list[float]) -> Callable[[], float]:
    """A clock on which the n-th run takes times[n]."""
    marks = itertools.accumulate(itertools.chain.from_iterable((0.0, t) for t in times))
    return lambda: next(marks)


def test_a_ratio_above_one_means_ours_is_faster():
    # Two warm-ups, then ours and the peer in turn; pair by pair 2, 3 and 4 times as fast.
    clock = stepping([9, 9, 1, 2, 1, 3, 1, 4])
    row = benchmark.compare(
        "x",
        lambda: None,
        lambda: None,
        peer_name="y",
        amount=10,
        unit="things per second",
        repeats=3,
        clock=clock,
    )
    assert (row["ours"], row["peer"], row["ratio"]) == (10, pytest.approx(10 / 3), 3)
    assert row["spread"] == pytest.approx(1 / 3)


def test_the_readme_lists_the_benchmarks():
    readme = (Path(benchmark.__file__).parent / "README.md").read_text()
    for name, one in benchmark.BENCHMARKS.items():
        assert f"| `{name}` | {one.measures} |" in readme


def test_the_table_notes_what_is_skipped_or_unreliable():
    noisy = {"dtype": "", "batch": 0, "ours": 1.0, "peer": 1.0, "peer_name": "y", "unit": "u"}
    rows = [
        noisy | {"what": "a", "ratio": 1.0, "spread": 0.3, "repeats": 5},
        noisy | {"what": "b", "ratio": 1.0, "spread": 0.0, "repeats": 2},
        benchmark.skipped("c", "it is not installed"),
        benchmark.single("d", 3.0, "MB"),
    ]
    rows.append(benchmark.paired("e", [(2.0, 1.0), (3.0, 1.0)], peer_name="f", unit="g", batch=8))
    text = benchmark.table(rows)
    assert "| e 8 / f | 2.5 | 1 | 2.500 | 20% | g |" in re.sub(" +", " ", text)
    assert "a: noisy, the ratios spread over 30%" in text
    assert "b: only 2 repeats" in text
    assert "skipped: c: it is not installed" in text
    assert re.search(r"^\| d +\| 3 +\|[ |]+ MB +\|$", text, re.MULTILINE)


def test_models_rows_and_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "missing_package", lambda name: "torch")
    small = ["--width=0.01", "--image_size=71", "--batches=2", "--repeats=1"]
    modes = ["--modes=inference", "--dtypes=float32", "--peers=PyTorch eager"]
    assert main(["benchmark", "model", f"--workdir={tmp_path}", *small, *modes]) == 0
    written = json.loads((tmp_path / "benchmark_model.json").read_text())
    rows = written["rows"]
    assert written["hardware"]["cores"] and written["versions"]["numpy"]
    assert "torch is not installed" in rows[0]["skipped"]
    values = {row["what"].rpartition(": ")[2]: row["ours"] for row in rows[1:]}
    assert 0 < values["share of that limit"] < 1
    assert values["peak memory"] > 100 and values["until the first"] > 0


SMALL = ["--width=0.03", "--num_middle_blocks=0", "--image_size=71", "--repeats=1"]


def rows_of(workdir: Path, name: str, *words: str) -> list[dict[str, Any]]:
    assert main(["benchmark", name, f"--workdir={workdir}", *words]) == 0
    return json.loads((workdir / f"benchmark_{name}.json").read_text())["rows"]


def test_inputs_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(input_speed, "IMAGES", {"train": 64})
    monkeypatch.setattr(input_speed, "find_spec", lambda package: None)
    words = ["--images=64", "--image_size=24", "--repeats=1"]
    stream, mapped, torch = rows_of(tmp_path, "input", *words)
    assert stream["peer_name"] == mapped["peer_name"] == "bare decode loop"
    assert stream["batch"] == 64
    assert torch["skipped"] == "torch is not installed"


def test_workers_seconds_are_counted():
    before = input_speed.family_cpu_seconds()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(sum, range(20_000_000)).result()
        # A worker that lives yet; on a clock of hundredths.
        assert input_speed.family_cpu_seconds() - before > 0.05


def test_end_to_ends_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(input_speed, "IMAGES", {"train": 32, "validation": 8})
    words = ["--batch=8", "--steps=2", "--inputs", "memmap", *SMALL]
    training, wait = rows_of(tmp_path, "end_to_end", *words)
    assert training["what"] == "training, input memmap" and training["repeats"] == 1
    assert training["ratio"] == training["ours"] / training["peer"]
    assert 0 <= wait["ours"] <= 100
    metrics = [row["step"] for row in read_metrics(next(tmp_path.glob("runs/*")))]
    assert metrics == [2, 4]


def test_checkpoints_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(input_speed, "IMAGES", {"train": 32, "validation": 8})
    # The start of processes takes longest: 2 s if new and 1 s if resumed, after a warm-up.
    seconds = iter([9.0, 9.0, 2.0, 1.0])
    monkeypatch.setattr(training_speed, "_seconds_to_first_step", lambda *_: next(seconds))
    size, blocked, lost, check, start = rows_of(
        tmp_path, "checkpoints", "--batch=8", "--steps=1", *SMALL
    )
    assert size["ours"] > 0.1 and blocked["ours"] > 0 and check["ours"] > 0
    assert lost["unit"] == "%"
    assert (start["ours"], start["peer"], start["ratio"]) == (1.0, 0.5, 2.0)


def test_scalings_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    two = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda: two)
    (several,) = rows_of(tmp_path, "scaling", "--batch=2", "--steps=1", *SMALL)
    assert several["what"] == "train step on 2 devices" and several["batch"] == 4
    assert "virtual" in several["unit"]
    monkeypatch.setattr(jax, "devices", lambda: two[:1])
    assert rows_of(tmp_path, "scaling", *SMALL)[0]["skipped"] == "there is one"


def test_stylegan2_trains_rows(tmp_path: Path):
    words = ["--resolution=8", "--channel_base=64", "--channel_max=8", "--batch=4", "--repeats=1"]
    rows = rows_of(tmp_path, "stylegan2_train", *words)
    if importlib.util.find_spec("torch"):
        names = [row["what"].rpartition(": ")[2] for row in rows if row.get("peer_name")]
        assert names[:5] == ["discriminator", "r1", "generator", "path", "cycle"]
    augmented = next(row for row in rows if row["what"].endswith("augmented: cycle"))
    assert augmented["ours"] > 0 and augmented["peer_name"] == "ours without augmentation"


def test_inferences_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # An export has every block of the whole network.
    monkeypatch.setattr(xception, "Xception", xception.Xception.__bases__[0])
    small = ["--width=0.02", "--image_size=71", "--batches=2", "--repeats=1"]
    words = ["--dtypes", "float32", "int8", "--engines", "jax", "onnxruntime"]
    rows = rows_of(tmp_path, "inference", *small, *words)
    compared = {
        (row["what"], row["peer_name"], row["dtype"], row["batch"])
        for row in rows
        if "ratio" in row
    }
    direct = "ONNX Runtime used directly"
    assert compared == {
        ("network alone, jax", direct, "float32", 2),
        ("network alone, onnxruntime", direct, "float32", 2),
        ("network alone, onnxruntime", direct, "int8", 2),
    }
    why = {row["what"]: row["skipped"] for row in rows if "skipped" in row}
    assert "of the weights alone" in why["jax, int8"]
    assert "--clip" in why["clip to predictions"]


def test_a_package_that_is_not_installed_is_named(tmp_path: Path):
    clip, detector = tmp_path / "clip.mp4", tmp_path / "yunet.onnx"
    with pytest.raises(RuntimeError, match="No module named 'fer'"):
        inference_speed.start_fer(sys.executable, clip, detector)
    with pytest.raises(InputError, match="--peer_python 'nowhere/python': No such file"):
        inference_speed.start_fer("nowhere/python", clip, detector)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["medai"], "did you mean 'media'"),
        (["media", "--repeats=0"], "at least 1"),
        (["statistics", "--simulations=0"], "at least 1"),
        (["model", "--dtypes=float23"], "did you mean 'float32'"),
        (["model", "--peers=PyTorch"], "--peers cannot be 'PyTorch'"),
        (["model", "--batches=0"], "at least 1"),
        (["model", "--image_size=70"], "at least 71"),
        (["input", "--images=1"], "at least 64"),
        (["end_to_end", "--batch=9"], "not divisible by 8 devices"),
        (["end_to_end", "--inputs", "streem"], "did you mean 'stream'"),
        (["scaling", "--steps=0"], "at least 1"),
        (["inference", "--engines", "openvine"], "did you mean 'openvino'"),
        (["inference", "--batches", "0"], "at least 1"),
        ([], "required"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["benchmark", *words, f"--workdir={tmp_path}"]) == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1
