"""What a run ran on: versions, devices, commit, and the fingerprints of its data."""

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax

import fer_jax
from fer_jax import storage
from fer_jax.data.experiment import Experiment
from fer_jax.data.records import build_summary
from fer_jax.training.log import write_atomically

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "array-record",
    "tensorflow-datasets",
    "numpy",
    "opencv-python-headless",
)


def write_environment(
    workdir: Path, data_dir: Path, experiment: Experiment, leaks: dict[str, int]
) -> None:
    """Writes workdir/environment.json.

    Args:
      workdir: of the run.
      data_dir: where the datasets are; kept so that `evaluate` finds them again.
      experiment: what is trained on.
      leaks: what leaks in it, by kind, and was allowed.
    """
    datasets = sorted({records.name for records in experiment.train})
    summaries = {name: build_summary(name, data_dir) for name in datasets}
    environment = {
        "versions": {"python": platform.python_version(), "fer-jax": fer_jax.__version__}
        | {name: metadata.version(name) for name in PACKAGES if _installed(name)},
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "cpu_cores": os.cpu_count(),
        "commit": _commit(),
        "command": " ".join(["fer-jax", *map(storage.redact_secrets, sys.argv[1:])]),
        "data_dir": str(data_dir.resolve()),
        "datasets": {
            name: {
                "fingerprint": summary.get("fingerprint"),
                "records": summary.get("records"),
                # `predict` frames faces as they were framed here.
                "margin": summary.get("options", {}).get("faces", {}).get("margin", 0.0),
            }
            for name, summary in summaries.items()
        },
        "leaks": leaks,
        "left_out": experiment.left_out,
        "skipped": {
            f"{records.name} {records.split}": list(records.skipped)
            for records in (*experiment.train, *experiment.validation)
            if records.skipped
        },
    }
    write_atomically(workdir / "environment.json", json.dumps(environment, indent=2) + "\n")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str | None:
    """The checkout's commit, with "+" where files differ from it; None outside a checkout."""
    checkout = Path(fer_jax.__file__).parent.parent
    git = ["git", "-C", str(checkout)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
