"""Measure this project and other libraries in turn, as a table and JSON.

A benchmark is a generator of rows, `measure_NAME(options)` in the module that `BENCHMARKS` names. A
row compares what both do per second, so a ratio above 1 means that ours is faster; without a peer
it is one measured number.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple

from fer_jax.compilations import cpu_info
from fer_jax.config import OneLineParser, output_path
from fer_jax.errors import InputError, did_you_mean

MIN_REPEATS = 5
NOISY_SPREAD = 0.2
PACKAGES = (
    *("jax", "jaxlib", "flax", "numpy", "opencv-python-headless", "torch", "keras"),
    *("onnxruntime", "openvino"),
)

Row = dict[str, Any]


class Option(NamedTuple):
    """An option: its meaning, its smallest value, and its choices if it is one of some words."""

    meaning: str
    minimum: float | None = None
    choices: tuple[str, ...] = ()


class Benchmark(NamedTuple):
    """A benchmark: its module, what it measures, and its options with their defaults.

    A tuple is an option of several values; if they are words, the default has all of them.
    """

    module: str
    measures: str
    options: dict[str, Any]


DTYPES = ("float32", "bfloat16")
OTHER_FORMS = ("ours, grouped convolution", "ours, shifted adds")
PEERS = ("PyTorch eager", "PyTorch compiled", "Keras on JAX", "Keras on PyTorch")
NETWORK = {"batch": 8, "width": 1.0, "num_middle_blocks": 8, "image_size": 224}
OPTIONS = {
    "batch": Option("images in a batch, on each device if there are several", 1),
    "batches": Option("numbers of images in a batch", 1),
    "channel_base": Option("number of channels times resolution", 1),
    "channel_max": Option("largest number of channels", 1),
    "clip": Option("video with faces, for the path from clip to predictions"),
    "data_dir": Option("has the dataset; by default one is built in the workdir"),
    "dataset": Option("in --data_dir, instead of rendered faces"),
    "detector_model": Option("the file of the YuNet detector"),
    "dtype": Option("of the computation", choices=DTYPES),
    "dtypes": Option("of the computation"),
    "engines": Option("that run the network"),
    "image_size": Option("pixels of a side", 1),
    "images": Option("how many are processed in one repeat"),
    "inputs": Option("values of config.input"),
    "model": Option("a run or an export; by default an untrained network"),
    "modes": Option("what the network does"),
    "num_middle_blocks": Option("of the network", 0),
    "peer_python": Option("the Python of an environment that has the package fer"),
    "peers": Option("to compare with"),
    "people": Option("fresh ones of each platform, whose scores are the truth", 1),
    "resolution": Option("pixels of a side", 8),
    "simulations": Option("number of simulated datasets", 1),
    "source": Option("folder of clips, instead of rendered ones"),
    "steps": Option("in one repeat", 1),
    "virtual_devices": Option("on a machine that has only a CPU", 1),
    "width": Option("of the network"),
    "worlds": Option("of rendered people, and as many in which all platforms look alike", 1),
}
BENCHMARKS = {
    "model": Benchmark(
        "training_speed",
        "the train step and inference of the full network, beside PyTorch, Keras and other forms",
        {"modes": ("train", "inference"), "dtypes": DTYPES, "peers": OTHER_FORMS + PEERS}
        | {"batches": (8, 32), "width": 1.0, "image_size": 224},
    ),
    "end_to_end": Benchmark(
        "training_speed",
        "training from records, compared with its step alone",
        NETWORK | {"steps": 4, "dtype": "float32", "inputs": ("stream", "memmap", "device")},
    ),
    "input": Benchmark(
        "input_speed",
        "records to batches, beside bare decoding and torch",
        {"data_dir": None, "dataset": "", "image_size": 256, "images": 2048},
    ),
    "scaling": Benchmark(
        "training_speed",
        "the train step on several devices, beside one device",
        NETWORK | {"steps": 2, "dtype": "float32", "virtual_devices": 2},
    ),
    "checkpoints": Benchmark(
        "training_speed",
        "saving, checking, and resuming a run, beside a new run",
        NETWORK | {"steps": 10},
    ),
    "inference": Benchmark(
        "inference_speed",
        "a trained network, and a clip to predictions, beside ONNX Runtime, OpenVINO and `fer`",
        {"model": None, "clip": None, "detector_model": "", "peer_python": sys.executable}
        | {"batches": (1, 32), "dtypes": (*DTYPES, "int8"), "width": 1.0, "image_size": 224}
        | {"engines": ("jax", "onnxruntime", "openvino")},
    ),
    "media": Benchmark(
        "input_speed",
        "clips to faces, beside a bare decoder and detector",
        {"source": None, "detector_model": ""},
    ),
    "statistics": Benchmark(
        "error_rates",
        "error rates of intervals and tests, in simulations",
        {"simulations": 300},
    ),
    "stylegan2": Benchmark(
        "generator_speed",
        "StyleGAN2's synthesis, beside PyTorch",
        {"resolution": 256, "channel_base": 16384, "batches": (1, 4, 16)},
    ),
    "stylegan2_train": Benchmark(
        "generator_speed",
        "each part of a generator's training, beside PyTorch",
        {"resolution": 64, "channel_base": 4096, "channel_max": 128, "batch": 8},
    ),
    "worlds": Benchmark(
        "rendered_worlds",
        "how often the demo's statements are true, over rendered worlds",
        {"worlds": 20, "people": 10_000},
    ),
}


def cpu_seconds() -> float:
    """Returns the CPU seconds of this process and its finished children, user and system."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def peak_memory() -> float:
    """Returns the most memory that this process has used, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(
    what: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    amount: float,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    **about: Any,
) -> Row:
    """Runs ours and the peer in turn, after one warm-up of each; `about` is for `paired`.

    One run does `amount`, in `paired`'s unit; the clock counts seconds of time or of CPU time.
    """

    def rate(run: Callable[[], Any]) -> float:
        started = clock()
        run()
        return amount / (clock() - started)

    for run in (ours, peer):
        rate(run)
    return paired(what, [(rate(ours), rate(peer)) for _ in range(repeats)], **about)


def paired(
    what: str,
    rates: list[tuple[float, float]],
    *,
    peer_name: str,
    unit: str,
    dtype: str = "",
    batch: int = 0,
) -> Row:
    """Returns the row of rates measured in turn: (ours, the peer's), in `unit`.

    `ours` and `peer` are medians, `ratio` the median of ours / peer pair by pair, and `spread` the
    distance between the ratios' quartiles, divided by their median.
    """
    ratios = [own / theirs for own, theirs in rates]
    # Quartiles need two values.
    several = ratios if len(ratios) > 1 else ratios * 2
    low, middle, high = statistics.quantiles(several, n=4, method="inclusive")
    return {
        "what": what,
        "dtype": dtype,
        "batch": batch,
        "ours": statistics.median(own for own, _ in rates),
        "peer": statistics.median(theirs for _, theirs in rates),
        "peer_name": peer_name,
        "ratio": statistics.median(ratios),
        "spread": (high - low) / middle,
        "repeats": len(rates),
        "unit": unit,
    }


def single(what: str, value: float, unit: str) -> Row:
    """Returns the row of one measured number without a peer."""
    return {"what": what, "ours": value, "unit": unit, "repeats": 1}


def skipped(what: str, reason: str) -> Row:
    """Returns the row of a comparison that is not possible here."""
    return {"what": what, "skipped": reason}


def hardware() -> dict[str, Any]:
    """Describes the machine: processor, cores, memory in GiB."""
    model = cpu_info("model name").partition(": ")[2]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
    }


def versions() -> dict[str, str]:
    """Returns Python's version and those of the packages that are installed."""
    installed = {one.name: one.version for one in metadata.distributions() if one.name in PACKAGES}
    return {"python": platform.python_version()} | installed


def table(rows: list[Row]) -> str:
    """Formats rows as Markdown, with notes on skipped and unreliable ones."""
    lines, notes = [("", "ours", "peer", "ratio", "spread", "unit")], []
    for row in rows:
        if "skipped" in row:
            notes.append(f"- skipped: {row['what']}: {row['skipped']}")
            continue
        parts = (row["what"], row.get("dtype"), row.get("batch"))
        name = " ".join(str(part) for part in parts if part)
        if "ratio" not in row:
            lines.append((name, f"{row['ours']:.4g}", "", "", "", row["unit"]))
            continue
        numbers = (f"{row['ours']:.4g}", f"{row['peer']:.4g}", f"{row['ratio']:.3f}")
        spread = f"{row['spread']:.0%}"
        lines.append((f"{name} / {row['peer_name']}", *numbers, spread, row["unit"]))
        if row["repeats"] < MIN_REPEATS:
            notes.append(f"- {name}: only {row['repeats']} repeats")
        if row["spread"] > NOISY_SPREAD:
            notes.append(f"- {name}: noisy, the ratios spread over {spread}")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines]
    text.insert(1, f"| {' | '.join('-' * width for width in widths)} |")
    return "\n".join([*text, "", *notes]).rstrip()


