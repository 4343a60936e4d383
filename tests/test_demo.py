"""`fer-jax demo`: all parts run for real, on few people and a small network."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest

import fer_jax
from fer_jax import demo
from fer_jax.__main__ import main
from fer_jax.config import load_config
from fer_jax.data.records import open_records
from fer_jax.evaluation import metrics
from fer_jax.storage import read_table
from fer_jax.study import scenarios

pytestmark = pytest.mark.usefixtures("short_network", "one_device")
SCENARIOS = ("baseline", "+YouTube", "+StyleGAN2", "all")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished demo, and what it printed."""
    workdir = tmp_path_factory.mktemp("demo") / "study_demo"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["demo", "--quick", f"--workdir={workdir}"]) == 0
    return workdir, printed.getvalue()


def test_five_parts_end_with_the_page(finished: tuple[Path, str]):
    workdir, printed = finished
    parts = ("1/5 film: 22", "2/5 collect", "3/5 build", "4/5 train: 4 networks", "5/5 evaluate")
    places = [printed.index(part) for part in (*parts, "done in")]
    assert places == sorted(places)
    page = Path(printed.partition("; open ")[2].partition("\n")[0])
    assert page == (workdir / "report.html").resolve()
    text = page.read_text()
    assert all(name in text for name in SCENARIOS) and "true: 0." in text
    for picture in ("overview.png", "one_frame.png"):
        pixels = cv2.imread(str(workdir / picture))
        assert pixels is not None and pixels.shape[0] > 200 and pixels.std() > 30


def test_links_are_collected_and_the_ledger_has_what_is_lost(finished: tuple[Path, str]):
    youtube = finished[0] / "sources" / "youtube"
    rows = read_table(youtube / "manifest.csv")
    assert sum(row["status"] == "done" for row in rows) == 10 * 7
    ledger = read_table(youtube / "ledger.csv")
    reasons = sorted(row["reason"].partition(":")[0] for row in ledger)
    assert reasons == ["duplicate", "removed", "unavailable"]
    assert not any("127.0.0.1:" in row["url"] for row in rows)  # the port would be another one


def test_nobody_is_in_two_parts_or_on_two_platforms(finished: tuple[Path, str]):
    data_dir = finished[0] / "data"
    seen: dict[str, str] = {}
    sizes = {}
    for name in ("neurobiosense/grouped", "youtube/grouped"):
        for part in ("train", "validation", "test"):
            people = set(open_records(name, part, data_dir).columns["subject_id"].tolist())
            sizes[name, part] = len(people)
            for who in people:
                assert seen.setdefault(who, f"{name} {part}") == f"{name} {part}"
    assert list(sizes.values()) == [8, 1, 1] * 2
    for platform in ("laboratory", "social", "calls"):
        fresh = open_records(f"rendered/{platform}", "test", data_dir)
        people = {who.rpartition("_")[2] for who in fresh.columns["subject_id"]}
        assert len(people) == len(fresh) >= 9
        assert not people & {who.rpartition("/")[2].lstrip("pP") for who in seen}


def test_true_scores_are_of_fresh_people(finished: tuple[Path, str]):
    workdir, _ = finished
    found = json.loads((workdir / "results.json").read_text())
    cells = [cell for cell in found["cells"] if "truth" in cell]
    assert len(cells) == len(SCENARIOS) * 3
    for cell in cells:
        platform = demo.PLATFORM_OF[cell["dataset"]]
        people = open_records(f"rendered/{platform}", "test", workdir / "data")
        model = fer_jax.load(workdir / "runs" / f"{cell['scenario']}.seed_0")
        faces = [people.image(row) for row in range(len(people))]
        predicted = model.predict(faces, faces="crop")
        probabilities = np.array([list(one[0]["probabilities"].values()) for one in predicted])
        scored = metrics.score(people.labels("emotion"), probabilities)["balanced_accuracy"]
        assert cell["truth"]["value"] == pytest.approx(scored)
        assert cell["truth"]["n"] == len(people)


def test_an_interval_covers_the_true_score_or_does_not(monkeypatch: pytest.MonkeyPatch):
    model = SimpleNamespace(task="emotion", probabilities=lambda rows: np.eye(7)[list(rows)])
    monkeypatch.setattr(demo.network, "load", lambda *_, **__: model)
    people = MagicMock(image=[0, 1, 1, 1].__getitem__, labels=lambda _: np.array([0, 0, 1, 1]))
    people.__len__.return_value = 4
    run: Any = SimpleNamespace(scenario=SimpleNamespace(name="one"), workdir=Path())
    for interval, covered in (([0.7, 0.8], True), ([0.76, 0.9], False), ([None, None], False)):
        cell = {"scenario": "one", "dataset": "calls/folds", "empty": None}
        cell["metrics"] = {"balanced_accuracy": {"interval": interval}}
        demo.add_truth({"cells": [cell]}, [run], {"calls/folds": people})
        assert cell["truth"] == {"value": 0.75, "n": 4, "covered": covered}


def test_the_same_command_goes_on_and_another_seed_is_refused(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / "copied"
    shutil.copytree(finished[0], workdir)
    before = json.loads((workdir / "results.json").read_text())
    shutil.rmtree(workdir / "runs" / "all.seed_0")
    capsys.readouterr()
    assert main(["demo", "--quick", f"--workdir={workdir}"]) == 0
    printed = capsys.readouterr().out
    assert "run 1 of 1: all.seed_0" in printed and printed.count("is already built") == 7
    after = json.loads((workdir / "results.json").read_text())
    assert after["cells"] == before["cells"] and after["differences"] == before["differences"]
    assert main(["demo", "--quick", "--seed=3", f"--workdir={workdir}"]) == 2
    error = capsys.readouterr().err
    assert "has a demo with other options: seed (was 2026, now 3)" in error


def test_a_network_is_not_tested_on_people_whom_its_generator_saw(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [f"--config={demo.ROOT / 'configs' / 'demo.py'}", f"--workdir={tmp_path / 'run'}"]
    words += [f"--data_dir={finished[0] / 'data'}", "--config.sources=synthetic/grouped"]
    test_sets = "--config.test_sets=({'name': 'neurobiosense/grouped', 'test': 'train'},)"
    assert main(["train", *words, test_sets]) == 2
    assert "the generator of synthetic/grouped saw" in capsys.readouterr().err


def test_the_whole_demo_has_four_networks_and_a_platform_that_none_trains_on():
    config = load_config(str(demo.CONFIG), scenarios.check_study)
    assert tuple(one["name"] for one in config.scenarios) == SCENARIOS and len(config.seeds) == 1
    trained = {name for one in config.scenarios for name in one["sources"]}
    unseen = [one for one in config.test_sets if not isinstance(one, str)]
    assert [one["name"] for one in unseen] == ["calls/folds"] and "calls/folds" not in trained
