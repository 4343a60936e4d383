"""What surviving costs: a save beside the steps, a check before use, a start that continues."""

import argparse
import functools
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from fer_jax import checkpoints
from fer_jax.benchmark import records, step
from fer_jax.benchmark.benchmark import Row, paired, single
from fer_jax.config import Config, default_config
from fer_jax.errors import InputError
from fer_jax.inference.network import model_arguments
from fer_jax.sharding import check_batch_size, make_mesh
from fer_jax.training.optimizer import make_optimizer, make_schedule
from fer_jax.training.step import init_state, network_of, training_of

STEPS_A_SAVE = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags."""
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="beside a save; longer than it takes")
    parser.add_argument("--width", type=float, default=1.0, help="of the network")
    parser.add_argument("--num_middle_blocks", type=int, default=8, help="of the network")
    parser.add_argument("--image_size", type=int, default=224)


def run(options: argparse.Namespace) -> list[Row]:
    """Seconds of a save and of a check, the loop's loss by a save, and both kinds of a start."""
    if options.steps < 1:
        raise InputError(f"--steps must be at least 1, not {options.steps}")
    check_batch_size(options.batch, 1, make_mesh())
    config = _config(options)
    return [*_saving(config, options), _starting(options)]


def _config(options: argparse.Namespace) -> Config:
    config = default_config()
    config.batch_size = options.batch
    for field in ("width", "num_middle_blocks", "image_size"):
        config.model[field] = getattr(options, field)
    return config


def _saving(config: Config, options: argparse.Namespace) -> list[Row]:
    schedule = make_schedule(
        learning_rate=config.optimizer.learning_rate, num_steps=1, warmup_steps=0, name="constant"
    )
    optimizer = make_optimizer(
        schedule, **{k: v for k, v in config.optimizer.items() if k != "learning_rate"}
    )
    init = functools.partial(
        init_state, optimizer=optimizer, model=model_arguments(config), ema=False
    )
    state = jax.jit(init)(jax.random.key(0))
    alone = step.alone(config, jax.devices())
    folder = options.workdir / "saved"
    shutil.rmtree(folder, ignore_errors=True)
    blocked, checked, lost = [], [], []
    with checkpoints.open_checkpoints(folder, keep=2, metric="validation_loss") as manager:
        for number in range(1, options.repeats + 2):
            without = alone(options.steps)
            started = time.perf_counter()
            checkpoints.save(
                manager,
                number,
                network=network_of(state),
                training=training_of(state),
                loop={"history": []},
                metrics={"validation_loss": 1.0},
            )
            blocked.append(time.perf_counter() - started)
            beside = alone(options.steps)
            manager.wait_until_finished()
            seconds = options.steps * options.batch * (1 / beside - 1 / without) + blocked[-1]
            lost.append(seconds / (STEPS_A_SAVE * options.batch / without))
            started = time.perf_counter()
            if wrong := checkpoints.find_corruption(folder / checkpoints.FOLDER / str(number)):
                raise RuntimeError(wrong)
            checked.append(time.perf_counter() - started)
        last = folder / checkpoints.FOLDER / str(options.repeats + 1)
        size = sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
    # The first of each warms up.
    return [
        single("size of a checkpoint", size / 1e6, "MB"),
        single("a save holds the loop up", statistics.median(blocked[1:]), "s"),
        single(
            f"the loop's loss by a save every {STEPS_A_SAVE} steps",
            100 * statistics.median(lost[1:]),
            "%",
            bar="at most 2",
        ),
        single(
            "check of 250 MB",
            statistics.median(checked[1:]) * 250e6 / size,
            "s",
            bar="at most 0.5",
        ),
    ]


def _starting(options: argparse.Namespace) -> Row:
    """Until the first step is done: continued beside fresh, compiled programs kept."""
    data_dir = options.workdir / "data"
    name = records.build(data_dir, 256)
    # As a person starts it: the process, its imports and the first step are in the time.
    words = [
        f"--config.{field}={value}"
        for field, value in (
            ("sources", name),
            ("batch_size", options.batch),
            ("model.width", options.width),
            ("model.num_middle_blocks", options.num_middle_blocks),
            ("model.image_size", options.image_size),
            ("log_every_steps", 1),
        )
    ]
    config = options.workdir / "start.py"
    config.write_text(
        "from fer_jax.config import default_config\n\n\ndef get_config():\n"
        "    return default_config()\n"
    )
    folder = options.workdir / "started"
    command = [sys.executable, "-m", "fer_jax", "train", f"--config={config}"]
    command += [f"--workdir={folder}", f"--data_dir={data_dir}", *words]
    seconds = []
    for _ in range(options.repeats + 1):
        shutil.rmtree(folder, ignore_errors=True)
        seconds.append((_until_first_step(command, folder), _until_first_step(command, folder)))
    rates = [(1 / continued, 1 / fresh) for fresh, continued in seconds[1:]]
    return paired(
        "a continued start",
        rates,
        peer_name="a fresh one",
        unit="starts a second (at least 0.77)",
        batch=options.batch,
    )


def _until_first_step(command: Sequence[str], folder: Path) -> float:
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("step "):
            break
    seconds = time.perf_counter() - started
    process.terminate()
    rest = process.communicate()[1]
    if process.returncode != 75:
        raise InputError(f"training in '{folder}' failed: {''.join([*said, rest])[-500:]}")
    return seconds
