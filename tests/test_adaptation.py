"""Statistics of a test set in place of the training's: what they are, and that they help."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_runs import picture, write_rows
from test_train import TINY

from fer_jax import schema
from fer_jax.__main__ import main
from fer_jax.config import default_config
from fer_jax.data.records import open_records
from fer_jax.evaluation import predictions
from fer_jax.media.extraction import Found
from fer_jax.media.images import encode_jpeg
from fer_jax.methods import adaptation
from fer_jax.models import xception
from fer_jax.sharding import make_mesh, replicated
from fer_jax.training import classifier as program

SIZE = 72
EMOTIONS = (0, 3, 6)  # one for each place of the bright spot


def spot(emotion: int, seed: int, contrast: float) -> np.ndarray:
    """A pattern with a bright spot whose place is the emotion, uint8 [72, 72, 3]."""
    place = EMOTIONS.index(emotion)
    down, across = np.mgrid[:SIZE, :SIZE]
    centre = (18 + 36 * (place // 2), 18 + 36 * (place % 2))
    blob = np.exp(-((down - centre[0]) ** 2 + (across - centre[1]) ** 2) / 150)[..., None]
    image = np.float64(picture(seed, SIZE)) * 0.5 + 130 * blob
    # A faded picture: its grey levels lie together, somewhere else.
    return np.clip(contrast * image + (1 - contrast) * 200, 0, 255).astype(np.uint8)


def write_spots(data_dir: Path, name: str, parts: dict[str, int], contrast: float = 1.0) -> None:
    def read(row: dict[str, Any]) -> list[Found]:
        image = spot(row["emotion"], row["_seed"], contrast)
        return [Found(row["record_id"], [{"image": encode_jpeg(image)}])]

    rows = [
        {
            "record_id": f"{name}/{split}_{index}",
            "source": name,
            "subject_id": f"{name}/{split}_{index // 6}",
            "emotion": EMOTIONS[index % 3],
            "interest": schema.UNKNOWN,
            "split": split,
            "_seed": 1000 * number + index,
        }
        for number, (split, count) in enumerate(parts.items())
        for index in range(count)
    ]
    write_rows(data_dir, name, rows, read)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    write_spots(directory, "bright", {"train": 96, "validation": 24, "test": 60})
    write_spots(directory, "faded", {"train": 6, "validation": 6, "test": 60}, contrast=0.3)
    write_spots(directory, "few", {"test": 31}, contrast=0.9)
    return directory


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = default_config()
    config.sources, config.test_sets = ("bright",), ("bright", "faded", "few")
    config.batch_size, config.num_epochs = 32, 12.0
    config.validate_every_epochs = 12.0
    config.optimizer.learning_rate = 1e-2
    config.model.update({"width": 0.06, "num_middle_blocks": 0, "image_size": SIZE})
    config.model.update({"dropout": 0.0, "batch_norm_momentum": 0.9})
    for name in ("rotation_degrees", "shift", "shear", "zoom"):
        config.augment[name] = 0.0
    config.augment.horizontal_flip = False
    workdir = tmp_path_factory.mktemp("run")
    program.train(config, workdir, data_dir)
    return workdir


def test_adaptation_helps_under_another_contrast_and_is_a_table_of_its_own(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    assert main(["evaluate", f"--workdir={workdir}"]) == 0
    plain = {path.name: path.read_bytes() for path in (workdir / "predictions").glob("*.csv")}
    assert main(["evaluate", f"--workdir={workdir}", "--adapt"]) == 0
    printed = capsys.readouterr().out
    assert "faded test, adapted ->" in printed
    assert "few test has 31 images; --adapt needs 32, so it is evaluated without" in printed
    tables = {path.name: path.read_bytes() for path in (workdir / "predictions").glob("*.csv")}
    adapted = {f"{name}.test.adapted.csv" for name in ("bright", "faded")}
    assert tables.keys() == plain.keys() | adapted
    assert all(tables[name] == plain[name] for name in plain)
    one, other = (
        predictions.read(workdir / "predictions" / f"faded.test{variant}.csv")[0]
        for variant in ("", ".adapted")
    )
    np.testing.assert_array_equal(one["record_id"], other["record_id"])
    np.testing.assert_array_equal(one["label"], other["label"])

    results = json.loads((workdir / "results.json").read_text())
    scores = {(s["dataset"], s["variant"]): s for s in results["sets"]}
    balanced = {key: s["balanced_accuracy"] for key, s in scores.items()}
    assert balanced["bright", ""] > 0.9 and balanced["bright", "adapted"] > 0.9
    assert balanced["faded", ""] < 0.6
    assert balanced["faded", "adapted"] > balanced["faded", ""] + 0.3
    # The temperature is of the plain network; a variant's leaks are its set's; means leave it out.
    assert scores["faded", "adapted"]["calibrated"] is None and scores["faded", ""]["calibrated"]
    assert scores["faded", "adapted"]["leaks"] == scores["faded", ""]["leaks"] == {}
    # Four validation people carry a promise of 4/5; only plain test sets are scored.
    fitted = results["certainty"]["source"]
    assert fitted["groups"] == 4 and fitted["of"] == "subject" and fitted["most"] == 0.8
    assert scores["faded", "adapted"]["certainty"] is None
    assert scores["bright", ""]["certainty"]["source"]["coverage"] > 0.7
    assert scores["faded", ""]["certainty"]["source"]["answered"] >= 0
    cross = (balanced["faded", ""] + balanced["few", ""]) / 2
    assert results["means"]["cross_domain"]["balanced_accuracy"] == pytest.approx(cross, abs=1e-12)


def test_a_set_too_small_is_refused_before_anything_is_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    assert main(["evaluate", f"--workdir={workdir}", "--data=few", "--adapt"]) == 2
    printed = capsys.readouterr().err
    assert "--adapt needs 32 images of a set, and few test has 31 images" in printed
    assert printed.count("\n") == 1
    assert not (workdir / "predictions").exists()


@pytest.fixture(scope="module")
def small() -> tuple[dict[str, Any], dict[str, Any], adaptation.MomentsStep]:
    """(model, network, step) on all devices."""
    model = TINY | {"num_middle_blocks": 0, "dropout": 0.3}
    mesh = make_mesh()
    params, batch_stats = xception.init(jax.random.key(0), **model)
    network = jax.device_put(
        {"params": params, "batch_stats": batch_stats, "ema": {}}, replicated(mesh)
    )
    sharding = jax.tree.map(lambda x: x.sharding, network)
    return model, network, adaptation.compile_moments_step(model, sharding, mesh)


def test_batches_together_have_the_moments_of_all_their_images(small: Any):
    _, network, step = small
    rng = np.random.default_rng(0)
    # Batches of different light, so that the variance between them counts.
    light = 40 * np.arange(4).repeat(8)[:, None, None, None]
    images = (rng.integers(0, 100, (32, 71, 71, 3)) + light).astype(np.uint8)
    parts = adaptation.estimated(step, network, list(images.reshape(4, 8, 71, 71, 3)))
    whole = jax.device_get(step(network, images))
    # Later layers see what each batch's own moments normalised; the first sees the images.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        parts["stem1"],
        whole["stem1"],
    )


def test_source_and_target_are_mixed_by_their_numbers_of_images(small: Any, data_dir: Path):
    _, network, step = small
    records = open_records("bright", "test", data_dir)
    how = {"batch_size": 16, "image_size": 71, "mesh": make_mesh()}
    none, some, all_of_it = (
        adaptation.adapted(step, network, records, **how, source_images=n) for n in (0, 20, 10**9)
    )
    for mixed in (none, some, all_of_it):
        assert mixed["params"] is network["params"]
    # 60 images against 20: three quarters.
    jax.tree.map(
        lambda ours, theirs, mixed: np.testing.assert_allclose(
            mixed, 0.25 * ours + 0.75 * theirs, rtol=1e-5, atol=1e-6
        ),
        *jax.device_get((network["batch_stats"], none["batch_stats"], some["batch_stats"])),
    )
    jax.tree.map(
        lambda ours, mixed: np.testing.assert_allclose(mixed, ours, rtol=1e-3, atol=1e-5),
        *jax.device_get((network["batch_stats"], all_of_it["batch_stats"])),
    )
