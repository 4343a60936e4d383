"""The predictions table comes back as it was written, and refuses what makes no sense."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from fer_jax.errors import InputError
from fer_jax.evaluation import predictions
from fer_jax.inference.network import predict_step
from fer_jax.models import xception
from fer_jax.schema import EMOTIONS


def table(n: int = 6, dataset: str = "jaffe/folds", seed: int = 0) -> predictions.Table:
    rng = np.random.default_rng(seed)
    text = {name: np.full(n, "x") for name in predictions.TEXT}
    return text | {
        "dataset": np.full(n, dataset),
        "split": np.full(n, "test"),
        "record_id": np.asarray([f"{dataset}/{i}" for i in range(n)]),
        "subject_id": np.asarray(["NA" if i % 2 else "KA, 1" for i in range(n)]),
        "clip_id": np.full(n, ""),
        "frame_index": np.arange(n),
        "age": np.full(n, -1.0),
        "label": np.arange(n) % 8 - 1,
        "probabilities": rng.dirichlet(np.ones(7), n).astype(np.float32).astype(np.float64),
    }


def test_it_comes_back_bit_for_bit(tmp_path: Path):
    path = tmp_path / "x.csv"
    predictions.write(path, table(), EMOTIONS)
    again, classes = predictions.read(path)
    assert classes == EMOTIONS
    for name, column in table().items():
        if name == "probabilities":
            np.testing.assert_array_equal(again[name].astype(np.float32), column.astype(np.float32))
        else:
            np.testing.assert_array_equal(again[name], column)
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"]


def test_file_names_are_safe_and_do_not_collide():
    pairs = [("jaffe/folds", "fold_0+fold_1"), ("a", "train[90%:]"), ("a", "train[:90%]")]
    names = [predictions.file_name(*pair) for pair in pairs]
    assert names[0] == "jaffe-folds.fold_0+fold_1.csv"
    assert len(set(names)) == len(names)
    assert predictions.file_name("a", "test", "int8") == "a.test.int8.csv"
    assert "/" not in predictions.file_name("../../etc", "x/y")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("record_id,", "id,", "lacks the columns record_id"),
        (",anger,", ",contempt,", "unknown label 'contempt'"),
        ("/folds/1,", "/folds/0,", "occurs twice"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path: Path, old: str, new: str, says: str):
    path = tmp_path / "x.csv"
    predictions.write(path, table(), EMOTIONS)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=says):
        predictions.read(path)


def test_probabilities_that_do_not_sum_to_one_are_refused(tmp_path: Path):
    wrong = table()
    wrong["probabilities"][3] *= 1.01
    predictions.write(tmp_path / "x.csv", wrong, EMOTIONS)
    with pytest.raises(InputError, match=r"line 5: probabilities sum to 1\.0"):
        predictions.read(tmp_path / "x.csv")
    outside = table()
    outside["probabilities"][3] = [1.5, -0.5, 0, 0, 0, 0, 0]
    predictions.write(tmp_path / "x.csv", outside, EMOTIONS)
    with pytest.raises(InputError, match=r"line 5: p_anger must be from 0 to 1, got 1\.5"):
        predictions.read(tmp_path / "x.csv")
    header = (tmp_path / "x.csv").read_text().splitlines()[0]
    (tmp_path / "x.csv").write_text(header + "\n")
    with pytest.raises(InputError, match="has no predictions"):
        predictions.read(tmp_path / "x.csv")


@pytest.fixture(scope="module")
def network() -> tuple[dict[str, Any], Any]:
    model = {"num_classes": 3, "width": 0.03, "num_middle_blocks": 0, "image_size": 71}
    params, batch_stats = xception.init(jax.random.key(0), **model)
    graphdef = xception.graphdef(**model)
    return {"params": params, "batch_stats": batch_stats, "ema": {}}, graphdef


def test_a_flip_is_the_mean_over_both_ways_to_see_a_face(network: tuple[dict[str, Any], Any]):
    arrays, graphdef = network
    images = np.random.default_rng(0).integers(0, 256, (2, 71, 71, 3), dtype=np.uint8)
    both = jax.jit(partial(predict_step, graphdef=graphdef, flip=True))(arrays, images)
    plain = jax.jit(partial(predict_step, graphdef=graphdef))
    one, mirrored = plain(arrays, images), plain(arrays, images[:, :, ::-1])
    np.testing.assert_allclose(both, (one + mirrored) / 2, atol=1e-6)
    assert np.abs(np.asarray(one - mirrored)).max() > 1e-4
