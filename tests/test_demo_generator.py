"""The demo's committed generator: small, of known people, its faces recognizable."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from data_builders.demo import world
from data_builders.rendered.rendered_dataset_builder import filmed
from fer_jax import demo
from fer_jax.__main__ import main
from fer_jax.config import load_config, to_json
from fer_jax.data import splits, synthetic
from fer_jax.demo import NETWORK, ROOT
from fer_jax.media import images
from fer_jax.schema import EMOTIONS
from fer_jax.storage import read_table
from fer_jax.training.gan import check_generator

SIDE = 32
EACH = 12
APEX = 6  # a frame of a reaction


def test_it_is_small_and_records_its_origin():
    files = sorted(path.name for path in NETWORK.iterdir())
    assert files == ["arrays.safetensors", "config.json"]
    assert sum(path.stat().st_size for path in NETWORK.iterdir()) < 2e6
    about = json.loads((NETWORK / "config.json").read_text())
    config = load_config(str(ROOT / "configs" / "stylegan_demo.py"), check_generator)
    assert about["training"] == json.loads(to_json(config))
    (saw,) = about["saw"]
    assert (saw["dataset"], saw["split"]) == ("neurobiosense/grouped", "train")
    people = {name(one) for one in laboratory() if part(one) == "train"}
    assert set(about["subjects"]) == people and len(people) == 96


def laboratory() -> list[world.Viewer]:
    """The people of the demo's laboratory."""
    viewer = functools.partial(world.viewer, world.World(demo.SEED), "laboratory")
    return demo.invited(viewer, "laboratory", demo.WHOLE.people["laboratory"])


def name(one: world.Viewer) -> str:
    return f"neurobiosense/p{one.id}"


def part(one: world.Viewer) -> str:
    return splits.grouped(splits.group_key("neurobiosense", subject=name(one), clip="", record=""))


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
    """By ridge regression on rendered people."""
    people = laboratory()[:60]
    shown = [(one, reaction) for one in people for reaction in one.reactions]
    found = [filmed({"record_id": "", "_filmed": (*each, APEX)}) for each in shown]
    kept = [(each, crop.faces[0]) for each, crop in zip(shown, found, strict=True) if crop.faces]
    pictures = [images.decode(face["image"]) for _, face in kept]
    rendered = features([images.resized(picture, SIDE) for picture in pictures])
    emotions = np.asarray([EMOTIONS.index(reaction.emotion) for (_, reaction), _ in kept])
    seen = np.asarray([one.number < people[45].number for (one, _), _ in kept])
    mean = rendered[seen].mean(axis=0)
    centred = rendered[seen] - mean
    kernel = centred @ centred.T + 1e6 * np.eye(len(centred))
    weights = centred.T @ np.linalg.solve(kernel, np.eye(len(EMOTIONS))[emotions[seen]])

    def predict(values: np.ndarray) -> np.ndarray:
        return np.argmax((values - mean) @ weights, axis=1)

    # The regression generalizes to unseen people.
    assert np.mean(predict(rendered[~seen]) == emotions[~seen]) > 0.7

    rows = read_table(faces / synthetic.RECORDS, synthetic.record_columns("emotion"))
    asked = np.asarray([EMOTIONS.index(row["label"]) for row in rows])
    right = predict(features([images.read(faces / row["file"]) for row in rows])) == asked
    recall = [right[asked == emotion].mean() for emotion in range(len(EMOTIONS))]
    assert np.mean(recall) > 0.5
    assert np.sum(np.greater(recall, 2 / len(EMOTIONS))) >= 5
