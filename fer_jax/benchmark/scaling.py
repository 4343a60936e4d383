"""The train step on 1 to n devices, each with as many images: n times the images a second?

On CPU the devices are virtual and share the cores, so that only the cost of dividing shows.
"""

import argparse

import jax

from fer_jax.benchmark import model_side, step
from fer_jax.benchmark.benchmark import Row, paired, single, skipped
from fer_jax.config import Config, default_config
from fer_jax.errors import InputError
from fer_jax.inference.network import model_arguments
from fer_jax.models import flops


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags."""
    parser.add_argument("--batch", type=int, default=8, help="images on each device")
    parser.add_argument("--steps", type=int, default=2, help="in one repeat")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--width", type=float, default=1.0, help="of the network")
    parser.add_argument("--num_middle_blocks", type=int, default=8, help="of the network")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--virtual_devices", type=int, default=2, help="where there is only a CPU")


def run(options: argparse.Namespace) -> list[Row]:
    """Images per second on 2, 4, ... devices beside one."""
    if min(options.batch, options.steps, options.virtual_devices) < 1:
        raise InputError("--batch, --steps and --virtual_devices must be at least 1")
    try:
        jax.config.update("jax_num_cpu_devices", options.virtual_devices)
    except RuntimeError:
        # Devices have been looked at before, so there are as many as there are.
        pass
    devices = jax.devices()
    counts = [n for n in (2**k for k in range(1, 10)) if n <= len(devices)]
    if len(devices) > 1 and len(devices) not in counts:
        counts.append(len(devices))
    if not counts:
        return [skipped("train step on several devices", "there is one")]
    one = step.alone(_config(options, 1), devices[:1])
    rows = []
    for count in counts:
        several = step.alone(_config(options, count), devices[:count])
        rates = [(several(options.steps), one(options.steps)) for _ in range(options.repeats)]
        virtual = ", virtual: they share the cores" if devices[0].platform == "cpu" else ""
        rows.append(
            paired(
                f"train step on {count} devices",
                rates,
                peer_name="one device",
                unit=f"images per second (at best {count} times{virtual})",
                dtype=options.dtype,
                batch=options.batch * count,
            )
        )
    flop = flops.TRAINING_PASSES * flops.count(**model_arguments(_config(options, 1)))[0]
    rate = model_side.measure_rates(options.dtype)["flop_per_second"]
    rows += [
        single("operations of an image", flop / 1e9, "GFLOP"),
        single("one device multiplies", rate / 1e9, "GFLOP/s"),
        single("share of that limit, one device", rows[0]["peer"] * flop / rate, "of 1"),
    ]
    return rows


def _config(options: argparse.Namespace, num_devices: int) -> Config:
    config = default_config()
    config.batch_size = options.batch * num_devices
    for field in ("dtype", "width", "num_middle_blocks", "image_size"):
        config.model[field] = getattr(options, field)
    return config
