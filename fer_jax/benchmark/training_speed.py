"""The classifier's training: its step, its parts and its checkpoints, beside other libraries."""

import argparse
import functools
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from fer_jax import checkpoints
from fer_jax.benchmark import processes
from fer_jax.benchmark.benchmark import NETWORK, Row, compare, paired, single, skipped
from fer_jax.benchmark.input_speed import build_records
from fer_jax.benchmark.train_step import TrainStep, network_config
from fer_jax.config import Config
from fer_jax.data.records import open_records
from fer_jax.errors import PREEMPTED, InputError
from fer_jax.inference.network import model_arguments
from fer_jax.models import flops, xception
from fer_jax.sharding import check_batch_size, make_mesh
from fer_jax.training.classifier import train
from fer_jax.training.log import read_metrics

STEPS_A_SAVE = 100


def _config(options: argparse.Namespace) -> Config:
    given = vars(options)
    return network_config(**{name: given[name] for name in (*NETWORK, "dtype") if name in given})


def measure_model(options: argparse.Namespace) -> Iterator[Row]:
    """Compares the full network with each peer, for every mode, dtype and batch size."""
    # Refuses an impossible network before any process starts.
    network = network_config(width=options.width, image_size=options.image_size)
    xception.graphdef(**model_arguments(network))
    missing = {peer: processes.missing_package(peer) for peer in options.peers}
    for peer, package in missing.items():
        if package:
            yield skipped(peer, f"{package} is not installed: pip install -e '.[bench]'")
    peers = [peer for peer, package in missing.items() if not package]
    for mode in options.modes:
        for dtype in options.dtypes:
            for batch in options.batches:
                yield from _measure_step(options, peers, mode, dtype, batch)


def _measure_step(
    options: argparse.Namespace, peers: list[str], mode: str, dtype: str, batch: int
) -> Iterator[Row]:
    step = {"train": "train step", "inference": "inference"}[mode]
    what = f"{step} {dtype} {batch}"
    size = {"image_size": options.image_size, "width": options.width}
    start = functools.partial(processes.start, mode=mode, dtype=dtype, batch=batch, **size)
    ours = start("ours")
    default_form = "grouped convolution" if ours.first["accelerator"] else "shifted adds"
    for peer in peers:
        if peer == f"ours, {default_form}":
            yield skipped(f"{what} / {peer}", "this is the form that ours has here")
            continue
        try:
            theirs = start(peer)
        except RuntimeError as error:
            yield skipped(f"{what} / {peer}", str(error))
            continue
        if theirs.first["accelerator"] != ours.first["accelerator"]:
            theirs.close()
            yield skipped(f"{what} / {peer}", "it does not compute on the same device")
            continue
        parameters = [program.first["num_parameters"] for program in (ours, theirs)]
        if parameters[0] != parameters[1]:
            raise RuntimeError(f"{peer} has {parameters[1]} parameters, ours {parameters[0]}")
        yield compare(
            step,
            ours.ask,
            theirs.ask,
            peer_name=peer,
            amount=batch,
            unit="images per second",
            repeats=options.repeats,
            dtype=dtype,
            batch=batch,
        )
        theirs.close()
        yield from _costs(f"{peer}, {what}", theirs)
    yield from _costs(f"ours, {what}", ours)
    # After the peak memory is read, because this takes memory, too.
    model = model_arguments(network_config(dtype=dtype, **size))
    flop, elements = flops.count(**model)
    passes = {"inference": 1, "train": flops.TRAINING_PASSES}[mode]
    flop, moved = passes * flop, passes * elements * jnp.dtype(dtype).itemsize
    rates = ours.ask("rates")
    started = time.perf_counter()
    for _ in range(options.repeats):
        ours.ask()
    seconds = (time.perf_counter() - started) / options.repeats / batch
    ours.close()
    limit = flop / rates["flop_per_second"] + moved / rates["bytes_per_second"]
    for name, value, unit in (
        ("operations of an image", flop / 1e9, "GFLOP"),
        ("bytes of an image's layers", moved / 1e6, "MB"),
        ("matrix products of this machine", rates["flop_per_second"] / 1e9, "GFLOP/s"),
        ("copies of this machine", rates["bytes_per_second"] / 1e9, "GB/s"),
        ("share of that limit", limit / seconds, "of 1"),
    ):
        yield single(f"ours, {what}: {name}", value, unit)


def _costs(what: str, program: processes.Program) -> Iterator[Row]:
    yield single(f"{what}: until the first", program.first["first_step_s"], "s")
    yield single(f"{what}: peak memory", program.last["peak_mb"], "MB")


def measure_end_to_end(options: argparse.Namespace) -> Iterator[Row]:
    """Compares training on records with its step alone: reading, decoding, transfer and logging."""
    check_batch_size(options.batch, 1, make_mesh())
    data_dir = options.workdir / "data"
    name = build_records(data_dir, 256)
    per_epoch = len(open_records(name, "train", data_dir)) // options.batch
    if not per_epoch:
        raise InputError(f"--batch {options.batch} is more than the training images")
    config = _config(options)
    config.sources = (name,)
    # A schedule that depends on the run's length would be another step.
    config.schedule.update({"name": "constant", "warmup_epochs": 0.0})
    # Validated once, at the end, which is not counted.
    config.validate_every_epochs = 1e6
    config.log_every_steps = options.steps
    for kind in options.inputs:
        config.input = kind
        alone = TrainStep(config)
        rates, waits = [], []
        folder = options.workdir / "runs" / kind
        shutil.rmtree(folder, ignore_errors=True)
        for repeat in range(options.repeats):
            # Each repeat resumes the run; the first half of its steps warms it up.
            counted = (2 * repeat + 1) * options.steps
            config.num_epochs = (counted + options.steps) / per_epoch
            train(config, folder, data_dir)
            measured = [row for row in read_metrics(folder) if row["step"] > counted]
            rate = statistics.harmonic_mean([row["images_per_second"] for row in measured])
            waits += [row["data_wait_share"] for row in measured]
            rates.append((rate, alone.images_per_second(options.steps)))
        yield paired(
            f"training, input {kind}",
            rates,
            peer_name="the step alone",
            unit="images per second",
            dtype=options.dtype,
            batch=options.batch,
        )
        yield single(f"input {kind}: data loading", 100 * statistics.median(waits), "%")


