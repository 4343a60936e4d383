"""Slurm on this host alone: the real daemons, with all their files in one folder.

The ports are free ones, and the daemons end with the block. There are two partitions: a job in
`high` preempts one in `low`, which is warned and requeued. Needs root, as slurmd does.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
# May be more than the host has, because the jobs are small.
CPUS = 4
MEMORY_MB = 16384
STARTS_WITHIN_S = 30.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
# JAX derives its port from the job's number, so the first number differs between two clusters.
CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmdPort={slurmd_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
JobAcctGatherType=jobacct_gather/none
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
FirstJobId={slurmctld_port}
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Returns why Slurm cannot run here, or ""."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)})"
    return "" if os.geteuid() == 0 else "slurmd needs root"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Starts the daemons and ends them; yields the environment for `sbatch` and the others.

    Raises:
      RuntimeError: they do not start; has the end of their logs.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    slurmctld_port, slurmd_port = _free_ports(2)
    text = CONFIGURATION.format(
        host=host,
        folder=folder,
        cpus=CPUS,
        memory=MEMORY_MB,
        slurmctld_port=slurmctld_port,
        slurmd_port=slurmd_port,
    )
    (folder / "slurm.conf").write_text(text)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    environment = dict(os.environ) | {"SLURM_CONF": str(folder / "slurm.conf")}
    munged = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]

    def logs() -> str:
        ends = [log.read_text()[-1500:] for log in folder.glob("*.log")]
        return "\n".join(["Slurm did not start:", *ends])

    try:
        for command in (
            ["munged", "--force", f"--socket={folder}/munge.socket", *munged],
            ["slurmctld", "-c"],
            ["slurmd", "-c"],
        ):
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        states = ("sinfo", "--noheader", "--format=%t")
        wait_for(lambda: "idle" in run(environment, *states), STARTS_WITHIN_S, logs)
        yield environment
    finally:
        for name in ("slurmd", "slurmctld", "munge"):
            _end(folder / f"{name}.pid")


def _end(pid_file: Path) -> None:
    """Ends a daemon and waits until it is gone."""
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            time.sleep(0.1)
            os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)


def run(environment: Mapping[str, str], *command: str) -> str:
    """Returns the output of one of Slurm's commands."""
    done = subprocess.run(
        command, env=dict(environment), check=False, capture_output=True, text=True
    )
    return (done.stdout + done.stderr).strip()


def submit(environment: Mapping[str, str], *arguments: str) -> str:
    """Submits a job; returns its number."""
    return run(environment, "sbatch", "--parsable", *arguments)


def preempt(environment: Mapping[str, str]) -> None:
    """Submits a short job that preempts the others."""
    submit(environment, *"--partition=high --exclusive --output=/dev/null --wrap=true".split())


def wait_for(condition: Callable[[], bool], seconds: float, describe: Callable[[], str]) -> None:
    """Returns when the condition is true, or raises RuntimeError(describe())."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(describe())
        time.sleep(0.2)


def wait_for_job(
    environment: Mapping[str, str], job: str, seconds: float, describe: Callable[[], str]
) -> str:
    """Waits until a job has ended for good; returns Slurm's description of it."""

    def shown() -> str:
        return run(environment, "scontrol", "show", "job", job)

    def is_over() -> bool:
        return shown().partition("JobState=")[2].partition(" ")[0] in ENDED

    wait_for(is_over, seconds, describe)
    return shown()