def _add_options(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    for name, default in defaults.items():
        option = OPTIONS[name]
        several = isinstance(default, tuple)
        kind = Path if default is None else type(default[0] if several else default)
        choices = default if several and kind is str else option.choices
        shown = [option.meaning, ", ".join(choices), f"default: {default}" if default else ""]
        parser.add_argument(
            f"--{name}",
            type=kind,
            nargs="*" if several else None,
            default=default,
            help="; ".join(part for part in shown if part),
        )


def _check_options(options: argparse.Namespace, defaults: dict[str, Any]) -> None:
    for name, default in defaults.items():
        several = isinstance(default, tuple)
        values = getattr(options, name) if several else [getattr(options, name)]
        minimum = OPTIONS[name].minimum
        if minimum is not None and (not values or min(values) < minimum):
            raise InputError(f"--{name} must be at least {minimum}, got {min(values, default='')}")
        words = default if several and isinstance(default[0], str) else OPTIONS[name].choices
        for value in values if words else ():
            if value not in words:
                raise InputError(f"--{name} cannot be '{value}'{did_you_mean(value, words)}")


def main(argv: list[str]) -> None:
    """Runs the verb `benchmark`."""
    named = next((word for word in argv if not word.startswith("-")), "")
    if named and named not in BENCHMARKS:
        raise InputError(f"no benchmark '{named}'{did_you_mean(named, BENCHMARKS)}")
    listed = "\n".join(f"  {name:<16} {one.measures}" for name, one in BENCHMARKS.items())
    parser = OneLineParser(
        prog="fer-jax benchmark",
        description="Measures this project and other libraries in turn.",
        epilog=""
        if named
        else f"NAME is one of\n{listed}\n`benchmark NAME --help` adds its options.",
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--workdir", type=output_path, required=True, help="receives benchmark_NAME.json"
    )
    parser.add_argument("--repeats", type=int, default=MIN_REPEATS, help="of each measurement")
    defaults = BENCHMARKS[named].options if named else {}
    _add_options(parser, defaults)
    options = parser.parse_args(argv)
    if options.repeats < 1:
        raise InputError(f"--repeats must be at least 1, got {options.repeats}")
    _check_options(options, defaults)
    options.workdir.mkdir(parents=True, exist_ok=True)
    module = import_module(f"fer_jax.benchmark.{BENCHMARKS[named].module}")
    rows = list(getattr(module, f"measure_{named}")(options))
    result = {"name": named, "date": time.strftime("%Y-%m-%d"), "hardware": hardware()}
    result |= {"versions": versions(), "rows": rows}
    about = result["hardware"] | result["versions"]
    print(", ".join([result["date"], *(f"{key} {value}" for key, value in about.items())]))
    print(f"\n{table(rows)}\n")
    file = options.workdir / f"benchmark_{named}.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(file)
