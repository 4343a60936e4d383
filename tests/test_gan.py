"""The training of a generator: what it leaves behind, how it continues, and what it refuses."""

import csv
import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import write_dataset, write_network

from fer_jax import checkpoints, results
from fer_jax.__main__ import main
from fer_jax.config import Config, default_config, default_generator, to_json
from fer_jax.data import provenance
from fer_jax.data.records import open_records
from fer_jax.errors import InputError, Preempted
from fer_jax.schema import EMOTIONS
from fer_jax.sharding import batch_sharding, make_mesh, replicated
from fer_jax.synthesis.generator import load_generator
from fer_jax.training import gan, gan_measures, gan_step, preemption, start
from fer_jax.training.log import read_metrics
from fer_jax.weights import convert

SUBJECTS = [(f"p{n // 7}", n % 7) for n in range(7 * 15)]


def tiny_config(**changes: Any) -> Config:
    """Six steps on one device, every part of a step among them; measured after 3 and 6."""
    config = default_generator()
    config.sources = ("lab",)
    config.batch_size = 8
    config.num_images = 48
    config.model.image_size = 8
    config.model.channel_base, config.model.channel_max = 64, 8
    config.model.latent_dim = 8
    config.r1_interval, config.path_interval = 2, 3
    config.measure.every_images, config.measure.images = 24, 100
    config.log_every_steps = 2
    config.update(changes)
    return config


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    """One device, images enough for small networks."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (gan, start):
            patch.setattr(module, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
        patch.setattr(gan, "MIN_CLASS_IMAGES", 10)
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    rows = {"train": SUBJECTS, "validation": [("v", 0)], "test": [("t", 1), ("p3", 2)]}
    write_dataset(directory, "lab", rows)
    write_dataset(directory, "grey", rows, first=500, grey=True)
    few = [one for one in SUBJECTS if one[1] != 2] + [("q", 2)] * 3
    write_dataset(directory, "few", {"train": few, "validation": [("v", 0)]})
    none = [one for one in SUBJECTS if one[1] != 5]
    write_dataset(directory, "none", {"train": none, "validation": [("v", 0)]})
    return directory


@pytest.fixture(scope="module")
def finished(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    gan.train(tiny_config(), workdir, data_dir)
    return workdir


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    timed = ("images_per_second", "data_wait_share")
    return [
        {name: value for name, value in row.items() if name not in timed}
        for row in read_metrics(workdir)
    ]


def arrays_of(workdir: Path, step: int) -> Any:
    with checkpoints.open_checkpoints(workdir, keep=2, metric=gan.METRIC) as manager:
        items = manager.restore(step)
    return items["network"], items["training"]


def test_a_run_leaves_a_network_and_what_it_is_worth(finished: Path, data_dir: Path):
    rows = rows_of(finished)
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    assert [row["images"] for row in rows] == [16, 24, 32, 48]
    assert all(np.isfinite(row["discriminator_loss"]) for row in rows)
    # The lazy parts report where they were due, and so do the measures.
    assert [("r1" in row, "path_penalty" in row) for row in rows] == [
        *((True, False), (False, True), (True, False), (True, True))
    ]
    assert [set(gan_measures.NAMES) <= set(row) for row in rows] == [False, True, False, True]
    for step in (3, 6):
        grid = cv2.imread(str(finished / "samples" / f"{step:07}.png"))
        assert grid is not None and grid.shape[0] > 7 * 64 and grid.std() > 5
    generator = load_generator(finished / gan.FOLDER)
    assert (generator.c_dim, generator.resolution, generator.z_dim) == (7, 8, 8)
    best = checkpoints.best_step([row for row in rows if gan.METRIC in row], gan.METRIC)
    network, _ = arrays_of(finished, int(best or 0))
    for name in ("mapping", "synthesis"):
        there, kept = network["average"][name], generator.params[name]
        jax.tree.map(np.testing.assert_array_equal, there, dict(kept))
    np.testing.assert_allclose(
        generator.buffers["w_avg"], network["w_average"].mean(axis=0), rtol=1e-5
    )
    about = convert.read_about(finished / gan.FOLDER)
    assert about["classes"] == list(EMOTIONS) and about["measured"]["step"] == best
    (saw,) = about["saw"]
    assert (saw["dataset"], saw["split"], saw["unnamed"]) == ("lab", "train", 0)
    assert about["unknown"] == []
    assert about["subjects"] == sorted({f"lab/{who}" for who, _ in SUBJECTS})
    assert gan.train(tiny_config(), finished, data_dir)["step"] == best  # finished: nothing to do


def test_its_faces_are_labelled_and_remember_whom_it_saw(
    finished: Path, data_dir: Path, tmp_path: Path
):
    out = tmp_path / "faces"
    words = ["synthesize", f"--network={finished / gan.FOLDER}", f"--out={out}", "--count=2"]
    gates = ["--min_size=8", "--min_contrast=0", "--min_sharpness=0"]
    assert main([*words, *gates, "--detector=none", "--psi=0.7"]) == 0
    with (out / "records.csv").open() as table:
        labels = [row["label"] for row in csv.DictReader(table)]
    assert sorted(labels) == sorted(2 * EMOTIONS)
    assert (out / "class_means.safetensors").is_file()
    words = ["build", "synthetic/folds", "--folds=2", "--name=made", f"--source={out}"]
    assert main([*words, f"--data_dir={tmp_path}", "--detector=none"]) == 0
    shutil.copytree(data_dir / "lab", tmp_path / "lab")
    made = open_records("made", "all", tmp_path)
    tested = [open_records("lab", "test", tmp_path)]
    ((_, _, sentence),), unknown = provenance.behind([made], tested, tmp_path, {})
    assert "the generator of made saw 1 of the subjects" in sentence and "p3'" in sentence
    assert unknown == []


def test_its_page_shows_the_faces_and_every_measure(finished: Path):
    assert main(["report", f"--workdir={finished}"]) == 0
    page = (finished / "report.html").read_text()
    measured = [row for row in rows_of(finished) if gan.METRIC in row]
    for row in measured:
        assert f"Step {row['step']}, {row['images']:.0f} images" in page
        for name in gan_measures.NAMES:
            assert f"<td>{results.number(row[name])}</td>".replace("-", "\N{MINUS SIGN}") in page
    best = min(measured, key=lambda row: row[gan.METRIC])
    assert f"at step {best['step']} (" in page
    assert page.count("data:image/png;base64,") == len(measured) and "http" not in page


def test_a_stopped_run_continues_bit_for_bit(
    finished: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for stop in (1, 3):  # steps from the beginning of each call
        looks = 0

        def check(notice: preemption.PreemptionNotice, stop: int = stop) -> None:
            nonlocal looks
            looks += 1
            if looks == stop:
                raise Preempted("SIGTERM")

        monkeypatch.setattr(preemption.PreemptionNotice, "check", check)
        with pytest.raises(Preempted) as raised:
            gan.train(tiny_config(), tmp_path, data_dir)
        assert raised.value.message.startswith(f"SIGTERM: step {1 if stop == 1 else 4} is saved")
    monkeypatch.undo()
    gan.train(tiny_config(), tmp_path, data_dir)
    jax.tree.map(np.testing.assert_array_equal, arrays_of(tmp_path, 6), arrays_of(finished, 6))
    assert rows_of(tmp_path) == rows_of(finished)


def test_eight_devices_equal_one_in_float64():
    with jax.enable_x64(True):
        recipe = dataclasses.replace(
            gan.recipe_of(tiny_config()), batch_size=16, augment_interval=1, dtype="float64"
        )
        rng = np.random.default_rng(0)
        batch = {
            "image": rng.integers(0, 256, (16, 8, 8, 3), np.uint8),
            "target": np.eye(7)[rng.integers(0, 7, 16)],
        }
        state = jax.jit(functools.partial(gan_step.init_state, recipe=recipe))(jax.random.key(0))
        # Halfway, so that augmentation does something.
        first = jax.tree.map(
            lambda x: np.asarray(x, np.float64 if x.dtype == jnp.float32 else x.dtype),
            dataclasses.replace(state, augment_p=jnp.float32(0.5)),
        )
        results = []
        for devices in (jax.devices()[:1], jax.devices()[:8]):
            mesh = make_mesh(devices)
            own = dataclasses.replace(recipe, mesh=mesh)
            everywhere = jax.tree.map(lambda _, mesh=mesh: replicated(mesh), first)
            parts = gan.jit_parts(own, everywhere, mesh)
            state = jax.device_put(first, everywhere)
            placed = jax.device_put(batch, batch_sharding(mesh))
            scalars: dict[str, Any] = {}
            for number, part in enumerate(parts.values()):
                key = jax.device_put(jax.random.key(number), replicated(mesh))
                state, more = part(state, placed, key)
                scalars |= more
            results.append(jax.device_get((state, scalars)))
        (one, ours), (eight, theirs) = results
        for name, value in ours.items():
            assert float(value) == pytest.approx(float(theirs[name]), rel=1e-9), name
        # Adam divides by the gradient's size: where that is nothing, its sign is left.
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"sources": ("few",)}, r"too few images to learn disgust|fear \(3\)"),
        ({"sources": ("few",)}, r"at least 10; add sources"),
        ({"sources": ("none",)}, r"sadness \(0\) from"),
        (
            {"sources": ("lab", "grey")},
            r"grey and coloured .*lab 0% grey, grey 100% grey.*grayscale",
        ),
        ({"batch_size": 9}, "not divisible by 1 devices x 2"),
        ({"model.image_size": 48}, "resolution must be a power of two"),
        ({"augment.groups": ("blits",)}, "did you mean 'blit'"),
        ({"measure.images": 5}, "measure.images must be at least 100"),
        ({"freeze_blocks": 2}, "freeze_blocks must be below 2, .* got 2"),
        ({"class_weight": -1.0}, "class_weight must be at least 0"),
        (
            {"class_weight": 1.0, "model.conditional": False},
            "class_weight is 1.0 and config.model.conditional is false",
        ),
        ({"init_from": "/none/there"}, "'/none/there' does not exist"),
    ],
)
def test_what_no_generator_can_be_made_of_is_refused(
    data_dir: Path, tmp_path: Path, changes: dict[str, Any], says: str
):
    config = tiny_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=says):
        gan.train(gan.check_generator(config), tmp_path / "run", data_dir)
    assert not (tmp_path / "run").exists()


def test_grey_sources_can_be_mixed_in_where_colours_are_left_out(data_dir: Path, tmp_path: Path):
    config = tiny_config(sources=("lab", "grey"), grayscale=True, num_images=8)
    assert gan.train(config, tmp_path, data_dir)["step"] == 1


def test_another_network_is_a_start_if_it_fits(finished: Path, data_dir: Path, tmp_path: Path):
    write_network(tmp_path / "lonely", c_dim=7)
    with pytest.raises(InputError, match="G_ema: a generator and its discriminator D are needed"):
        gan.train(tiny_config(init_from=str(tmp_path / "lonely")), tmp_path / "run", data_dir)
    # Another run, with blocks that do not learn.
    _, training = arrays_of(finished, 6)
    config = tiny_config(init_from=str(finished), freeze_blocks=1, num_images=8)
    gan.train(config, tmp_path / "on", data_dir)
    _, after = arrays_of(tmp_path / "on", 1)
    np.testing.assert_array_equal(
        after["discriminator"]["b8"]["conv0"]["weight"],
        training["discriminator"]["b8"]["conv0"]["weight"],
    )
    moved = after["discriminator"]["b4"]["conv"]["weight"]
    there = training["discriminator"]["b4"]["conv"]["weight"]
    assert 0 < np.abs(moved - there).max() < 0.01
    larger = tiny_config(init_from=str(finished))
    larger.model.image_size = 16
    with pytest.raises(InputError, match="has 8 pixels a side, and the config 16"):
        gan.train(larger, tmp_path / "larger", data_dir)
    plain = tiny_config(init_from=str(finished))
    plain.model.conditional = False
    with pytest.raises(InputError, match="has 7 classes, and the config 0"):
        gan.train(plain, tmp_path / "plain", data_dir)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_records(data_dir: Path, tmp_path: Path):
    config = tiny_config(learning_rate=1e30, r1_interval=100, path_weight=0.0)
    config.augment.groups = ("blit",)
    with pytest.raises(InputError, match=r"is not finite at step \d, of records lab/train_"):
        gan.train(config, tmp_path, data_dir)
    found = json.loads((tmp_path / "not_finite.json").read_text())
    assert len(found["record_ids"]) == 8


def test_a_network_without_classes(data_dir: Path, tmp_path: Path):
    config = tiny_config(num_images=8, path_weight=0.0)
    config.model.conditional = False
    config.augment.groups = ("blit",)
    gan.train(config, tmp_path, data_dir)
    assert load_generator(tmp_path / gan.FOLDER).c_dim == 0
    assert convert.read_about(tmp_path / gan.FOLDER)["classes"] == []


def test_a_generators_workdir_is_no_classifiers(
    finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    for words in (["evaluate"], ["export"]):
        assert main([*words, f"--workdir={finished}"]) == 2
        assert "holds the training of a generator (`fer-jax synthesize`" in capsys.readouterr().err
    (tmp_path / "config.json").write_text(to_json(default_config()))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(InputError, match="holds the training of a classifier"):
        gan.train(tiny_config(), tmp_path, tmp_path)


def test_collapse_is_told():
    row = {"kid": 0.1, "frechet": 1.0, "precision": 0.5, "recall": 0.5, "near_duplicates": 0.0}
    assert gan_measures.collapse_warning(row) == ""
    assert "collapse" in gan_measures.collapse_warning(row | {"near_duplicates": 0.2})
    line = gan_measures.line(3, [{"step": 3} | row | {"recall": 0.01}], "kid", "pixels")
    assert "WARNING: only 1.0% of the real faces" in line and "features: pixels" in line
