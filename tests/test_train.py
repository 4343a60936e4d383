"""The training step and the program around it, on a tiny network."""

import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_runs import write_rows

from data_builders.demo import demo_dataset_builder as demo
from fer_jax import checkpoints, distributed, schema
from fer_jax.__main__ import main
from fer_jax.config import default_config, fields, load_config
from fer_jax.data.augment import Augmentation
from fer_jax.errors import InputError, Preempted
from fer_jax.evaluation import predictions
from fer_jax.evaluation.evaluate import evaluate
from fer_jax.export.export import export
from fer_jax.inference import network
from fer_jax.media.extraction import Found
from fer_jax.models import xception
from fer_jax.sharding import batch_sharding, make_mesh, replicated, state_sharding, with_shardings
from fer_jax.training import classifier as program
from fer_jax.training import preemption, start
from fer_jax.training.log import read_metrics
from fer_jax.training.step import StepOptions, TrainState, cross_entropy, init_state, train_step

TINY = {
    "num_classes": 7,
    "width": 0.03,
    "num_middle_blocks": 0,
    "head": "gap",
    "image_size": 71,
    "dropout": 0.0,
    "dtype": "float32",
    "batch_norm_momentum": 0.9,
}
pytestmark = pytest.mark.usefixtures("short_network")
NO_AUGMENTATION = Augmentation(
    rotation_degrees=0.0, shift=0.0, shear=0.0, zoom=0.0, horizontal_flip=False
)


def uneven_batch(n: int = 16, size: int = 71) -> dict[str, np.ndarray]:
    """Images whose contrast differs ten-fold, so that per-device statistics would show."""
    rng = np.random.default_rng(0)
    scale = np.linspace(0.1, 1, n)[:, None, None, None]
    images = 128 + 127 * scale * rng.uniform(-1, 1, (n, size, size, 3))
    targets = np.eye(7, dtype=np.float32)[rng.integers(0, 7, n)]
    return {"image": images.astype(np.uint8), "target": targets}


def make_step(model: dict[str, Any], **changes: Any) -> tuple[Any, TrainState]:
    optimizer = optax.sgd(0.1)
    options = StepOptions(
        graphdef=xception.graphdef(**model),
        optimizer=optimizer,
        class_weights=np.ones(7, np.float32),
        augmentation=NO_AUGMENTATION,
        **changes,
    )
    state = init_state(jax.random.key(0), optimizer, model=model, ema=options.ema_decay > 0)
    return functools.partial(train_step, options=options), state


def run_on(devices: list[Any], step: Any, state: TrainState, batch: Any) -> Any:
    mesh = make_mesh(devices)
    whole = state_sharding(state, mesh, "data_parallel")
    jitted = jax.jit(step, in_shardings=(whole, batch_sharding(mesh), replicated(mesh)))
    return jitted(jax.device_put(state, whole), batch, jax.random.key(1))


@pytest.fixture(scope="module")
def one_and_eight() -> Any:
    step, state = make_step(TINY)
    batch = uneven_batch()
    return tuple(run_on(jax.devices()[:n], step, state, batch) for n in (1, 8)), (step, state)


def test_eight_devices_equal_one_batchnorm_included(one_and_eight: Any):
    ((one, one_metrics), (eight, eight_metrics)), _ = one_and_eight
    assert float(one_metrics.loss.total) == pytest.approx(float(eight_metrics.loss.total), abs=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        jax.device_get(one.batch_stats),
        jax.device_get(eight.batch_stats),
    )


def test_statistics_per_device_would_be_seen(one_and_eight: Any):
    ((one, _), _), (step, state) = one_and_eight
    eighth = {name: value[:2] for name, value in uneven_batch().items()}
    alone, _ = run_on(jax.devices()[:1], step, state, eighth)
    mean = jax.tree.leaves(one.batch_stats)[0]
    assert np.abs(np.asarray(mean) - np.asarray(jax.tree.leaves(alone.batch_stats)[0])).max() > 1e-3


