"""The report: self-contained, every number from results.json, readable on a phone."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fer_jax.config import default_config, to_json
from fer_jax.errors import InputError
from fer_jax.evaluation import predictions, results
from fer_jax.schema import EMOTIONS
from fer_jax.study.report import report

HOSTILE = "<script>alert(1)</script>"


def make_workdir(workdir: Path, cross: str = "demo/social") -> Path:
    """A scored run of two sets; the second lacks a class."""
    config = default_config()
    config.sources = ("demo/controlled",)
    workdir.joinpath("config.json").write_text(to_json(config))
    workdir.joinpath("predictions").mkdir()
    for seed, (dataset, n, classes) in enumerate((("demo/controlled", 140, 7), (cross, 90, 6))):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, classes, n)
        chances = rng.dirichlet(np.ones(7), n) + np.eye(7)[labels] * (1 - seed * 0.7)
        text = {name: np.full(n, "x") for name in predictions.TEXT}
        table = text | {
            "dataset": np.full(n, dataset),
            "split": np.full(n, "test"),
            "record_id": np.asarray([f"{dataset}/{i}" for i in range(n)]),
            "subject_id": np.asarray([f"s{i % 9}" for i in range(n)]),
            "frame_index": np.zeros(n, int),
            "age": np.full(n, -1.0),
            "label": labels,
            "probabilities": chances / chances.sum(axis=1, keepdims=True),
        }
        name = predictions.file_name(dataset, "test")
        predictions.write(workdir / "predictions" / name, table, EMOTIONS)
    rows = [
        {"step": s, "train_loss": 2 / s, "train_accuracy": 0.5}
        | ({"validation_loss": 1.0, "validation_accuracy": 0.4} if s % 2 == 0 else {})
        | ({"validation_balanced_accuracy": 0.1 * s} if s % 2 == 0 else {})
        for s in range(1, 7)
    ]
    workdir.joinpath("metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = make_workdir(tmp_path_factory.mktemp("run"))
    report(workdir)
    return workdir


def test_every_headline_number_is_in_results_json(workdir: Path):
    page = (workdir / "report.html").read_text()
    scored = json.loads((workdir / "results.json").read_text())
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    known = {
        results.number(value)
        for one in [*scored["sets"], *scored["means"].values()]
        for value in [*(one[name] for name in results.HEADLINE)]
    } | {results.number(one["majority"]["accuracy"]) for one in scored["sets"]}
    shown = re.findall(r">(\d\.\d{3}|n/a)<", body)
    assert len(shown) >= 2 * 7
    assert set(shown) <= known


def test_results_come_from_the_tables_alone(workdir: Path):
    scored = json.loads((workdir / "results.json").read_text())
    assert results.plain(results.results(workdir)) == scored
    cross = next(one for one in scored["sets"] if one["relation"] == "cross")
    assert cross["class_roc_auc"][6] is None
    assert cross["roc_auc_classes"] == 6
    assert cross["n_subjects"] == 9
    assert cross["majority"]["balanced_accuracy"] == pytest.approx(1 / 6)


def test_undefined_numbers_read_as_not_available(workdir: Path):
    assert ">n/a<" in (workdir / "report.html").read_text()


def test_it_is_self_contained_and_deterministic(workdir: Path):
    page = (workdir / "report.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith("#") for link in links)
    assert not re.findall(r"url\((?!#)", page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    report(workdir)
    assert (workdir / "report.html").read_text() == page


def test_names_are_text_not_markup(tmp_path: Path):
    make_workdir(tmp_path, cross=HOSTILE)
    page = report(tmp_path).read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page


def test_parts_that_are_missing_are_said_to_be(tmp_path: Path):
    make_workdir(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    assert "n/a: the workdir has no metrics.jsonl" in report(tmp_path).read_text()
    for file in (tmp_path / "predictions").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="run `fer-jax evaluate` first"):
        report(tmp_path)


def test_it_fits_a_phone(workdir: Path, tmp_path: Path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    page = (workdir / "report.html").read_text()
    # Chromium's own windows are not narrower than 500 px: a frame of a phone's width is.
    (tmp_path / "page.html").write_text(page)
    probe = (
        '<iframe src="page.html" width="375" height="800"></iframe><p id="out"></p><script>'
        'onload = () => { const d = frames[0].document; document.getElementById("out").textContent'
        ' = "width " + d.documentElement.scrollWidth + " svgs " + d.querySelectorAll("svg").length'
        "; }</script>"
    )
    (tmp_path / "probe.html").write_text(probe)
    flags = (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --allow-file-access-from-files --dump-dom"
    )
    done = subprocess.run(
        [
            *(chromium, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}"),
            *("--virtual-time-budget=5000", f"file://{tmp_path / 'probe.html'}"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(r"width (\d+) svgs (\d+)", done.stdout)
    assert found, done.stderr[-500:]
    assert int(found[1]) <= 375
    assert int(found[2]) == 6
