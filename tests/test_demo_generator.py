"""The demo's committed generator: small, of known people, and its faces show what is asked."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from data_builders.demo import demo_dataset_builder as demo
from fer_jax.__main__ import main
from fer_jax.config import load_config, to_json
from fer_jax.data import generated
from fer_jax.demo import NETWORK, ROOT
from fer_jax.media import images
from fer_jax.schema import EMOTIONS
from fer_jax.synthesis.gan import check_generator
from fer_jax.synthesis.generator import load_generator
from fer_jax.synthesis.snapshots import made

SIDE = 32
EACH = 12


def test_it_is_small_and_says_where_it_comes_from():
    files = sorted(path.name for path in NETWORK.iterdir())
    assert files == ["arrays.safetensors", "config.json"]
    assert sum(path.stat().st_size for path in NETWORK.iterdir()) < 2e6
    about = json.loads((NETWORK / "config.json").read_text())
    config = load_config(str(ROOT / "configs" / "stylegan_demo.py"), check_generator)
    assert about["training"] == json.loads(to_json(config))
    assert about["saw"] == [{"dataset": "demo/controlled", "split": "train"}]
    rows = demo.plan("controlled", argparse.Namespace()).rows
    people = {row["subject_id"] for row in rows if row["split"] == "train"}
    assert set(about["subjects"]) == people


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Drawn faces [n, SIDE, SIDE, 3] of people that the network has not seen; their emotions."""
    rows = demo.plan("controlled", argparse.Namespace()).rows
    rows = [row for row in rows if row["split"] != "train"]
    faces = [images.decode(demo._draw(row)[0].faces[0]["image"]) for row in rows]
    return (
        np.stack([images.resized(face, SIDE) for face in faces]),
        np.asarray([row["emotion"] for row in rows]),
    )


def test_its_faces_show_the_asked_emotion():
    """By the nearest mean of drawn faces, each less the mean of all: chance is 1 in 7."""
    generator = load_generator(NETWORK)
    asked = np.repeat(np.arange(len(EMOTIONS)), EACH)
    faces = made(generator, range(len(asked)), asked).astype(np.float64)
    real, emotions = drawn()
    means = np.stack([real[emotions == emotion].mean(axis=0) for emotion in range(len(EMOTIONS))])
    means -= means.mean(axis=0)
    # From the brows to the chin.
    seen = slice(6, 28), slice(7, 25)
    residual = faces - faces.mean(axis=0)
    distances = [((residual - mean)[:, *seen] ** 2).sum(axis=(1, 2, 3)) for mean in means]
    right = np.argmin(distances, axis=0) == asked
    assert right.mean() > 0.5


def test_a_run_that_is_tested_on_people_it_saw_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(demo, "NUM_SUBJECTS", 30)
    data_dir = f"--data_dir={tmp_path}"
    assert main(["build", "demo/controlled", data_dir]) == 0
    out = tmp_path / "made"
    words = [f"--network={NETWORK}", f"--out={out}", "--count=12", "--detector=none"]
    assert main(["synthesize", *words, "--min_size=32"]) == 0
    rows = generated.read(out / generated.RECORDS, generated.record_columns("emotion"))
    assert len(rows) == 12 * len(EMOTIONS)
    words = ["synthetic/grouped", f"--source={out}", "--detector=none", data_dir]
    assert main(["build", *words]) == 0
    words = [f"--config={ROOT / 'configs' / 'demo.py'}", f"--workdir={tmp_path / 'run'}", data_dir]
    words += ["--config.sources=synthetic/grouped"]
    test_sets = "--config.test_sets=({'name': 'demo/controlled', 'test': 'train'},)"
    capsys.readouterr()
    assert main(["train", *words, test_sets]) == 2
    assert "the generator that made synthetic/grouped saw" in capsys.readouterr().err
