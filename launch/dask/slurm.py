"""Starts a Dask scheduler here and its workers as Slurm jobs, until it is ended (Ctrl-C).

    source FOLDER/dask.env
    python launch/dask/slurm.py --jobs=8 --cores=4 --file=FOLDER/scheduler.json -- --partition=cpu
    fer-jax build clips/folds ... --dask=FOLDER/scheduler.json

FOLDER is one of certificates.sh. Each job has a worker for each of its cores; what follows `--`
are more of sbatch's options. A job that was cancelled, or reached its time limit, is replaced. The
jobs write their logs into the folder of the file and are cancelled when this program ends.
"""

import argparse
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.config
import distributed
from dask_jobqueue.slurm import SLURMCluster, SLURMJob
from distributed.core import Status

ROOT = Path(__file__).resolve().parents[2]
CHECKS_EVERY_S = 15
FAILURES = 3  # of each job, while there is no worker at all


class Job(SLURMJob):
    """A job that says that it is closed, which the cluster checks at its end."""

    async def close(self) -> None:
        """Cancels the job."""
        await super().close()
        self.status = Status.closed


def queued() -> set[str] | None:
    """Returns the numbers of your jobs that have not ended; None if Slurm does not answer."""
    command = ["squeue", "--noheader", "--format=%A", f"--user={os.getuid()}"]
    listed = subprocess.run(command, capture_output=True, text=True)
    return None if listed.returncode else set(listed.stdout.split())


def check_accepted(script: str) -> None:
    """Ends the program with Slurm's message if sbatch would not accept a job's script."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        checked = subprocess.run(
            ["sbatch", "--test-only", file.name], capture_output=True, text=True
        )
    if checked.returncode:
        sys.exit(f"slurm.py: {' '.join(checked.stderr.split())}")


def run(options: argparse.Namespace) -> None:
    """Runs the scheduler and replaces jobs that end, until a signal ends it."""
    file, folder = options.file.resolve(), options.file.resolve().parent
    # Workers need the certificates and this checkout, also where sbatch passes no variables on.
    passed = {name: value for name, value in os.environ.items() if name.startswith("DASK_")}
    prologue = [f"export {name}={shlex.quote(value)}" for name, value in passed.items()]
    # A worker has one thread, so that a clip that crashes it interrupts no other.
    described: dict[str, Any] = {
        "cores": options.cores,
        "processes": options.cores,
        "memory": options.memory,
        "walltime": options.time,
        "job_name": "fer_jax_dask",
        "job_script_prologue": [*prologue, f"cd {shlex.quote(str(ROOT))}"],
        "job_extra_directives": options.sbatch,
        "log_directory": str(folder),
        "worker_extra_args": ["--dashboard-address=127.0.0.1:0"],
    }
    scheduler = {"scheduler_file": str(file), "dashboard_address": "127.0.0.1:0"}
    described |= {"job_cls": Job, "protocol": "tls://", "scheduler_options": scheduler}
    # Dask replaces neither jobs of several workers nor those that end before they connect.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1000 days"})
    logging.getLogger("tornado.application").setLevel(logging.CRITICAL)  # tracebacks of refusals
    # Any, because its type is also that of an asynchronous one.
    cluster: Any = SLURMCluster(**described)
    with cluster:
        check_accepted(cluster.job_script())
        cluster.scale(jobs=options.jobs)
        print(f"{options.jobs} jobs for the scheduler at {cluster.scheduler_address}", flush=True)
        failures = 0
        while True:
            time.sleep(CHECKS_EVERY_S)
            listed = queued()
            if listed is None:
                continue
            # Also jobs that sbatch refused, which have no number.
            ended = [
                name for name, job in list(cluster.workers.items()) if job.job_id not in listed
            ]
            failures = 0 if cluster.scheduler_info["workers"] else failures + len(ended)
            if failures > FAILURES * options.jobs:
                sys.exit(
                    f"slurm.py: jobs end before they have a worker: see their logs in {folder}"
                )
            for name in ended:
                print(f"{name} has ended or was refused; it is submitted again", flush=True)
                del cluster.worker_spec[name]
            # In two rounds, because the new job may get the name of the one that ended.
            cluster.scale(jobs=len(cluster.worker_spec) if ended else options.jobs)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, required=True, help="number of Slurm jobs")
    parser.add_argument("--file", type=Path, required=True, help="the scheduler's file, for --dask")
    parser.add_argument("--cores", type=int, default=1, help="of each job, a worker for each")
    parser.add_argument("--memory", default="4 GiB", help="of each job (default: %(default)s)")
    parser.add_argument("--time", default="24:00:00", help="of each job (default: %(default)s)")
    parser.add_argument("sbatch", nargs="*", help="more options of sbatch, after --")
    options = parser.parse_args(argv)
    if not distributed.Security().tls_ca_file:
        parser.error("load the certificates first: source FOLDER/dask.env (see certificates.sh)")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        run(options)
    except KeyboardInterrupt:
        return 0
    finally:
        options.file.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
