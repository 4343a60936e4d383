"""What a run starts from: its workdir, locked and checked, its data, and its last checkpoint."""

import contextlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

import fer_jax
from fer_jax import checkpoints, distributed, storage
from fer_jax.compilations import cpu_info
from fer_jax.config import (
    Config,
    fields,
    from_json,
    is_generator,
    read_config,
    read_environment,
    to_json,
)
from fer_jax.data import batches
from fer_jax.data.experiment import (
    EXCLUSIONS_FILE,
    Experiment,
    Leaks,
    as_source,
    check_leaks,
    find_leaks,
    open_experiment,
)
from fer_jax.data.records import build_summary
from fer_jax.errors import InputError
from fer_jax.models import kernels
from fer_jax.sharding import make_mesh, replicated
from fer_jax.storage import write_atomically
from fer_jax.training.preemption import PreemptionNotice, handle_signals
from fer_jax.training.watchdog import Watchdog

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array-record"),
    *("tensorflow-datasets", "numpy", "scipy", "opencv-python-headless"),
)
# Settings that may change the last bits of a number: variables of the environment, and JAX's.
VARIABLES = (
    *("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
)
JAX_SETTINGS = (
    *("jax_default_matmul_precision", "jax_enable_x64", "jax_disable_most_optimizations"),
    *("jax_threefry_partitionable", "jax_default_prng_impl"),
)
# What may differ when a run is resumed; everything else makes it another run.
CHANGEABLE = (
    *("test_sets", "allow_leaks", "allow_unknown_people", "num_epochs", "log_every_steps"),
    *("early_stopping_patience", "keep_checkpoints", "profile", "input"),
)


class Run(NamedTuple):
    """A run that may start or resume."""

    config: Config
    workdir: Path  # locked while the run is open
    data_dir: Path
    mesh: Mesh  # all devices
    experiment: Experiment
    leaks: Leaks  # that the config allows
    mixture: batches.Mixture
    last: int  # the step that it resumes from; 0 for a new run
    saved: dict[str, Any]  # the `loop` item of that checkpoint
    history: list[dict[str, float]]  # the validations so far, oldest first
    notice: PreemptionNotice
    watchdog: Watchdog


@contextlib.contextmanager
def open_run(
    config: Config,
    workdir: Path,
    data_dir: Path,
    *,
    changeable: Collection[str] = CHANGEABLE,
    soft_labels: bool = False,
) -> Iterator[Run]:
    """Locks a workdir, handles signals, and opens the data and the last checkpoint."""
    storage.check_links(workdir)
    with (
        distributed.lock(workdir),
        handle_signals() as notice,
        contextlib.closing(Watchdog()) as watchdog,
    ):
        check_continues(config, workdir, data_dir, changeable=changeable)
        last, saved = checkpoints.latest_valid_step(workdir)
        experiment = open_experiment(config, data_dir)
        leaks = find_leaks(experiment, data_dir)
        check_leaks(leaks, config)
        mixture = batches.mix(
            experiment.train,
            config.task,
            weights=[as_source(entry).weight for entry in config.sources],
            soft_labels=soft_labels,
            **config.mixture,
        )
        check_images(len(mixture), saved, workdir)
        yield Run(
            config,
            workdir,
            data_dir,
            mesh=make_mesh(),
            experiment=experiment,
            leaks=leaks,
            mixture=mixture,
            last=last,
            saved=saved,
            history=saved.get("history", []),
            notice=notice,
            watchdog=watchdog,
        )


def make_keys(run: Run) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of a run's first state and, on all devices, of its steps."""
    init_key, step_key = jax.random.split(jax.random.key(run.config.seed))
    # `device_put` takes no keys where other processes have devices, too.
    return init_key, jax.jit(lambda key: key, out_shardings=replicated(run.mesh))(step_key)


def write_inputs(run: Run) -> None:
    """Writes config.json, environment.json and the exclusions of a run into its workdir."""
    write_atomically(run.workdir / "config.json", to_json(run.config))
    if run.config.exclusions:
        exclusions = Path(run.config.exclusions).read_bytes()
        write_atomically(run.workdir / EXCLUSIONS_FILE, exclusions)
    _write_environment(run)


def describe_machine() -> dict[str, Any]:
    """Returns what decides the numbers of a run beside its config and data."""
    return {
        "versions": {"python": platform.python_version(), "fer-jax": fer_jax.__version__}
        | {name: metadata.version(name) for name in PACKAGES if _installed(name)},
        # On a CPU the kind is the platform.
        "devices": [" ".join(dict.fromkeys((d.platform, d.device_kind))) for d in jax.devices()],
        "processes": jax.process_count(),
        "processor": _processor(),
        "kernels": kernels.describe(),
        "cpu_cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "settings": {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
        | {name: jax.config.values[name] for name in JAX_SETTINGS},
        "commit": _commit(),
    }


def _write_environment(run: Run) -> None:
    """Writes environment.json: `describe_machine`, and where the data is, for `evaluate`."""
    experiment, data_dir = run.experiment, run.data_dir
    datasets = sorted({records.name for records in experiment.train})
    summaries = {name: build_summary(name, data_dir) for name in datasets}
    environment = describe_machine() | {
        "command": storage.redact_secrets(" ".join(["fer-jax", *sys.argv[1:]])),
        "data_dir": str(data_dir.resolve()),
        "datasets": {
            name: {
                "fingerprint": summary.get("fingerprint"),
                "records": summary.get("records"),
                # `predict` crops faces with the same margin.
                "margin": summary.get("options", {}).get("faces", {}).get("margin", 0.0),
            }
            for name, summary in summaries.items()
        },
        "test_datasets": {
            name: build_summary(name, data_dir).get("fingerprint")
            for name in sorted({records.name for records in experiment.test})
        },
        "start": dict(experiment.start),
        "leaks": run.leaks.counts,
        "seen": run.leaks.seen,
        "unknown_people": run.leaks.unknown,
        "left_out": experiment.left_out,
        "skipped": {
            f"{records.name} {records.split}": list(records.skipped)
            for records in (*experiment.train, *experiment.validation)
            if records.skipped
        },
    }
    write_atomically(run.workdir / "environment.json", json.dumps(environment, indent=2) + "\n")


def _processor() -> str:
    """Returns the processor's name: another one may add the terms of a sum in another order."""
    name = cpu_info("model name").partition(":")[2].strip()
    return name or platform.processor() or platform.machine()


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str | None:
    """Returns the checkout's commit, with "+" if files differ from it; None without a checkout."""
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


def check_continues(
    config: Config, workdir: Path, data_dir: Path, *, changeable: Collection[str] = CHANGEABLE
) -> None:
    """Refuses to resume a run with a config or data that would make it another run."""
    # Without a checkpoint there is nothing to resume: a start that failed is replaced.
    if not any(path.name.isdecimal() for path in (workdir / checkpoints.FOLDER).glob("*")):
        return
    before = read_config(workdir, of_generator=is_generator(config))
    differing = storage.differences(
        dict(fields(before)), dict(fields(from_json(to_json(config)))), ignored=changeable
    )
    if differing:
        raise InputError(
            f"'{workdir}' holds a run with another config: {'; '.join(differing)}; "
            "choose another workdir or the same config"
        )
    kept, given = workdir / EXCLUSIONS_FILE, Path(config.exclusions)
    if given.is_file() and kept.is_file() and kept.read_bytes() != given.read_bytes():
        raise InputError(
            f"'{workdir}' holds a run with other exclusions than '{given}' has now; choose another "
            "workdir or the same exclusions"
        )
    remedy = "delete it to resume without comparing the data"
    for name, was in read_environment(workdir, remedy).get("datasets", {}).items():
        if was.get("fingerprint") != build_summary(name, data_dir).get("fingerprint"):
            raise InputError(
                f"'{workdir}' was trained on another build of '{name}' than {data_dir} has now; "
                "delete that folder to train it again, or choose another workdir"
            )


def check_images(count: int, saved: dict[str, Any], workdir: Path) -> None:
    """Refuses to resume with another number of images: every batch would be another."""
    before = saved.get("images", count)
    if before != count:
        raise InputError(
            f"'{workdir}' was trained on {before} images, and {count} can be read now; repair the "
            "dataset, or choose another workdir"
        )