def measure_scaling(options: argparse.Namespace) -> Iterator[Row]:
    """Compares the train step on 2, 4, ... devices with one, each with as many images."""
    try:
        jax.config.update("jax_num_cpu_devices", options.virtual_devices)
    except RuntimeError:
        # JAX has listed its devices already, so their number is fixed.
        pass
    devices = jax.devices()
    counts = [n for n in (2**k for k in range(1, 10)) if n <= len(devices)]
    if len(devices) > 1 and len(devices) not in counts:
        counts.append(len(devices))
    if not counts:
        yield skipped("train step on several devices", "there is one")
        return
    config = _config(options)
    one = TrainStep(config, devices[:1])
    for count in counts:
        config.batch_size = options.batch * count
        several = TrainStep(config, devices[:count])
        rates = [
            (several.images_per_second(options.steps), one.images_per_second(options.steps))
            for _ in range(options.repeats)
        ]
        virtual = ", virtual: they share the cores" if devices[0].platform == "cpu" else ""
        yield paired(
            f"train step on {count} devices",
            rates,
            peer_name="one device",
            unit=f"images per second (ideal: {count} times{virtual})",
            dtype=options.dtype,
            batch=config.batch_size,
        )


def measure_checkpoints(options: argparse.Namespace) -> Iterator[Row]:
    """Measures a save during training, a verification, and the start of a resumed run."""
    check_batch_size(options.batch, 1, make_mesh())
    step = TrainStep(_config(options))
    network, training = step.new_state().split()
    folder = options.workdir / "saved"
    shutil.rmtree(folder, ignore_errors=True)
    blocked, verified, lost = [], [], []
    size = 0
    with checkpoints.open_checkpoints(folder, keep=2, metric="validation_loss") as manager:
        for number in range(1, options.repeats + 2):
            without = step.images_per_second(options.steps)
            started = time.perf_counter()
            checkpoints.save(
                manager,
                number,
                network=network,
                training=training,
                loop={"history": []},
                metrics={"validation_loss": 1.0},
            )
            blocked.append(time.perf_counter() - started)
            beside = step.images_per_second(options.steps)
            manager.wait_until_finished()
            seconds = options.steps * options.batch * (1 / beside - 1 / without) + blocked[-1]
            lost.append(100 * seconds / (STEPS_A_SAVE * options.batch / without))
            saved = folder / checkpoints.FOLDER / str(number)
            size = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
            started = time.perf_counter()
            if corruption := checkpoints.find_corruption(saved):
                raise RuntimeError(corruption)
            verified.append((time.perf_counter() - started) * 250e6 / size)
    yield single("size of a checkpoint", size / 1e6, "MB")
    # The first of each warms up.
    for what, values, unit in (
        ("training waits for a save", blocked, "s"),
        (f"slow-down of training by one save in {STEPS_A_SAVE} steps", lost, "%"),
        ("verification of 250 MB", verified, "s"),
    ):
        yield single(what, statistics.median(values[1:]), unit)
    yield _compare_starts(options)


def _compare_starts(options: argparse.Namespace) -> Row:
    """Compares the time to the first step of a resumed run with a new one's, both compiled."""
    data_dir = options.workdir / "data"
    config = options.workdir / "start.py"
    config.write_text(
        "from fer_jax.config import default_config\n\n\ndef get_config():\n"
        "    return default_config()\n"
    )
    folder = options.workdir / "started"
    # As a user starts it: the process and its imports are part of the time.
    command = [sys.executable, "-m", "fer_jax", "train", f"--config={config}"]
    command += [f"--workdir={folder}", f"--data_dir={data_dir}", "--config.log_every_steps=1"]
    command += [f"--config.sources={build_records(data_dir, 256)}"]
    command += [f"--config.batch_size={options.batch}"]
    for field in ("width", "num_middle_blocks", "image_size"):
        command.append(f"--config.model.{field}={getattr(options, field)}")
    rates = []
    for _ in range(options.repeats + 1):
        shutil.rmtree(folder, ignore_errors=True)
        new, resumed = (_seconds_to_first_step(command) for _ in range(2))
        rates.append((1 / resumed, 1 / new))
    return paired(
        "start of a resumed run",
        rates[1:],
        peer_name="a new run",
        unit="starts per second",
        batch=options.batch,
    )


def _seconds_to_first_step(command: list[str]) -> float:
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    messages = []
    for line in process.stderr:
        messages.append(line)
        if line.startswith("step "):
            break
    seconds = time.perf_counter() - started
    process.terminate()
    messages.append(process.communicate()[1])
    if process.returncode != PREEMPTED:
        raise InputError(f"the command failed: {' '.join(command)}: {''.join(messages)[-500:]}")
    return seconds
