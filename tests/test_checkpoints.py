"""Checkpoints restore bit for bit; the best and the newest are kept; corrupted ones are refused."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fer_jax import checkpoints
from fer_jax.errors import InputError
from fer_jax.sharding import make_mesh, state_sharding

METRIC = "validation_accuracy"


def trees(seed: float = 0.0) -> tuple[dict[str, Any], dict[str, Any]]:
    params = {"block1": {"kernel": jnp.arange(64 * 256.0).reshape(64, 256) + seed}}
    network = {"params": params, "batch_stats": {"mean": jnp.full(3, seed)}, "ema": {}}
    training = {"opt_state": optax.adam(1e-3).init(params), "step": jnp.int32(7)}
    return network, training


def targets(tree: Any, strategy: str = "data_parallel") -> Any:
    shardings = state_sharding(tree, make_mesh(), strategy)
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings
    )


def save_steps(workdir: Path, accuracies: dict[int, float], keep: int = 1) -> None:
    history = []
    with checkpoints.open_checkpoints(workdir, keep=keep, metric=METRIC) as manager:
        for step, accuracy in accuracies.items():
            network, training = trees(step)
            history.append({"step": step, METRIC: accuracy})
            checkpoints.save(
                manager,
                step,
                network=network,
                training=training,
                loop={"iterator": {"next_index": step}, "history": history},
                metrics=history[-1],
            )
        manager.wait_until_finished()


@pytest.mark.parametrize("strategy", ["data_parallel", "fsdp"])
def test_everything_comes_back(tmp_path: Path, strategy: str):
    save_steps(tmp_path, {5: 0.5})
    network, training = trees(5)
    with checkpoints.open_checkpoints(tmp_path, keep=1, metric=METRIC) as manager:
        restored = checkpoints.restore(
            manager,
            5,
            network=targets(network, strategy),
            training=targets(training, strategy),
        )
    loop = {"iterator": {"next_index": 5}, "history": [{"step": 5, METRIC: 0.5}]}
    assert checkpoints.latest_valid_step(tmp_path) == (5, loop)
    assert jax.tree.structure(restored) == jax.tree.structure((network, training))
    jax.tree.map(np.testing.assert_array_equal, restored, (network, training))
    kernel = restored[0]["params"]["block1"]["kernel"]
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == (
        8 if strategy == "fsdp" else 1
    )


def test_the_newest_and_the_best_stay(tmp_path: Path):
    save_steps(tmp_path, {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.3, 5: 0.2})
    network, _ = trees()
    for which, step in (("best", 2), ("last", 5), ("5", 5)):
        found, restored = checkpoints.restore_network(tmp_path, which, targets(network), METRIC)
        assert found == step
        np.testing.assert_array_equal(restored["batch_stats"]["mean"], np.full(3, step))
    with pytest.raises(InputError, match="no checkpoint '4'; choose best, last, 2, 5"):
        checkpoints.restore_network(tmp_path, "4", targets(network), METRIC)


def test_the_best_stays_among_equals(tmp_path: Path):
    save_steps(tmp_path, {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.1, 5: 0.2})
    network, _ = trees()
    assert checkpoints.restore_network(tmp_path, "best", targets(network), METRIC)[0] == 3


def test_no_checkpoint_and_another_architecture_are_refused(tmp_path: Path):
    network, _ = trees()
    with pytest.raises(InputError, match="holds no checkpoints"):
        checkpoints.restore_network(tmp_path, "best", targets(network), METRIC)
    save_steps(tmp_path, {1: 0.1})
    network["params"]["block1"]["kernel"] = jnp.zeros((64, 128))
    with pytest.raises(InputError, match=r"\(64, 256\) there and \(64, 128\) in the config"):
        checkpoints.restore_network(tmp_path, "best", targets(network), METRIC)
    network["params"] = {"block2": {"kernel": jnp.zeros((64, 256))}}
    with pytest.raises(InputError, match="absent in the config"):
        checkpoints.restore_network(tmp_path, "best", targets(network), METRIC)


def test_best_is_the_latest_of_equals_and_losses_fall():
    history = [{"step": s, "validation_loss": v} for s, v in ((1, 2.0), (2, 1.0), (3, 1.0))]
    assert checkpoints.best_step(history, "validation_loss") == 3
    assert checkpoints.best_step([], "validation_loss") is None


def flipped(file: Path, where: int) -> None:
    content = bytearray(file.read_bytes())
    content[where % len(content)] ^= 1 << where % 8
    file.write_bytes(content)


def zeroed(file: Path, where: int) -> None:
    content = bytearray(file.read_bytes())
    start = where % len(content)
    # At least one byte that was not zero.
    changed = next(i for i in [*range(start, len(content)), *range(start)] if content[i])
    content[changed : changed + 64] = bytes(len(content[changed : changed + 64]))
    file.write_bytes(content)


def truncated(file: Path, where: int) -> None:
    file.write_bytes(file.read_bytes()[: where % file.stat().st_size])


def deleted(file: Path, where: int) -> None:
    file.unlink()


FAULTS: list[Callable[[Path, int], None]] = [flipped, zeroed, truncated, deleted]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("two")
    save_steps(workdir, {10: 0.2, 20: 0.1}, keep=2)
    return workdir


@pytest.mark.parametrize("fault", FAULTS)
def test_a_corrupted_step_is_named_and_quarantined(
    fault: Callable[[Path, int], None],
    two_steps: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    names = [
        path.relative_to(two_steps / "checkpoints" / "20")
        for path in (two_steps / "checkpoints" / "20").rglob("*")
        if path.is_file() and path.stat().st_size
    ]
    assert len(names) > 10 and Path(checkpoints.CHECKSUMS_FILE) in names
    rng, network = np.random.default_rng(0), targets(trees()[0])
    for number, name in enumerate(names):
        workdir = tmp_path / str(number)
        shutil.copytree(two_steps, workdir)
        fault(workdir / "checkpoints" / "20" / name, int(rng.integers(1 << 20)))
        # Without its checksums it does not count as a step at all.
        says = (
            "has no checkpoint '20'"
            if fault is deleted and name.name == checkpoints.CHECKSUMS_FILE
            else ("checkpoint 20 in .* is corrupted: .* another step: 10")
        )
        with pytest.raises(InputError, match=says):
            checkpoints.restore_network(workdir, "20", network, METRIC)
        assert checkpoints.latest_valid_step(workdir)[0] == 10
        said = capsys.readouterr().out
        assert (
            said.startswith("checkpoint 20 is corrupted: ") and "checkpoints_corrupted/20" in said
        )
        assert (workdir / "checkpoints_corrupted" / "20").is_dir()
        assert checkpoints.finished_steps(workdir) == [10]
        # The next one of that number does not overwrite it.
        shutil.copytree(workdir / "checkpoints_corrupted" / "20", workdir / "checkpoints" / "20")
        assert checkpoints.latest_valid_step(workdir)[0] == 10
        assert (workdir / "checkpoints_corrupted" / "20.2").is_dir()
        capsys.readouterr()


def test_a_step_without_its_checksums_was_not_finished(two_steps: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(two_steps, workdir)
    (workdir / "checkpoints" / "20" / checkpoints.CHECKSUMS_FILE).unlink()
    network, _ = trees()
    assert checkpoints.restore_network(workdir, "last", targets(network), METRIC)[0] == 10
    assert (workdir / "checkpoints" / "20").is_dir()
    (workdir / "checkpoints" / "10" / checkpoints.CHECKSUMS_FILE).unlink()
    with pytest.raises(InputError, match="holds no finished checkpoint"):
        checkpoints.restore_network(workdir, "last", targets(network), METRIC)
    assert checkpoints.latest_valid_step(workdir) == (0, {})


def test_a_clock_that_is_behind_is_reported_and_changes_nothing(
    two_steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    workdir = Path(shutil.copytree(two_steps, tmp_path / "run"))
    later = time.time() + 2 * 3600
    for step in ("10", "20"):
        os.utime(workdir / "checkpoints" / step / checkpoints.CHECKSUMS_FILE, (later, later))
    assert checkpoints.latest_valid_step(workdir)[0] == 20
    assert "clock is 120 minutes behind checkpoint 20" in capsys.readouterr().out
    assert checkpoints.latest_valid_step(two_steps)[0] == 20
    assert capsys.readouterr().out == ""


def test_sha256sum_reads_the_checksums(two_steps: Path):
    command = ["sha256sum", "--quiet", "--strict", "-c", checkpoints.CHECKSUMS_FILE]
    if not shutil.which(command[0]):
        pytest.skip("needs sha256sum of the coreutils")
    done = subprocess.run(command, cwd=two_steps / "checkpoints" / "20", capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")


def test_the_best_and_the_newest_stay_across_restarts(tmp_path: Path):
    save_steps(tmp_path, {1: 0.1, 2: 0.9, 3: 0.3}, keep=2)
    save_steps(tmp_path, {4: 0.4, 5: 0.5, 6: 0.2}, keep=2)
    assert checkpoints.finished_steps(tmp_path) == [2, 5, 6]


def test_what_a_killed_process_was_writing_goes(tmp_path: Path):
    save_steps(tmp_path, {1: 0.1})
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp" / "network").mkdir(parents=True)
    save_steps(tmp_path, {2: 0.2})
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2"}


def test_a_step_may_be_saved_again(tmp_path: Path):
    network, training = trees(1)
    with checkpoints.open_checkpoints(tmp_path, keep=2, metric=METRIC) as manager:
        for pending in ([[1.0]], []):
            items = {"network": network, "training": training, "metrics": None}
            checkpoints.save(manager, 7, loop={"history": [], "pending": pending}, **items)
    assert checkpoints.latest_valid_step(tmp_path) == (7, {"history": [], "pending": []})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_follow_up_errors_of_orbax_are_not_printed_beside_the_one_line(tmp_path: Path):
    # In a process of its own: pytest catches what this is about.
    program = """