@pytest.mark.parametrize("freeze", ["none", "stem"])
def test_gradients_of_eight_devices_equal_one_in_float64(freeze: str):
    with jax.enable_x64(True):
        model = TINY | {"dtype": "float64"}
        step, state = make_step(model, freeze=freeze)
        state = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state
        )
        batch = uneven_batch()
        batch["target"] = batch["target"].astype(np.float64)
        one, eight = (run_on(jax.devices()[:n], step, state, batch)[0] for n in (1, 8))
        # SGD: the parameters' change is the gradient times the rate.
        jax.tree.map(
            lambda a, b, start: np.testing.assert_allclose(
                (np.asarray(a) - start) / 0.1, (np.asarray(b) - start) / 0.1, atol=1e-9, rtol=0
            ),
            jax.device_get(one.params),
            jax.device_get(eight.params),
            jax.device_get(state.params),
        )


@pytest.mark.parametrize("freeze", ["none", "all but head"])
def test_accumulation_equals_the_whole_batch_with_frozen_statistics(freeze: str):
    batch = uneven_batch(32)
    options = {"frozen_statistics": True, "freeze": freeze}
    whole, state = make_step(TINY, **options)
    parts, _ = make_step(TINY, **options, accumulation_steps=4)
    (a, a_metrics), (b, b_metrics) = (
        jax.jit(step)(state, batch, jax.random.key(1)) for step in (whole, parts)
    )
    assert float(a_metrics.loss.total) == pytest.approx(float(b_metrics.loss.total), rel=1e-5)
    # float32 sums in another order: measured 2e-7.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6, rtol=0), a.params, b.params
    )
    jax.tree.map(np.testing.assert_array_equal, a.batch_stats, state.batch_stats)


def test_float16_skips_an_overflow_and_halves_the_scale():
    step, state = make_step(TINY | {"dtype": "float16"}, dynamic_loss_scale=True)
    state = dataclasses.replace(state, loss_scale=jnp.float32(2.0**15))
    good, metrics = jax.jit(step)(state, uneven_batch(), jax.random.key(1))
    assert np.isfinite(float(metrics.loss.total))
    high = dataclasses.replace(state, loss_scale=jnp.float32(jnp.inf))
    skipped, metrics = jax.jit(step)(high, uneven_batch(), jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, skipped.params, state.params)
    assert int(skipped.step) == 1 and int(skipped.good_steps) == 0
    assert int(good.good_steps) == 1
    last = dataclasses.replace(state, loss_scale=jnp.float32(1.0))
    broken = jax.tree.map(lambda x: x * jnp.nan, last.params)
    _, metrics = jax.jit(step)(
        dataclasses.replace(last, params=broken), uneven_batch(), jax.random.key(1)
    )
    assert np.isnan(float(metrics.loss.total))


def test_the_average_follows_the_parameters():
    step, state = make_step(TINY, ema_decay=0.5)
    following, _ = jax.jit(step)(state, uneven_batch(), jax.random.key(1))
    # The first step forgets with (1 + 0) / (10 + 0) instead of 0.5.
    jax.tree.map(
        lambda e, old, new: np.testing.assert_allclose(e, 0.1 * old + 0.9 * new, atol=1e-6),
        following.ema,
        state.params,
        following.params,
    )


