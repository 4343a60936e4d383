"""Real training on real records, beside its step alone on one batch that stays on the device.

What lies between the two is everything but the step: reading, decoding, transfer, logging.
"""

import argparse
import shutil
import statistics

import jax

from fer_jax.benchmark import model_side, records, step
from fer_jax.benchmark.benchmark import Row, paired, single
from fer_jax.config import Config, default_config
from fer_jax.data.records import open_records
from fer_jax.errors import InputError, did_you_mean
from fer_jax.inference.network import model_arguments
from fer_jax.models import flops
from fer_jax.sharding import check_batch_size, make_mesh
from fer_jax.training.classifier import train
from fer_jax.training.log import read_metrics

INPUTS = ("stream", "memmap", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags."""
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="in one repeat")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--width", type=float, default=1.0, help="of the network")
    parser.add_argument("--num_middle_blocks", type=int, default=8, help="of the network")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--inputs", nargs="+", default=INPUTS)


def run(options: argparse.Namespace) -> list[Row]:
    """Images per second of both, and what the training waited for."""
    if options.steps < 1:
        raise InputError(f"--steps must be at least 1, not {options.steps}")
    for kind in options.inputs:
        if kind not in INPUTS:
            raise InputError(f"--inputs cannot be '{kind}'{did_you_mean(kind, INPUTS)}")
    check_batch_size(options.batch, 1, make_mesh())
    data_dir = options.workdir / "data"
    name = records.build(data_dir, 256)
    per_epoch = len(open_records(name, "train", data_dir)) // options.batch
    if not per_epoch:
        raise InputError(f"--batch {options.batch} is more than the training images")
    rows = []
    for kind in options.inputs:
        config = _config(options, name, kind)
        alone = step.alone(config, jax.devices())
        rates, waits = [], []
        folder = options.workdir / "runs" / kind
        shutil.rmtree(folder, ignore_errors=True)
        for repeat in range(options.repeats):
            # The run goes on where the repeat before left it; the first half warms it up.
            counted = (2 * repeat + 1) * options.steps
            config.num_epochs = (counted + options.steps) / per_epoch
            train(config, folder, data_dir)
            seen = [row for row in read_metrics(folder) if row["step"] > counted]
            rate = statistics.harmonic_mean([row["images_per_second"] for row in seen])
            waits += [row["data_wait_share"] for row in seen]
            rates.append((rate, alone(options.steps)))
        row = paired(
            f"training, input {kind}",
            rates,
            peer_name="the step alone",
            unit="images per second (at least 0.97)",
            dtype=options.dtype,
            batch=options.batch,
        )
        rows += [row, single(f"input {kind}: data wait", 100 * statistics.median(waits), "%")]
    flop = flops.TRAINING_PASSES * flops.count(**model_arguments(config))[0]
    rate = model_side.measure_rates(options.dtype)["flop_per_second"]
    rows += [
        single("operations of an image", flop / 1e9, "GFLOP"),
        single("this machine multiplies", rate / 1e9, "GFLOP/s"),
        single("share of that limit, training", rows[0]["ours"] * flop / rate, "of 1"),
    ]
    return rows


def _config(options: argparse.Namespace, name: str, kind: str) -> Config:
    config = default_config()
    config.sources = (name,)
    config.input = kind
    config.batch_size = options.batch
    for field in ("dtype", "width", "num_middle_blocks", "image_size"):
        config.model[field] = getattr(options, field)
    # A schedule that does not depend on the run's length: it would be another step.
    config.schedule.update({"name": "constant", "warmup_epochs": 0.0})
    # Validated once, at its end, which is not counted.
    config.validate_every_epochs = 1e6
    config.log_every_steps = options.steps
    config.keep_checkpoints = 2
    return config
