"""`evaluate --predictions`: tables of other makers are scored as runs are, or refused."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_jax.__main__ import main
from fer_jax.data.records import open_records
from fer_jax.evaluation import metrics
from fer_jax.schema import EMOTIONS

IMAGES = 28


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        file = folder / "source" / EMOTIONS[number % 7] / f"p{number:02}_x.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), rng.integers(0, 256, (32, 32, 3), np.uint8))
    words = ["face_folder/folds", "--name=others", "--folds=2", f"--source={folder / 'source'}"]
    assert main(["build", *words, f"--data_dir={folder / 'data'}"]) == 0
    return folder / "data"


def rows(data_dir: Path, seed: int = 0) -> list[dict[str, str]]:
    """A table with the dataset's records in another order, and one row more."""
    records = open_records("others/folds", "all", data_dir)
    rng = np.random.default_rng(seed)
    found = []
    for row in rng.permutation(len(records)):
        chances = np.round(rng.dirichlet(np.ones(7)), 4)
        chances[0] += 1 - chances.sum()
        named = dict(zip(EMOTIONS, map(str, chances), strict=True))
        found.append({"record_id": str(records.columns["record_id"][row])} | named)
    return [*found, found[0] | {"record_id": "elsewhere/1"}]


def write(file: Path, table: list[dict[str, str]], prefix: str = "") -> Path:
    named = [
        {name if name == "record_id" else prefix + name: value for name, value in row.items()}
        for row in table
    ]
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, named[0])
        writer.writeheader()
        writer.writerows(named)
    return file


def evaluate(workdir: Path, file: Path, data_dir: Path, *more: str) -> int:
    words = [f"--workdir={workdir}", f"--predictions={file}", f"--data_dir={data_dir}"]
    return main(["evaluate", *words, "--data=others/folds", "--split=all", *more])


def test_a_table_is_scored_as_a_run_is(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table = rows(data_dir)
    for prefix in ("", "p_"):
        workdir = tmp_path / f"their{prefix}"
        assert evaluate(workdir, write(tmp_path / "t.csv", table, prefix), data_dir) == 0
        said = capsys.readouterr().out
        assert f"{IMAGES} images of others/folds all; 1 rows of other records left out" in said
        assert "unknown people are behind: what the maker of t.csv was trained on" in said
        (scored,) = json.loads((workdir / "results.json").read_text())["sets"]
        records = open_records("others/folds", "all", data_dir)
        by_id = {row["record_id"]: [float(row[name]) for name in EMOTIONS] for row in table}
        ordered = np.array([by_id[one] for one in records.columns["record_id"].tolist()])
        ordered /= ordered.sum(axis=1, keepdims=True)
        expected = metrics.score(records.labels("emotion"), ordered)
        for name in ("accuracy", "balanced_accuracy", "roc_auc"):
            assert scored[name] == pytest.approx(expected[name])
        assert main(["report", f"--workdir={workdir}"]) == 0
        assert "was trained on" in (workdir / "report.html").read_text()


def test_tables_are_compared_with_each_other(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, seed in (("a", 1), ("b", 2)):
        file = write(tmp_path / f"{name}.csv", rows(data_dir, seed))
        assert evaluate(tmp_path / name, file, data_dir) == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--draws=200"]) == 0
    assert "others/folds all" in capsys.readouterr().out


# What is changed in the third row, to what, or which column is left out, and what is said.
BROKEN = [
    ("anger", "", "", "line 4: could not convert string to float: ''"),
    ("anger", "nan", "", "line 4: probabilities must be from 0 to 1"),
    ("anger", "-0.1", "", "line 4: probabilities must be from 0 to 1"),
    ("anger", "7", "", "line 4: probabilities sum to"),
    ("record_id", "nobody", "", f"lacks 1 of {IMAGES} labelled records, such as 'others/"),
    ("", "", "fear", "has no column fear"),
    ("", "", "record_id", "lacks the columns record_id"),
]


@pytest.mark.parametrize(("column", "value", "dropped", "says"), BROKEN)
def test_what_makes_no_sense_is_one_line(
    column: str,
    value: str,
    dropped: str,
    says: str,
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    table = rows(data_dir)
    if column:
        table[2][column] = value
    for row in table:
        row.pop(dropped, None)
    assert evaluate(tmp_path / "new", write(tmp_path / "t.csv", table), data_dir) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "new" / "config.json").exists()


def test_what_does_not_go_together_is_one_line(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table = rows(data_dir)
    file = write(tmp_path / "t.csv", [*table, table[0]])
    for words, says in (
        ((), "is there twice"),
        (("--adapt",), "--adapt needs a network"),
        (("--task=interest",), "has a label for 'interest'"),
    ):
        assert evaluate(tmp_path / "new", file, data_dir, *words) == 2
        assert says in capsys.readouterr().err
    assert evaluate(tmp_path / "new", tmp_path / "none.csv", data_dir) == 2
    assert "is not a file" in capsys.readouterr().err
    words = [f"--workdir={tmp_path / 'new'}", f"--predictions={file}", f"--data_dir={data_dir}"]
    assert main(["evaluate", *words]) == 2
    assert "--predictions needs --data" in capsys.readouterr().err