def test_cross_entropy_is_weighted_and_smoothed():
    logits = jnp.asarray([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    targets = jnp.asarray([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    smooth = np.asarray(targets) * 0.9 + 0.1 / 3
    weights = np.asarray([2.0, 0.5 * 1 + 0.5 * 3])
    expected = np.mean(weights * -(smooth * log_p).sum(axis=1))
    found = cross_entropy(logits, targets, jnp.asarray([2.0, 1.0, 3.0]), 0.1)
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny datasets: the demo's first people."""
    directory = tmp_path_factory.mktemp("data")
    for source in ("controlled", "social"):
        people = {f"demo/{source}_{number:03}" for number in (0, 1, 24, 27)}
        rows = [row for row in demo.list_rows(source) if row["subject_id"] in people]
        write_rows(directory, "demo", rows, demo.render, source)
        if source == "social":
            # The same pictures under another name; some of the test part are unlabelled, and
            # all of the validation part.
            rows = [row | {"_shown": row["emotion"]} for row in rows]
            for number, row in enumerate(rows):
                if row["split"] == "validation" or (row["split"] == "test" and number % 4 == 0):
                    row["emotion"] = schema.UNKNOWN

            def render(row: dict[str, Any]) -> list[Found]:
                return demo.render(row | {"emotion": row["_shown"]})

            write_rows(directory, "partly", rows, render, source)
    return directory


def tiny_config(**changes: Any) -> Any:
    config = default_config()
    config.sources = ("demo/controlled",)
    config.test_sets = ("demo/controlled", "demo/social")
    config.batch_size = 8
    config.num_epochs = 4 / 5  # of 5 steps: 4 steps
    config.validate_every_epochs = 2 / 5
    config.log_every_steps = 1
    config.ema_decay = 0.9
    config.schedule.warmup_epochs = 0.2
    for name in ("width", "num_middle_blocks", "image_size", "dropout"):
        config.model[name] = TINY[name] if name != "dropout" else 0.3
    for name, value in changes.items():
        config[name] = value
    return config


def arrays_of(workdir: Path, step: int) -> Any:
    config = tiny_config()
    with checkpoints.open_checkpoints(workdir, keep=2, metric=config.selection_metric) as manager:
        items = manager.restore(step)
    return items["network"], items["training"]


@pytest.fixture(scope="module")
def finished(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    program.train(tiny_config(), workdir, data_dir)
    return workdir


def test_a_stopped_run_continues_bit_for_bit(
    finished: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = checkpoints.save

    def save_then_stop(manager: Any, step: int, **items: Any) -> None:
        save(manager, step, **items)
        manager.wait_until_finished()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        program.train(tiny_config(), tmp_path, data_dir)
    monkeypatch.undo()
    program.train(tiny_config(), tmp_path, data_dir)
    jax.tree.map(np.testing.assert_array_equal, arrays_of(tmp_path, 4), arrays_of(finished, 4))
    rows = [
        [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for workdir in (finished, tmp_path)
    ]
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4]
    for whole, continued in zip(*rows, strict=True):
        assert whole["train_loss"] == continued["train_loss"]
        assert whole.get("validation_loss") == continued.get("validation_loss")


def test_a_run_with_every_method_continues_bit_for_bit(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = tiny_config(
        sources=("demo/controlled", "demo/social"),
        ema_decay=0.0,
        weight_average="swad",
        num_epochs=4 / 10,  # of 10 steps
        validate_every_epochs=1 / 10,
    )
    config.optimizer.learning_rate = 0.1  # so that the loss rises again: SWAD averages a valley
    config.method.update({"mixstyle": 0.5, "coral": 0.5, "sam": 0.05})
    config.mixture.balance_sources = True
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    chosen = program.train(config, whole, data_dir)
    save = checkpoints.save

    def save_then_stop(manager: Any, step: int, **items: Any) -> None:
        save(manager, step, **items)
        manager.wait_until_finished()
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        program.train(config, stopped, data_dir)
    monkeypatch.undo()
    assert program.train(config, stopped, data_dir) == chosen
    network, training = arrays_of(whole, 4)
    jax.tree.map(np.testing.assert_array_equal, arrays_of(stopped, 4), (network, training))
    # What predicts is the average with statistics of its own, not the end of the trajectory.
    for name in ("params", "batch_stats"):
        moved = jax.tree.map(
            lambda a, b: float(np.abs(a - b).max()), network[name], training["trajectory"][name]
        )
        assert max(jax.tree.leaves(moved)) > 1e-4
    assert 1 <= int(training["swad"]["count"]) <= 4
    evaluate(whole, data_dir, [("demo/controlled", "test")])
    validation = json.loads((whole / "results.json").read_text())["calibration"]
    assert validation["sets"] == ["demo/controlled validation", "demo/social validation"]


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of the training, without how fast it was."""
    timed = ("images_per_second", "data_wait_share", "model_flop")
    return [
        {name: value for name, value in row.items() if not name.startswith(timed)}
        for row in read_metrics(workdir)
    ]


def test_signals_before_a_row_is_written_and_in_a_validation_leave_no_trace(
    finished: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # A run looks for a signal after each step and before each of a validation's three batches.
    for looks, step in ((1, 1), (3, 2)):
        seen = 0

        def check(notice: preemption.PreemptionNotice, looks: int = looks) -> None:
            nonlocal seen
            seen += 1
            if seen == looks:
                raise Preempted("SIGTERM")

        monkeypatch.setattr(preemption.PreemptionNotice, "check", check)
        with pytest.raises(Preempted) as raised:
            program.train(tiny_config(), tmp_path, data_dir)
        assert raised.value.message.startswith(f"SIGTERM: step {step} is saved")
        assert checkpoints.finished_steps(tmp_path)[-1] == step
        assert [row["step"] for row in rows_of(tmp_path)] == list(range(1, step))
    monkeypatch.undo()
    program.train(tiny_config(), tmp_path, data_dir)
    jax.tree.map(np.testing.assert_array_equal, arrays_of(tmp_path, 4), arrays_of(finished, 4))
    assert rows_of(tmp_path) == rows_of(finished)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_train
from conftest import ShortXception
from fer_jax import checkpoints
test_train.xception.Xception = ShortXception
write_checksums = checkpoints.write_checksums
def kill_before_the_last(folder):
    if folder.name == "4":
        os.kill(os.getpid(), signal.SIGKILL)
    write_checksums(folder)
checkpoints.write_checksums = kill_before_the_last
test_train.program.train(test_train.tiny_config(), Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def killed(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed when its last checkpoint was written but had no checksums yet."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    words = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(workdir), str(data_dir)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoints.finished_steps(workdir) == [2]
    return workdir


def test_a_killed_run_continues_bit_for_bit(
    killed: Path, finished: Path, data_dir: Path, tmp_path: Path
):
    workdir = Path(shutil.copytree(killed, tmp_path / "run"))
    assert [row["step"] for row in rows_of(workdir)] == [1, 2, 3, 4]
    best = program.train(tiny_config(), workdir, data_dir)
    assert best == program.train(tiny_config(), finished, data_dir)
    jax.tree.map(np.testing.assert_array_equal, arrays_of(workdir, 4), arrays_of(finished, 4))
    assert rows_of(workdir) == rows_of(finished)
    assert (workdir / "checkpoints_corrupted" / "4").is_dir()


def test_a_run_continues_on_another_number_of_devices(
    killed: Path, finished: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    workdir = Path(shutil.copytree(killed, tmp_path / "run"))
    monkeypatch.setattr(start, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    program.train(tiny_config(), workdir, data_dir)
    losses = [[row["train_loss"] for row in rows_of(w)] for w in (finished, workdir)]
    assert losses[1][2] == pytest.approx(losses[0][2], rel=1e-5)


def test_ten_steps_on_another_number_of_devices_agree_in_float64(tmp_path: Path):
    with jax.enable_x64(True):
        step, state = make_step(TINY | {"dtype": "float64"})
        state = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state
        )
        batch = uneven_batch()
        batch["target"] = batch["target"].astype(np.float64)
        state, _ = run_on(jax.devices(), step, state, batch)
        with checkpoints.open_checkpoints(tmp_path, keep=2, metric="validation_loss") as manager:
            network, training = state.split()
            checkpoints.save(manager, 1, network=network, training=training, loop={}, metrics=None)
        losses = []
        for devices in (jax.devices(), jax.devices()[:1]):
            mesh = make_mesh(devices)
            whole = state_sharding(state, mesh, "data_parallel")
            with checkpoints.open_checkpoints(tmp_path, keep=2, metric="validation_loss") as one:
                network, rest = with_shardings(jax.eval_shape(lambda: state), whole).split()
                network, rest = checkpoints.restore(one, 1, network=network, training=rest)
                here = TrainState.merge(network, rest)
            jitted = jax.jit(step, in_shardings=(whole, batch_sharding(mesh), replicated(mesh)))
            losses.append([])
            for _ in range(10):
                here, metrics = jitted(here, batch, jax.random.key(1))
                losses[-1].append(float(metrics.loss.total))
    assert losses[0][0] != losses[0][9]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9, atol=0)


def test_running_again_does_nothing_more(
    finished: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    best = program.train(tiny_config(), finished, data_dir)
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    # Noticed before anything is compiled.
    monkeypatch.setattr(program.memory, "compile_that_fits", None)
    assert program.train(tiny_config(), finished, data_dir) == best
    assert best in [
        {name: value for name, value in row.items() if name in best} for row in rows_of(finished)
    ]
    assert {path: path.read_bytes() for path in before} == before


def test_a_workdir_in_use_is_refused(finished: Path, data_dir: Path):
    in_use = f"in use by process {os.getpid()} on "
    with distributed.lock(finished), pytest.raises(InputError, match=in_use):
        program.train(tiny_config(), finished, data_dir)


def test_other_data_under_the_same_name_do_not_continue_a_run(
    finished: Path, data_dir: Path, tmp_path: Path
):
    workdir = Path(shutil.copytree(finished, tmp_path / "run"))
    file = workdir / "environment.json"
    environment = json.loads(file.read_text())
    environment["datasets"]["demo/controlled"]["fingerprint"] = "0" * 64
    file.write_text(json.dumps(environment))
    with pytest.raises(InputError, match="trained on another build of 'demo/controlled'"):
        program.train(tiny_config(), workdir, data_dir)
    with pytest.raises(InputError, match="trained on 42 images, and 41 can be read now"):
        start.check_images(41, checkpoints.latest_valid_step(workdir)[1], workdir)
    file.write_text("{")
    with pytest.raises(InputError, match="environment.json' is damaged"):
        program.train(tiny_config(), workdir, data_dir)


def test_a_damaged_checkpoint_is_not_evaluated_and_not_continued_from(
    finished: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = Path(shutil.copytree(finished, tmp_path / "run"))
    file = max((workdir / "checkpoints" / "4").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert main(["evaluate", f"--workdir={workdir}", "--checkpoint=last"]) == 2
    said = capsys.readouterr().err
    assert "checkpoint 4 in" in said and f"{file.name} has changed" in said
    assert said.count("\n") == 1
    assert checkpoints.latest_valid_step(workdir)[0] == 2


def test_a_run_is_reproduced_and_what_differs_is_said(
    finished: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, again = shutil.copytree(finished, tmp_path / "run"), tmp_path / "run.reproduced"
    assert main(["evaluate", f"--workdir={run}", "--data=demo/social"]) == 0
    capsys.readouterr()
    assert main(["reproduce", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "versions, commit, machine: the same" in printed
    assert re.search(r"demo-social.test.csv +0\.\d+ +0\.\d+ +equal bit for bit", printed)
    assert printed.endswith(f"'{again}' reproduces '{run}' bit for bit\n")

    # Another seed's log, another version, and a table of another network.
    log, environment = run / "metrics.jsonl", run / "environment.json"
    log.write_text(re.sub(r'("train_loss": )\d', r"\g<1>9", log.read_text()))
    environment.write_text(environment.read_text().replace('"jax": "', '"jax": "0.'))
    file = run / "predictions" / "demo-social.test.csv"
    table, classes = predictions.read(file)
    table["probabilities"] = (table["probabilities"] + 1 / 7) / 2
    predictions.write(file, table, classes)
    assert main(["reproduce", str(run)]) == 1
    printed = capsys.readouterr().out
    assert "jax (was 0." in printed and "first at step 1" in printed
    assert "parameters of the best network: equal bit for bit" in printed
    assert re.search(r"demo-social.test.csv .* up to 0\.\d+ apart", printed)
    assert printed.endswith(f"does not have the same numbers as '{run}'\n")

    # A copy of the run is no reproduction, and another build is no repetition.
    shutil.copytree(finished, tmp_path / "copy")
    assert main(["reproduce", str(run), f"--workdir={tmp_path / 'copy'}"]) == 2
    assert "is not empty; choose a new folder" in capsys.readouterr().err
    about = json.loads(environment.read_text())
    assert set(about["test_datasets"]) == {"demo/controlled", "demo/social"}
    about["test_datasets"]["demo/social"] = "0" * 64
    environment.write_text(json.dumps(about))
    shutil.rmtree(run / "predictions")
    (run / "test_access.jsonl").unlink()
    assert main(["reproduce", str(run)]) == 2
    assert "'demo/social' in" in capsys.readouterr().err


def test_the_workdir_says_what_happened(finished: Path):
    environment = json.loads((finished / "environment.json").read_text())
    assert len(environment["devices"]) == 8
    assert environment["settings"]["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    assert environment["settings"]["jax_disable_most_optimizations"] is not None
    assert environment["usable_cores"] >= 1 and "scipy" in environment["versions"]
    assert len(environment["datasets"]["demo/controlled"]["fingerprint"]) == 64
    config = json.loads((finished / "config.json").read_text())
    assert config["sources"] == ["demo/controlled"]
    assert list((finished / "tensorboard").iterdir())


def test_evaluate_and_report_follow(
    finished: Path, data_dir: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["evaluate", f"--workdir={finished}"]) == 0
    assert main(["evaluate", f"--workdir={finished}", "--data=demo/social", "--split=all"]) == 0
    assert main(["report", f"--workdir={finished}"]) == 0
    results = json.loads((finished / "results.json").read_text())
    counts = {(one["dataset"], one["split"]): one["n"] for one in results["sets"]}
    assert counts == {
        ("demo/controlled", "test"): 21,
        ("demo/social", "test"): 21,
        ("demo/social", "all"): 84,
    }
    assert {one["relation"] for one in results["sets"]} == {"within", "cross_domain"}
    assert "demo/social all" in (finished / "report.html").read_text()
    assert "balanced accuracy" in capsys.readouterr().out


def test_validation_calibrates_and_training_labels_are_a_baseline(
    finished: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    assert main(["evaluate", f"--workdir={workdir}", "--label_shift"]) == 0
    assert "pixel-free" in capsys.readouterr().out
    scored = json.loads((workdir / "results.json").read_text())
    assert scored["calibration"]["sets"] == ["demo/controlled validation"]
    assert scored["calibration"]["temperature"] > 0
    assert {one["variant"] for one in scored["sets"]} == {"", "label_shift"}
    for one in scored["sets"]:
        assert one["cluster"] == "subject" and one["n_clusters"] == one["n_subjects"]
        # The demo has as many images of each emotion whatever the content: nothing to know.
        assert one["pixel_free"]["balanced_accuracy"] == pytest.approx(1 / 7)
    leaks = json.loads((workdir / "leaks.json").read_text())
    assert "demo-controlled.validation.csv" not in leaks
    # On a machine that has the test set but not what was trained on.
    elsewhere = tmp_path / "data"
    shutil.copytree(data_dir / "demo" / "social", elsewhere / "demo" / "social")
    words = ["evaluate", f"--workdir={workdir}", "--data=demo/social", f"--data_dir={elsewhere}"]
    assert main(words) == 0
    assert "not calibrated: the validation parts cannot" in capsys.readouterr().out
    assert main([*words, "--checkpoint=last"]) == 0
    origin = predictions.read_origin(workdir / "predictions" / "demo-social.test.csv")
    assert origin["chosen"] == "last" and len(origin["checksum"]) == 64
    assert main([*words, "--label_shift"]) == 2
    assert "--label_shift calibrates on the validation parts" in capsys.readouterr().err


def test_images_without_a_label_are_predicted_counted_and_not_scored(
    finished: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for name in ("demo/social", "partly/social"):
        assert main(["evaluate", f"--workdir={workdir}", f"--data={name}", "--split=test"]) == 0
    whole, partly = (
        predictions.read(workdir / "predictions" / predictions.file_name(name, "test"))[0]
        for name in ("demo/social", "partly/social")
    )
    unknown = partly["label"] == schema.UNKNOWN
    assert len(unknown) == 21 and 0 < unknown.sum() < 21
    assert f"21 images ({unknown.sum()} without a label: not scored)" in capsys.readouterr().out
    np.testing.assert_array_equal(partly["probabilities"], whole["probabilities"])
    np.testing.assert_array_equal(partly["label"][~unknown], whole["label"][~unknown])
    sets = json.loads((workdir / "results.json").read_text())["sets"]
    scored = next(one for one in sets if one["dataset"] == "partly/social")
    assert (scored["n"], scored["n_unlabelled"]) == ((~unknown).sum(), unknown.sum())
    right = whole["probabilities"].argmax(axis=1) == whole["label"]
    assert scored["accuracy"] == pytest.approx(right[~unknown].mean())
    with pytest.raises(InputError, match="no record of partly/social validation has a label"):
        evaluate(workdir, data_dir, [("partly/social", "validation")])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 12}, "8 devices x 1 accumulation steps; use 8 or 16"),
        ({"sources": ()}, "config.sources is empty"),
        ({"sources": ("demo/controled",)}, "did you mean 'demo/controlled'"),
        ({"test_sets": ("demo/sozial",)}, "test set 'demo/sozial' .* did you mean 'demo/social'"),
        ({"sources": ({"name": "demo/social", "train": "fold_0"},)}, "has no split 'fold_0'"),
        ({"sources": ({"name": "demo/social", "wieght": 1},)}, "did you mean 'weight'"),
        ({"sources": ({"name": "demo/social", "train": 3},)}, "train must be a string, got 3"),
        ({"sources": ({"name": "demo/social", "weight": "1"},)}, "weight must be a number"),
        ({"sources": (1, 2)}, "a dataset's name or a block with one, got 1"),
        ({"sources": ("partly/social",)}, "no record of partly/social validation has a label"),
        ({"init_from": "nowhere.h5"}, "config.init_from 'nowhere.h5' does not exist"),
        ({"batch_size": 64}, "more than the 42 training images"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    changes: dict[str, Any], says: str, data_dir: Path, tmp_path: Path
):
    with pytest.raises(InputError, match=says):
        program.train(tiny_config(**changes), tmp_path, data_dir)


def test_another_config_does_not_continue_a_run(finished: Path, data_dir: Path):
    with pytest.raises(InputError, match=r"seed \(was 0, now 1\)"):
        program.train(tiny_config(seed=1), finished, data_dir)


def test_a_start_that_failed_does_not_bind_the_workdir(data_dir: Path, tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        program.train(tiny_config(init_from="nowhere.h5"), tmp_path, data_dir)
    assert not (tmp_path / "config.json").exists()
    start.check_continues(tiny_config(), tmp_path, data_dir)


def started(init_from: Path, **changes: Any) -> Any:
    """A config that starts from a network, and whose steps change nothing."""
    config = tiny_config(init_from=str(init_from), sources=("demo/social",), test_sets=())
    config.num_epochs, config.optimizer.learning_rate = 1 / 5, 1e-30
    config.optimizer.weight_decay = 0.0
    for name, value in changes.items():
        config[name] = value
    return config


def test_a_run_and_an_export_are_starts(
    finished: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = network.load(finished)
    export(before, tmp_path / "export", ("safetensors",), np.zeros((1, 71, 71, 3), np.uint8))
    for number, place in enumerate(
        (finished, finished / "checkpoints" / str(before.step), tmp_path / "export")
    ):
        workdir = tmp_path / str(number)
        program.train(started(place), workdir, data_dir)
        assert f"started from {place}\n" in capsys.readouterr().out
        after = network.load(workdir)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6),
            after.arrays["params"],
            before.arrays["params"],
        )


def moved_layers(before: Path, after: Path) -> set[str]:
    """The layers of which any bit of a parameter or statistic differs between two runs."""
    pairs = [network.load(run).arrays for run in (before, after)]
    return {
        name
        for kind in ("params", "batch_stats")
        for name in pairs[0][kind]
        if not jax.tree.all(jax.tree.map(np.array_equal, *(arrays[kind][name] for arrays in pairs)))
    }


@pytest.mark.parametrize(
    ("freeze", "kept"), [("stem", {"stem1", "stem2"}), ("all but head", {"everything"})]
)
def test_frozen_layers_keep_every_bit_and_a_stopped_run_continues(
    freeze: str,
    kept: set[str],
    finished: Path,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    config = started(finished, freeze=freeze, num_epochs=2 / 5, validate_every_epochs=1 / 5)
    config.optimizer.update(learning_rate=0.1, weight_decay=0.1, layer_decay=0.9)
    program.train(config, tmp_path / "whole", data_dir)
    layers = set(network.load(finished).arrays["params"])
    kept = layers - {"logits"} if "everything" in kept else kept
    assert moved_layers(finished, tmp_path / "whole") == layers - kept
    save = checkpoints.save

    def save_then_stop(manager: Any, step: int, **items: Any) -> None:
        save(manager, step, **items)
        manager.wait_until_finished()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        program.train(config, tmp_path / "stopped", data_dir)
    monkeypatch.undo()
    program.train(config, tmp_path / "stopped", data_dir)
    assert moved_layers(tmp_path / "whole", tmp_path / "stopped") == set()


def test_the_head_of_other_classes_is_fresh(
    finished: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    program.train(started(finished, task="interest"), tmp_path / "run", data_dir)
    assert f"started from {finished}; fresh: logits/" in capsys.readouterr().out
    before, after = network.load(finished), network.load(tmp_path / "run")
    kernel = before.arrays["params"]["exit3"]["pointwise"]["kernel"]
    np.testing.assert_allclose(after.arrays["params"]["exit3"]["pointwise"]["kernel"], kernel)


def test_a_start_of_another_shape_is_refused(finished: Path, data_dir: Path, tmp_path: Path):
    config = started(finished)
    config.model.width = 0.06
    with pytest.raises(InputError, match=r"trained with model.width=0.03, .* set --config.model"):
        program.train(config, tmp_path, data_dir)
    assert not (tmp_path / "config.json").exists()


def test_whom_the_start_saw_counts_as_trained_on(finished: Path, data_dir: Path, tmp_path: Path):
    seen = ({"name": "demo/controlled", "test": "train"},)
    export(
        network.load(finished),
        tmp_path / "export",
        ("safetensors",),
        np.zeros((1, 71, 71, 3), np.uint8),
    )
    for place in (finished, tmp_path / "export"):
        with pytest.raises(InputError, match="the network that the training starts from saw"):
            program.train(started(place, test_sets=seen), tmp_path / "refused", data_dir)
    first, second = tmp_path / "first", tmp_path / "second"
    program.train(started(finished), first, data_dir)
    # Neither a second start nor a start that is gone hides them.
    program.train(started(first), second, data_dir)
    shutil.rmtree(first)
    results = evaluate(second, data_dir, [("demo/controlled", "train")])
    (scored,) = json.loads(results.read_text())["sets"]
    assert scored["leaks"]["start"] == 1
    assert "the network that the training starts from saw" in scored["seen"][0]


def test_a_checkpoint_of_another_architecture_is_refused(finished: Path, data_dir: Path):
    file = finished / "config.json"
    before = file.read_text()
    file.write_text(before.replace('"width": 0.03', '"width": 0.3'))
    try:
        assert main(["evaluate", f"--workdir={finished}"]) == 2
    finally:
        file.write_text(before)


def test_a_loss_that_is_not_finite_names_its_step(data_dir: Path, tmp_path: Path):
    config = tiny_config()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 1e38
    config.schedule.warmup_epochs = 0.0
    with pytest.raises(InputError, match=r"not finite at step [2-4], of records demo/") as error:
        program.train(config, tmp_path, data_dir)
    written = json.loads((tmp_path / "not_finite.json").read_text())
    assert f"at step {written['step']}, of records {', '.join(written['record_ids'])}" in str(
        error.value
    )
    assert len(set(written["record_ids"])) == 8
    saved = checkpoints.finished_steps(tmp_path)
    whole = f"step {saved[-1]} is saved" if saved else "no checkpoint was written yet"
    assert whole in str(error.value)


def test_the_other_task_trains(data_dir: Path, tmp_path: Path):
    best = program.train(tiny_config(task="interest", num_epochs=0.4), tmp_path, data_dir)
    assert 0 <= best["validation_accuracy"] <= 1
    assert load_config("configs/demo.py:interest").task == "interest"


def test_every_field_of_a_config_is_read():
    """A field that no code reads would have no effect."""
    root = Path(program.__file__).parents[1]
    code = "\n".join(path.read_text() for path in root.rglob("*.py") if path.name != "config.py")
    for name, _ in fields(default_config()):
        last = name.split(".")[-1]
        assert f"config.{name}" in code or f"{last}:" in code or f'"{last}"' in code, name
