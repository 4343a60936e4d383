"""Builds on a Dask cluster whose processes are killed, for `faults.py`.

Each trial builds a dataset of small clips, and its records must be those of a build without Dask.
"""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import one_node

from fer_jax.data.records import open_records
from fer_jax.storage import read_table

ROOT = Path(__file__).resolve().parents[2]
BUILD = ("build", "clips/folds", "--name=filmed", "--folds=2", "--detector=none", "--every=1")
NUM_CLIPS = 24
ENDS_WITHIN_S = 300.0
TERMINATES_WITHIN_S = 30.0


class World(NamedTuple):
    """Clips, one of which crashes its decoder, and the environment of processes in which it does.

    Attributes:
      folder: has source/ and a folder of each build.
      environment: of all processes.
      records: the hash of the records of a build without Dask.
    """

    folder: Path
    environment: dict[str, str]
    records: str

    def start(self, data_dir: Path, *more: str) -> subprocess.Popen[str]:
        """Starts a build."""
        words = [f"--source={self.folder / 'source'}", f"--data_dir={data_dir}", *more]
        return subprocess.Popen(
            [sys.executable, "-m", "fer_jax", *BUILD, *words],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def check(self, build: subprocess.Popen[str], data_dir: Path) -> None:
        """Waits for the end of a build, and compares its records and its ledger."""
        errors = finished(build, 0)
        (ledger,) = data_dir.glob("filmed/folds/*/ledger.csv")
        rows = [(row["item"], row["reason"]) for row in read_table(ledger)]
        if rows != [("filmed/anger/crash", "its decoder crashed")]:
            raise RuntimeError(f"the ledger has {rows}: {errors}")
        if hash_of_records(data_dir) != self.records:
            raise RuntimeError("the records differ from those of a build without Dask")


def finished(build: subprocess.Popen[str], code: int) -> str:
    """Waits for a build, which must end with an exit code; returns its messages."""
    try:
        _, errors = build.communicate(timeout=ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        build.kill()
        raise RuntimeError(f"still running: {build.communicate()[1][-1500:]}") from None
    if build.returncode != code or "Traceback" in errors:
        raise RuntimeError(f"exit code {build.returncode}: {errors[-1500:]}")
    return errors


def hash_of_records(data_dir: Path) -> str:
    """Returns the SHA-256 of the records of each split in their order."""
    digest = hashlib.sha256()
    for split in ("fold_0", "fold_1"):
        records = open_records("filmed/folds", split, data_dir)
        names = sorted(set(records.columns) - {"image"})
        for row in range(len(records)):
            digest.update(records.jpeg(row))
            digest.update(repr([(name, records.columns[name][row]) for name in names]).encode())
    return digest.hexdigest()


def make_world(folder: Path, environment: Mapping[str, str]) -> World:
    """Writes the clips, and builds without Dask."""
    rng = np.random.default_rng(0)
    for number in range(NUM_CLIPS):
        emotion = ("anger", "happiness", "neutral")[number % 3]
        name = "crash" if number == 9 else f"p{number:02}"
        file = folder / "source" / emotion / f"{name}.avi"
        file.parent.mkdir(parents=True, exist_ok=True)
        fourcc = cv2.VideoWriter.fourcc(*"MJPG")
        writer = cv2.VideoWriter(str(file), fourcc, 10, (320, 240))
        for picture in rng.integers(0, 256, (60, 240, 320, 3), np.uint8):
            writer.write(picture)
        writer.release()
    crashing = ROOT / "tests" / "crashing_decoder"
    own = dict(environment) | {"PYTHONPATH": f"{crashing}:{ROOT}"}
    data_dir = folder / "local"
    # The local one, too, loses this clip.
    world = World(folder, own, "")
    finished(world.start(data_dir, "--processes=2"), 0)
    return world._replace(records=hash_of_records(data_dir))


def wait_for_clips(build: subprocess.Popen[str], data_dir: Path, count: int) -> None:
    """Waits until a build has finished so many clips."""

    def there() -> bool:
        if build.poll() is not None:
            raise RuntimeError(f"ended with {build.returncode} before {count} clips")
        return len(list(data_dir.glob(".clips/filmed/*.zip"))) >= count

    one_node.wait_for(there, ENDS_WITHIN_S, lambda: f"no {count} clips in time")


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, which may be stopped; a worker without a scheduler does not heed SIGTERM."""
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.wait(TERMINATES_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def cluster_of_two(world: World, place: Path) -> Iterator[tuple[Path, Any, list[Any]]]:
    """Yields the file of a scheduler, its process and its workers, which are started again."""
    file = place / "scheduler.json"
    with contextlib.ExitStack() as stack:

        def dask(*words: str) -> Any:
            log = stack.enter_context((place / f"{words[0]}.log").open("ab"))
            started = subprocess.Popen(
                [sys.executable, "-m", "dask", *words, "--host=127.0.0.1"],
                env=world.environment,
                stdout=log,
                stderr=log,
            )
            stack.callback(end, started)
            return started

        quiet = "--dashboard-address=127.0.0.1:0"
        scheduler = dask("scheduler", "--port=0", f"--scheduler-file={file}", quiet)
        options = (f"--scheduler-file={file}", "--nthreads=1", quiet)
        own = f"--local-directory={place / 'scratch'}"
        workers = [dask("worker", *options, own) for _ in range(2)]
        one_node.wait_for(file.is_file, ENDS_WITHIN_S, lambda: "no scheduler in time")
        yield file, scheduler, workers


def children(pid: int) -> list[int]:
    """Returns the processes that a process started."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in listed for child in file.read_text().split()]


def worker_of(nanny: Any) -> int:
    """Returns the process of a nanny that works."""
    for child in children(nanny.pid):
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            return child
    raise RuntimeError("a nanny has no worker")


def lose(world: World, place: Path, trial: int, draw: random.Random) -> None:
    """Kills a worker, stops one or kills the scheduler, at a random clip; every build has a crash.

    After the scheduler's end the command ends in one line, and the same command without Dask
    finishes the dataset.
    """
    data_dir = place / "data"
    with cluster_of_two(world, place) as (file, scheduler, nannies):
        build = world.start(data_dir, f"--dask={file}")
        if trial % 4 == 3:  # nothing but the clip that crashes
            world.check(build, data_dir)
            return
        wait_for_clips(build, data_dir, draw.randint(1, NUM_CLIPS // 2))
        if trial % 4 == 2:
            scheduler.kill()
            message = finished(build, 2)
            if "scheduler was lost" not in message or list(data_dir.glob("filmed/folds/*")):
                raise RuntimeError(f"a lost scheduler: {message[-1500:]}")
            build = world.start(data_dir, "--processes=2")
        elif trial % 4 == 1:
            nanny = draw.choice(nannies)
            worker = worker_of(nanny)
            os.kill(worker, signal.SIGSTOP)
            time.sleep(draw.uniform(1, 5))
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGCONT)
        else:
            os.kill(worker_of(draw.choice(nannies)), signal.SIGKILL)
        world.check(build, data_dir)


def cancel_job(world: World, place: Path, draw: random.Random) -> None:
    """Cancels one of two Slurm jobs of launch/dask/slurm.py in the middle of a build."""
    certificates, data_dir = place / "certificates", place / "data"
    launcher = ROOT / "launch" / "dask"
    subprocess.run(
        ["bash", launcher / "certificates.sh", certificates], check=True, capture_output=True
    )
    loaded = subprocess.run(
        ["bash", "-c", 'source "$1" && env -0', "bash", certificates / "dask.env"],
        capture_output=True,
        text=True,
        check=True,
    )
    pairs = (entry.partition("=") for entry in loaded.stdout.split("\0"))
    certificate = {name: value for name, _, value in pairs if name.startswith("DASK_")}
    file, log = certificates / "scheduler.json", place / "slurm.log"

    def describe() -> str:
        return f"slurm.py: {log.read_text()[-1500:]}"

    with one_node.cluster(place / "slurm") as environment:
        environment |= world.environment | certificate
        environment["SLURM_CONF"] = str(place / "slurm" / "slurm.conf")
        with log.open("wb") as messages:
            started = subprocess.Popen(
                [
                    *(sys.executable, launcher / "slurm.py", "--jobs=2", "--memory=1 GiB"),
                    f"--file={file}",
                ],
                env=environment,
                stdout=messages,
                stderr=messages,
            )
        try:

            def jobs() -> list[str]:
                states = "--states=RUNNING"
                return one_node.run(environment, "squeue", "-h", "-o%i", states).split()

            def both_run() -> bool:
                if started.poll() is not None:
                    raise RuntimeError(describe())
                return file.is_file() and len(jobs()) == 2

            one_node.wait_for(both_run, ENDS_WITHIN_S, describe)
            build = world._replace(environment=environment).start(data_dir, f"--dask={file}")
            wait_for_clips(build, data_dir, draw.randint(1, NUM_CLIPS // 2))
            cancelled = draw.choice(jobs())
            one_node.run(environment, "scancel", cancelled)
            world.check(build, data_dir)
            one_node.wait_for(lambda: len(set(jobs()) - {cancelled}) == 2, ENDS_WITHIN_S, describe)
        finally:
            started.terminate()
            code = started.wait()
        if code or file.exists() or "Traceback" in log.read_text():
            raise RuntimeError(f"exit code {code}, {describe()}")
        one_node.wait_for(lambda: not jobs(), ENDS_WITHIN_S, lambda: "jobs outlive slurm.py")