import asyncio, gc, logging, sys, time
from pathlib import Path
import tensorstore
from fer_jax import checkpoints
logging.basicConfig(level="ERROR")
checkpoints.open_checkpoints(Path(sys.argv[1]), keep=2, metric="validation_accuracy").close()

async def fails(error):
    raise error

async def forgotten():
    full = ValueError("Failed to write 7 bytes: No space left on device")
    tasks = [asyncio.create_task(fails(error)) for error in (full, ValueError("a bug"))]
    await asyncio.wait(tasks)

asyncio.run(forgotten())
gc.collect()
promise, future = tensorstore.Promise.new()

async def waits():
    await future

async def begins():
    begun.append(asyncio.create_task(waits()))
    await asyncio.sleep(0.01)

begun = []
loop = asyncio.new_event_loop()
loop.run_until_complete(begins())
loop.close()
promise.set_result(1)
time.sleep(0.1)
begun[0]._log_destroy_pending = False
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stderr.count("Traceback") == 1 and "ValueError: a bug" in done.stderr


def test_a_full_and_a_read_only_disk_are_named_with_their_step(small_disk: Path):
    def save(manager: Any, step: int) -> None:
        kernel = np.random.default_rng(step).standard_normal((300, 1000)).astype(np.float32)
        network = {"params": {"kernel": kernel}, "batch_stats": {}, "ema": {}}
        history = [{"step": step, METRIC: 0.5}]
        items = {"network": network, "training": {"step": jnp.int32(step)}}
        checkpoints.save(manager, step, loop={"history": history}, metrics=history[-1], **items)

    manager = checkpoints.open_checkpoints(small_disk / "run", keep=2, metric=METRIC)
    save(manager, 1)
    manager.wait_until_finished()
    save(manager, 2)
    with pytest.raises(InputError, match=r"of step 2 could not be written: No space left"):
        manager.wait_until_finished()
    assert checkpoints.latest_valid_step(small_disk / "run")[0] == 1
    manager = checkpoints.open_checkpoints(small_disk / "run", keep=2, metric=METRIC)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError, match=r"of step 3 could not be written: Read-only file"):
        save(manager, 3)
        manager.wait_until_finished()
    network = {
        "params": {"kernel": jax.ShapeDtypeStruct((300, 1000), jnp.float32)},
        "batch_stats": {},
        "ema": {},
    }
    step, _ = checkpoints.restore_network(small_disk / "run", "best", targets(network), METRIC)
    assert step == 1
