"""The demo's committed generator: small, of known people, its faces recognizable."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_builders.demo import demo_dataset_builder as demo
from fer_jax.__main__ import main
from fer_jax.config import load_config, to_json
from fer_jax.data import synthetic
from fer_jax.demo import NETWORK, ROOT
from fer_jax.media import images
from fer_jax.schema import EMOTIONS
from fer_jax.storage import read_table
from fer_jax.training.gan import check_generator

SIDE = 32
EACH = 12


def test_it_is_small_and_records_its_origin():
    files = sorted(path.name for path in NETWORK.iterdir())
    assert files == ["arrays.safetensors", "config.json"]
    assert sum(path.stat().st_size for path in NETWORK.iterdir()) < 2e6
    about = json.loads((NETWORK / "config.json").read_text())
    config = load_config(str(ROOT / "configs" / "stylegan_demo.py"), check_generator)
    assert about["training"] == json.loads(to_json(config))
    assert about["saw"] == [{"dataset": "demo/controlled", "split": "train", "unnamed": 0}]
    rows = demo.list_rows("controlled")
    people = {row["subject_id"] for row in rows if row["split"] == "train"}
    assert set(about["subjects"]) == people


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EACH faces of each emotion, as `fer-jax demo` generates them."""
    out = tmp_path_factory.mktemp("demo_generator") / "faces"
    words = [f"--network={NETWORK}", f"--out={out}", f"--count={EACH}", "--detector=none"]
    assert main(["synthesize", *words, "--min_size=32"]) == 0
    return out


def features(faces: list[np.ndarray]) -> np.ndarray:
    """From the brows to the chin of [n, SIDE, SIDE, 3]: float64 [n, values]."""
    return np.stack(faces)[:, 6:28, 7:25].reshape(len(faces), -1).astype(np.float64)


def test_its_faces_show_the_requested_emotion(faces: Path):
    """By ridge regression on the rendered people that the network has seen."""
    rows = demo.list_rows("controlled")
    pictures = [images.decode(demo.render(row)[0].faces[0]["image"]) for row in rows]
    rendered = features([images.resized(picture, SIDE) for picture in pictures])
    emotions = np.asarray([row["emotion"] for row in rows])
    seen = np.asarray([row["split"] == "train" for row in rows])
    mean = rendered[seen].mean(axis=0)
    centred = rendered[seen] - mean
    kernel = centred @ centred.T + 1e6 * np.eye(len(centred))
    weights = centred.T @ np.linalg.solve(kernel, np.eye(len(EMOTIONS))[emotions[seen]])

    def predict(values: np.ndarray) -> np.ndarray:
        return np.argmax((values - mean) @ weights, axis=1)

    # The regression generalizes to unseen people.
    assert np.mean(predict(rendered[~seen]) == emotions[~seen]) > 0.8

    rows = read_table(faces / synthetic.RECORDS, synthetic.record_columns("emotion"))
    asked = np.asarray([EMOTIONS.index(row["label"]) for row in rows])
    right = predict(features([images.read(faces / row["file"]) for row in rows])) == asked
    recall = [right[asked == emotion].mean() for emotion in range(len(EMOTIONS))]
    assert np.mean(recall) > 0.5
    assert np.sum(np.greater(recall, 2 / len(EMOTIONS))) >= 5


def test_a_run_that_is_tested_on_people_it_saw_is_refused(
    faces: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(demo, "NUM_SUBJECTS", 30)
    data_dir = f"--data_dir={tmp_path}"
    assert main(["build", "demo/controlled", data_dir]) == 0
    words = ["synthetic/grouped", f"--source={faces}", "--detector=none", data_dir]
    assert main(["build", *words]) == 0
    words = [f"--config={ROOT / 'configs' / 'demo.py'}", f"--workdir={tmp_path / 'run'}", data_dir]
    words += ["--config.sources=synthetic/grouped"]
    test_sets = "--config.test_sets=({'name': 'demo/controlled', 'test': 'train'},)"
    capsys.readouterr()
    assert main(["train", *words, test_sets]) == 2
    assert "the generator of synthetic/grouped saw" in capsys.readouterr().err
