"""The frame of the benchmarks: ratios, spreads, what is said about them, and its mistakes."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fer_jax.__main__ import main
from fer_jax.benchmark import benchmark, model, model_side


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


def test_the_table_says_what_is_doubtful():
    noisy = {"dtype": "", "batch": 0, "ours": 1.0, "peer": 1.0, "peer_name": "y", "unit": "u"}
    rows = [
        noisy | {"what": "a", "ratio": 1.0, "spread": 0.3, "repeats": 5},
        noisy | {"what": "b", "ratio": 1.0, "spread": 0.0, "repeats": 2},
        benchmark.skipped("c", "it is not installed"),
        benchmark.single("d", 3.0, "MB", bar="at most 4"),
    ]
    text = benchmark.table(rows)
    assert "a: a noisy machine, the ratios spread over 30%" in text
    assert "b: only 2 repeats" in text
    assert "skipped: c: it is not installed" in text
    assert "MB (at most 4)" in text


def test_audits_search_finds_every_planted_copy(tmp_path: Path):
    assert main(["benchmark", "audit", f"--workdir={tmp_path}", "--pictures=2000"]) == 0
    written = json.loads((tmp_path / "benchmark_audit.json").read_text())
    rows = {row["what"]: row["ours"] for row in written["rows"]}
    assert rows["copies found"] == 1 and rows["other pairs called copies"] == 0
    assert written["hardware"]["cores"] and written["versions"]["numpy"]


def test_models_rows_and_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_side, "missing", lambda side: "torch")
    small = ["--width=0.01", "--image_size=71", "--batches=2", "--repeats=1"]
    modes = ["--modes=inference", "--dtypes=float32", "--peers=PyTorch eager"]
    assert main(["benchmark", "model", f"--workdir={tmp_path}", *small, *modes]) == 0
    rows = json.loads((tmp_path / "benchmark_model.json").read_text())["rows"]
    assert "torch is not installed" in rows[0]["skipped"]
    values = {row["what"].rpartition(": ")[2]: row["ours"] for row in rows[1:]}
    assert 0 < values["share of that limit"] < 1
    assert values["peak memory"] > 100 and values["until the first"] > 0


def test_models_operations_are_counted_from_the_shapes():
    operations, moved = model.count(224, 1.0, "float32")
    # Other tools count 4.55 and 8.4 thousand million multiply-adds at 224 and 299 pixels.
    assert operations == pytest.approx(9.10e9, rel=1e-3)
    assert model.count(299, 1.0, "float32")[0] / 2 == pytest.approx(8.36e9, rel=0.01)
    assert model.count(224, 1.0, "bfloat16") == (operations, moved // 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["medai"], "did you mean 'media'"),
        (["audit", "--repeats=0"], "at least 1"),
        (["audit", "--pictures=1"], "at least 200"),
        (["model", "--dtypes=float23"], "did you mean 'float32'"),
        (["model", "--peers=PyTorch"], "--peers cannot be 'PyTorch'"),
        (["model", "--batches=0"], "at least 1"),
        (["model", "--image_size=70"], "at least 71"),
        ([], "required"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["benchmark", *words, f"--workdir={tmp_path}"]) == 2
    printed = capsys.readouterr().err
    assert says in printed and printed.count("\n") == 1
