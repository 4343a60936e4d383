"""The verb `benchmark`: ratios from interleaved repeats, as a table and as JSON.

A benchmark (fer_jax/benchmark/<name>.py) is one function, `run(options)`, that returns rows. A
row compares ours with a peer by what both do per second, so a ratio above 1 means ours is
faster; where there is no peer, it is one measured number.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from fer_jax.config import OneLineParser
from fer_jax.errors import InputError, did_you_mean

NAMES = (
    *("audit", "checkpoints", "depthwise", "end_to_end", "inference", "input", "media", "model"),
    *("scaling", "statistics", "stylegan2", "stylegan2_train"),
)
MIN_REPEATS = 5
NOISY_SPREAD = 0.2
PACKAGES = (
    *("jax", "jaxlib", "flax", "numpy", "opencv-python-headless", "torch", "keras"),
    *("onnxruntime", "openvino"),
)

Row = dict[str, Any]


def cpu_seconds() -> float:
    """CPU seconds of this process and of its finished children, user and system."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def compare(
    what: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    peer_name: str,
    amount: float,
    unit: str,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    dtype: str = "",
    batch: int = 0,
) -> Row:
    """Runs ours and the peer in turn, after one warm-up of each.

    Args:
      what: is done.
      ours: does it once.
      peer: does the same once.
      peer_name: who the peer is.
      amount: how much one run does, in `unit`.
      unit: such as "images per CPU-second"; says what the clock counts.
      repeats: how often each is run.
      clock: seconds; `cpu_seconds` for CPU time.
      dtype: of the computation, where it matters.
      batch: images at once, where it matters.

    Returns:
      {what, dtype, batch, ours, peer, peer_name, ratio, spread, repeats, unit}: `ours` and
      `peer` are medians in `unit`, `ratio` the median of ours / peer pair by pair, `spread`
      the distance of its quartiles over it.
    """

    def timed(run: Callable[[], Any]) -> float:
        started = clock()
        run()
        return clock() - started

    for run in (ours, peer):
        timed(run)
    pairs = [(timed(ours), timed(peer)) for _ in range(repeats)]
    rates = [(amount / own, amount / theirs) for own, theirs in pairs]
    return paired(what, rates, peer_name=peer_name, unit=unit, dtype=dtype, batch=batch)


def paired(
    what: str,
    rates: list[tuple[float, float]],
    *,
    peer_name: str,
    unit: str,
    dtype: str = "",
    batch: int = 0,
) -> Row:
    """The row of rates that were measured in turn: (ours, the peer's) in `unit`, pair by pair."""
    ratios = [own / theirs for own, theirs in rates]
    return {
        "what": what,
        "dtype": dtype,
        "batch": batch,
        "ours": statistics.median(own for own, _ in rates),
        "peer": statistics.median(theirs for _, theirs in rates),
        "peer_name": peer_name,
        "ratio": statistics.median(ratios),
        "spread": spread(ratios),
        "repeats": len(rates),
        "unit": unit,
    }


def spread(values: list[float]) -> float:
    """The distance between the quartiles, as a share of the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def single(what: str, value: float, unit: str, *, bar: str = "") -> Row:
    """One measured number without a peer; `bar` says what it should be."""
    return {"what": what, "ours": value, "unit": unit, "bar": bar, "repeats": 1}


def skipped(what: str, reason: str) -> Row:
    """A comparison that could not be made here."""
    return {"what": what, "skipped": reason}


def hardware() -> dict[str, Any]:
    """The machine: processor, cores, memory in GiB."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
    }


def versions() -> dict[str, str]:
    """Python's and the packages' versions; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(rows: list[Row]) -> str:
    """The rows for a terminal, with what is doubtful about them said."""
    lines = [("", "ours", "peer", "ratio", "spread", "unit")]
    notes = []
    for row in rows:
        if "skipped" in row:
            notes.append(f"skipped: {row['what']}: {row['skipped']}")
            continue
        name = " ".join(
            str(part) for part in (row["what"], row.get("dtype"), row.get("batch")) if part
        )
        if "ratio" not in row:
            bar = f" ({row['bar']})" if row["bar"] else ""
            lines.append((name, f"{row['ours']:.4g}", "", "", "", row["unit"] + bar))
            continue
        lines.append(
            (
                f"{name} / {row['peer_name']}",
                f"{row['ours']:.4g}",
                f"{row['peer']:.4g}",
                f"{row['ratio']:.3f}",
                f"{row['spread']:.0%}",
                row["unit"],
            )
        )
        if row["repeats"] < MIN_REPEATS:
            notes.append(f"{name}: only {row['repeats']} repeats")
        if row["spread"] > NOISY_SPREAD:
            notes.append(f"{name}: a noisy machine, the ratios spread over {row['spread']:.0%}")
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(width) if i in (0, 5) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*text, *notes])


def main(argv: list[str]) -> None:
    """The verb `benchmark`."""
    parser = OneLineParser(
        prog="fer-jax benchmark",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--workdir", type=Path, required=True, help="receives benchmark_NAME.json")
    parser.add_argument("--repeats", type=int, default=MIN_REPEATS)
    named = next((word for word in argv if not word.startswith("-")), "")
    if named and named not in NAMES:
        raise InputError(f"no benchmark '{named}'{did_you_mean(named, NAMES)}")
    module = import_module(f"fer_jax.benchmark.{named}") if named else None
    if module is not None:
        module.add_arguments(parser)
    options = parser.parse_args(argv)
    if options.repeats < 1:
        raise InputError(f"--repeats must be at least 1, not {options.repeats}")
    options.workdir.mkdir(parents=True, exist_ok=True)
    assert module is not None  # the parser has refused an absent name
    rows = module.run(options)
    print(table(rows))
    file = options.workdir / f"benchmark_{named}.json"
    result = {
        **{"name": named, "date": time.strftime("%Y-%m-%d")},
        **{"hardware": hardware(), "versions": versions(), "rows": rows},
    }
    file.write_text(json.dumps(result, indent=2) + "\n")
    print(file)
