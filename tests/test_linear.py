"""Linear heads on frozen features: those of a run, and those that a file brings."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_runs import write_dataset, write_run

from fer_jax.__main__ import main
from fer_jax.data.records import open_records
from fer_jax.training import linear

PARTS = {"train": 42, "validation": 21, "test": 21}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linear")
    rows = {part: [(f"{part}{i}", i % 7) for i in range(n)] for part, n in PARTS.items()}
    write_dataset(folder, "mine", rows)
    return folder


def write_features(file: Path, data_dir: Path, signal: float) -> Path:
    """Features of all records, in another order, whose first seven tell the class apart."""
    records = open_records("mine/grouped", "all", data_dir)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(records))
    array = rng.standard_normal((len(records), 9)).astype(np.float32)
    array[:, :7] += signal * np.eye(7)[records.labels("emotion")]
    if file.suffix == ".npy":
        np.save(file, array[order])
    else:
        save_file({"x": array[order]}, file)
    with file.with_suffix(".csv").open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["record_id"])
        writer.writerows([[records.columns["record_id"][row]] for row in order])
    return file


def train(workdir: Path, features: Path, data_dir: Path, *more: str) -> int:
    words = [f"--workdir={workdir}", f"--config.features={features}", f"--data_dir={data_dir}"]
    return main(["train", "--config=configs/linear.py:mine/grouped", *words, *more])


def scores(workdir: Path) -> dict[str, Any]:
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    (scored,) = json.loads((workdir / "results.json").read_text())["sets"]
    return scored


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors"])
def test_a_file_is_trained_on_and_its_maker_is_unknown(name: str, data_dir: Path, tmp_path: Path):
    file = write_features(tmp_path / name, data_dir, 20.0)
    refused = tmp_path / "refused"
    assert train(refused, file, data_dir, "--config.allow_unknown_people=false") == 2
    assert train(tmp_path / "run", file, data_dir) == 0
    scored = scores(tmp_path / "run")
    assert scored["accuracy"] == 1
    assert scored["unknown_people"] == [f"what the model behind '{name}' was trained on"]
    write_features(file, data_dir, 21.0)
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 2


def test_a_run_gives_features_and_whom_it_saw_is_refused(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    start = write_run(tmp_path / "start", data_dir, sources=("mine/grouped",))
    assert train(tmp_path / "run", start, data_dir) == 0
    assert "64 features of 42 images" in capsys.readouterr().out
    assert scores(tmp_path / "run")["n"] == PARTS["test"]
    swapped = '({"name": "mine/grouped", "train": "test", "test": "train"},)'
    words = [f"--config.{field}={swapped}" for field in ("sources", "test_sets")]
    capsys.readouterr()
    assert train(tmp_path / "other", start, data_dir, *words) == 2
    assert "the network that the training starts from saw" in capsys.readouterr().err


def test_the_head_is_the_penalized_optimum():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((60, 4)) * [1, 10, 0.1, 0] + 3).astype(np.float32)
    y = np.eye(7, dtype=np.float32)[rng.integers(0, 7, 60)]
    heads = linear.fit(x, y, np.ones(7, np.float32))
    scale = np.where(x.std(axis=0) > 0, x.std(axis=0), 1)
    for penalty, head in zip(linear.PENALTIES[:12], heads, strict=False):
        residual = (head.probabilities(x) - y) / len(x)
        gradient = ((x - x.mean(axis=0)) / scale).T @ residual + penalty * head.kernel * scale[
            :, None
        ]
        assert np.abs(gradient).max() < 2e-3
        assert np.abs(residual.sum(axis=0)).max() < 2e-3


def break_ids(file: Path) -> None:
    beside = file.with_suffix(".csv")
    beside.write_text("".join(beside.read_text().splitlines(keepends=True)[:-1]))


def rename_a_record(file: Path) -> None:
    beside = file.with_suffix(".csv")
    beside.write_text(beside.read_text().replace("mine/train_3\n", "mine/nobody\n"))


BROKEN: list[tuple[Any, str]] = [
    (break_ids, "must have one record_id for each of the 84 rows"),
    (rename_a_record, "lacks 1 of 42 records of mine/grouped train, such as 'mine/train_3'"),
    (lambda file: np.save(file, np.zeros(84, np.float32)), "must be numbers [records, features]"),
    (lambda file: np.save(file, np.full((84, 2), np.nan)), "not finite"),
    (lambda file: file.write_bytes(b"no array"), "is not one readable array"),
]


@pytest.mark.parametrize(("damage", "says"), BROKEN)
def test_a_file_that_cannot_be_used_is_one_line(
    damage: Any, says: str, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = write_features(tmp_path / "x.npy", data_dir, 1.0)
    damage(file)
    assert train(tmp_path / "run", file, data_dir) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_what_a_head_cannot_do_is_one_line(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = write_features(tmp_path / "x.npy", data_dir, 1.0)
    for option, says in (
        ("--config.init_from=runs/a", "set one of them"),
        ("--config.mixture.balance_classes=true", "set config.loss.class_weights=balanced"),
    ):
        assert train(tmp_path / "run", file, data_dir, option) == 2
        assert says in capsys.readouterr().err
    assert train(tmp_path / "run", file, data_dir) == 0
    assert main(["evaluate", f"--workdir={tmp_path / 'run'}", "--checkpoint=last"]) == 2
    assert "a linear head has no --checkpoint, --adapt" in capsys.readouterr().err
    words = [f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]
    assert main(["export", *words, f"--data_dir={data_dir}"]) == 2
    assert "only evaluate, report and compare use it" in capsys.readouterr().err
    assert main(["reproduce", str(tmp_path / "run"), f"--data_dir={data_dir}"]) == 0
    assert "reproduces" in capsys.readouterr().out
