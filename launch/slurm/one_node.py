"""A Slurm of this one host, for trying launch/slurm/train.sbatch: the real daemons, nothing shared.

Configuration, key, spool, sockets and logs are in a folder of their own, the ports are free ones,
and the daemons end with the block. Two partitions: a job in `high` takes the place of one in
`low`, which is warned and queued again. Needs root, as slurmd does.
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
CPUS = 4  # more than there may be: jobs are small
STARTS_WITHIN_S = 30.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def missing() -> str:
    """Why there can be no Slurm here; "" where there can."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f"Slurm is not installed ({', '.join(absent)})"
    return "" if os.geteuid() == 0 else "slurmd needs root"


def configuration(folder: Path, slurmctld_port: int, slurmd_port: int) -> str:
    """slurm.conf, with the daemons' files in a folder.

    JAX makes its port from the job's number, which so differs between two of these on a host.
    """
    host = socket.gethostname().split(".")[0]
    return f"""\
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
NodeName={host} NodeAddr=127.0.0.1 CPUs={CPUS} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Starts the daemons, and ends them.

    Args:
      folder: for all their files; made here.

    Yields:
      The environment in which `sbatch` and the others find them.

    Raises:
      RuntimeError: they do not come up; with what they logged.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    (folder / "slurm.conf").write_text(configuration(folder, *_free_ports(2)))
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    environment = dict(os.environ) | {"SLURM_CONF": str(folder / "slurm.conf")}
    munged = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    try:
        for command in (
            ["munged", "--force", f"--socket={folder}/munge.socket", *munged],
            ["slurmctld", "-c"],
            ["slurmd", "-c"],
        ):
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        wait_for(
            lambda: "idle" in run(environment, "sinfo", "--noheader", "--format=%t"),
            STARTS_WITHIN_S,
            lambda: (
                "Slurm did not come up:\n"
                + "".join(log.read_text()[-1500:] for log in folder.glob("*.log"))
            ),
        )
        yield environment
    finally:
        for name in ("slurmd", "slurmctld", "munge"):
            end(folder / f"{name}.pid")


def end(pid_file: Path) -> None:
    """Ends the daemon of a pid file, and waits until it is gone."""
    with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            time.sleep(0.1)
            os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)


def run(environment: Mapping[str, str], *command: str) -> str:
    """What one of Slurm's commands says."""
    done = subprocess.run(
        command, env=dict(environment), check=False, capture_output=True, text=True
    )
    return (done.stdout + done.stderr).strip()


def wait_for(true: Callable[[], bool], seconds: float, otherwise: Callable[[], str]) -> None:
    """Returns when something is true.

    Raises:
      RuntimeError: it did not become true; with what `otherwise` says.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise RuntimeError(otherwise())
        time.sleep(0.2)


def is_over(environment: Mapping[str, str], job: str) -> bool:
    """Whether a job has ended for good."""
    shown = run(environment, "scontrol", "show", "job", job)
    return shown.partition("JobState=")[2].partition(" ")[0] in ENDED
