"""Injects faults into real training processes and checks that they resume or name the problem.

`bash launch/faults.sh --help` lists the options. A tiny network on rendered faces trains in one or
two processes. Several trials of a kind that ends in the same run share it: it is killed again and
again, and must end with the parameters, statistics and optimizer state of an uninterrupted run,
bit for bit. Each trial is recorded when it ends, so the same command resumes, unless the code
changed.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import on_dask
import one_node
import orbax.checkpoint as ocp
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue] (a compiled module)
)
from tensorflow_datasets.proto import tf_example_pb2

from fer_jax import checkpoints
from fer_jax.__main__ import main as fer_jax
from fer_jax.data import batches
from fer_jax.data.records import dataset_directory
from fer_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
DATASET = "demo/controlled"
OPTIONS = (
    "--config=configs/demo.py",
    "--config.test_sets=()",
    "--config.num_epochs=2.0",
    "--config.batch_size=16",
    "--config.model.width=0.03",
    "--config.model.num_middle_blocks=0",
    "--config.validate_every_epochs=0.2",
    "--config.log_every_steps=1",
)
PREEMPTED = 75
ENDS_WITHIN_S = 30.0
WARNS_WITHIN_S = 60.0
STARTS_WITHIN_S = 600.0  # on a machine in use, compilation included
TRIALS_PER_RUN = 5
TIMINGS = {"images_per_second", "data_wait_share", "model_flop_per_second"}
DISK_BYTES = 64 * 2**20


class FailedTrial(Exception):
    """A run did not survive or did not name the problem; has what was observed."""


class SkippedTrial(Exception):
    """A trial is not possible here; has the reason."""


def end_of(log: Path, length: int = 1500) -> str:
    """Returns the end of a file; "" while it does not exist."""
    return log.read_text()[-length:].strip() if log.is_file() else ""


def steps_in(log: Path) -> int:
    """Returns how many steps a log shows."""
    return len(re.findall(r"^step \d+/", end_of(log, 10**7), re.MULTILINE))


@dataclasses.dataclass
class Run:
    """A started run: `fer-jax train`, or the launcher of several such processes, and its log."""

    process: subprocess.Popen[bytes]
    processes: int
    log: Path

    def trainers(self) -> list[int]:
        """Returns the ids of the processes that train."""
        if self.processes == 1:
            return [self.process.pid]
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in listed.read_text().split()]

    def fail(self, problem: str) -> FailedTrial:
        """Returns the error of a problem, with the end of the log."""
        return FailedTrial(f"{problem}: {end_of(self.log)}")

    def wait(self, seconds: float) -> int:
        """Waits for the end; returns the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self.fail(f"still running after {seconds:.0f} s") from None

    def kill(self) -> None:
        """Kills all processes at once."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for pid in self.trainers():
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def wait_for_steps(self, count: int) -> None:
        """Waits until this start has shown so many steps."""
        deadline = time.monotonic() + STARTS_WITHIN_S
        while steps_in(self.log) < count:
            if self.process.poll() is not None:
                raise self.fail(f"ended with {self.process.returncode} at the start")
            if time.monotonic() > deadline:
                self.kill()
                raise self.fail(f"no {count} steps in {STARTS_WITHIN_S:.0f} s")
            time.sleep(0.02)

    def check_named(self, *words: str) -> None:
        """Checks that it ends with exit code 2 and one line that has the words."""
        code = self.wait(STARTS_WITHIN_S)
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("fer-jax: ")]
        if code != 2 or len(lines) != 1 or not all(word in lines[0] for word in words):
            raise self.fail(f"exit code {code}, expected 2 and a line with {words}")


@dataclasses.dataclass
class Bench:
    """Where trials run: the folder of all files, the number of their group, its random numbers."""

    folder: Path
    group: int
    random: random.Random

    @property
    def data(self) -> Path:
        """The folder of the rendered faces."""
        return self.folder / "data"

    def fresh(self, name: str) -> Path:
        """Returns an empty folder."""
        workdir = self.folder / name.replace(" ", "_")
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.mkdir(parents=True)
        return workdir

    def copied_data(self) -> tuple[Path, Path]:
        """Copies the dataset to be damaged; returns its folder and a shard of training."""
        data = self.fresh("damaged_data")
        shutil.copytree(self.data, data, dirs_exist_ok=True)
        return data, next(dataset_directory(DATASET, data).glob("*-train.array_record*"))

    def environment(self, devices: int) -> dict[str, str]:
        """Returns the environment of a run with so many devices in each process."""
        return dict(os.environ) | {
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
            + f" --xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compilations"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            # Otherwise half the time of a fifth of the trials is compilation.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        }

    def start(
        self,
        workdir: Path,
        *,
        processes: int = 1,
        devices: int = 1,
        options: Sequence[str] = (),
        data: Path | None = None,
        program: Sequence[str] = ("-m", "fer_jax"),
    ) -> Run:
        """Starts or resumes a run."""
        if processes > 1:
            program = ("launch/local.py", f"--processes={processes}")
        command = [sys.executable, *program, "train", *OPTIONS, *options]
        command += [f"--workdir={workdir}", f"--data_dir={data or self.data}"]
        log = self.folder / "log.txt"
        with log.open("wb") as messages:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment(devices),
                stdout=messages,
                stderr=subprocess.STDOUT,
            )
        return Run(process, processes, log)

    def finish(self, workdir: Path, processes: int = 1) -> None:
        """Trains until the end."""
        run = self.start(workdir, processes=processes)
        if code := run.wait(STARTS_WITHIN_S):
            raise run.fail(f"ended with {code}")

    def reference(self, processes: int = 1) -> Path:
        """Returns the workdir of an uninterrupted run, which is trained once."""
        workdir = self.folder / f"reference_{processes}"
        finished, code = workdir / "finished", code_digest()
        if not finished.is_file() or finished.read_text() != code:
            self.finish(self.fresh(workdir.name), processes)
            finished.write_text(code)
        return workdir

    def compare(self, workdir: Path, processes: int = 1) -> None:
        """Compares the final state and the metrics of a run with the uninterrupted one's."""
        reference = self.reference(processes)
        if final_hash(workdir) != final_hash(reference):
            raise FailedTrial("the final state differs from the uninterrupted run's")
        if metrics(workdir) != metrics(reference):
            raise FailedTrial("metrics.jsonl differs from the uninterrupted run's")


def final_hash(workdir: Path) -> str:
    """Returns the SHA-256 of all arrays of the last checkpoint and of their names."""
    step = checkpoints.finished_steps(workdir)[-1]
    digest = hashlib.sha256(str(step).encode())
    with ocp.PyTreeCheckpointer() as reader:
        for item in ("network", "training"):
            folder = workdir.resolve() / checkpoints.FOLDER / str(step) / item
            saved: Any = reader.metadata(folder).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
            restored = reader.restore(folder, restore_args=as_numpy)
            for name, array in jax.tree_util.tree_leaves_with_path(restored):
                about = f"{item}{jax.tree_util.keystr(name)}{array.shape}{array.dtype}"
                digest.update(about.encode() + array.tobytes())
    return digest.hexdigest()


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl without timings; each step must be there once."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    if len({row["step"] for row in rows}) != len(rows):
        raise FailedTrial("a step is in metrics.jsonl twice")
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


# A fault that interrupts a run: (bench, run, workdir, trial). It returns False if the run had
# finished before, so that another run takes its place.
Interrupt = Callable[[Bench, Run, Path, int], bool]


def interrupted(
    bench: Bench, first: int, count: int, *, interrupt: Interrupt, processes: int = 0
) -> None:
    """Interrupts a run so many times; then it must end as the uninterrupted one.

    It has one process or two, in turn, unless `processes` says how many.
    """
    processes = processes or 1 + bench.group % 2
    workdir, trial = bench.fresh("interrupted"), 0
    while trial < count:
        run = bench.start(workdir, processes=processes)
        run.wait_for_steps(1)
        if interrupt(bench, run, workdir, trial):
            trial += 1
        else:
            bench.compare(workdir, processes)
            workdir = bench.fresh("interrupted")
    bench.finish(workdir, processes)
    bench.compare(workdir, processes)


def kill(bench: Bench, run: Run, workdir: Path, trial: int) -> bool:
    """Kills all at a random moment, every other time while a checkpoint is written."""
    if trial % 2:
        wait_for_save(workdir, run)
        time.sleep(bench.random.uniform(0, 0.1))
    else:
        time.sleep(bench.random.uniform(0, 2.0))
    finished = run.process.poll() is not None
    run.kill()
    return not finished


def wait_for_save(workdir: Path, run: Run) -> None:
    """Waits until a checkpoint is being written, or the run has ended."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while run.process.poll() is None and time.monotonic() < deadline:
        saved = list((workdir / checkpoints.FOLDER).glob("*"))
        if any(not (folder / checkpoints.CHECKSUMS_FILE).exists() for folder in saved):
            return
        time.sleep(0.001)


def send_signal(bench: Bench, run: Run, workdir: Path, trial: int) -> bool:
    """Sends SIGTERM, SIGINT and SIGHUP in turn: a checkpoint is saved, and the exit code is 75."""
    time.sleep(bench.random.uniform(0, 2.0))
    number = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[trial % 3]
    with contextlib.suppress(ProcessLookupError):
        run.process.send_signal(number)
    code = run.wait(ENDS_WITHIN_S)
    if code == 0:
        return False
    saved = re.findall(r"step (\d+) is saved", run.log.read_text())
    if code != PREEMPTED or not saved:
        raise run.fail(f"{number.name}: exit code {code}")
    if checkpoints.latest_valid_step(workdir)[0] != int(saved[-1]):
        raise FailedTrial(f"{number.name}: step {saved[-1]} does not exist")
    return True


def lose_peer(
    bench: Bench, run: Run, workdir: Path, trial: int, *, lose: Callable[[int], Any]
) -> bool:
    """Loses one of two processes: all end in time."""
    # The watchdog must know a step's usual time.
    run.wait_for_steps(bench.random.randint(5, 7))
    trainers = run.trainers()
    began = time.monotonic()
    holder = lose(bench.random.choice(trainers))
    code = run.wait(ENDS_WITHIN_S + 30)
    took = time.monotonic() - began
    if holder is not None:
        holder.kill()
        holder.wait()
    left = [pid for pid in trainers if Path(f"/proc/{pid}").exists()]
    if not code or left or took > ENDS_WITHIN_S:
        raise run.fail(f"exit code {code} after {took:.0f} s, still running: {left}")
    return True


# Traces a process until it ends. A program of its own: what this file imports takes seconds, after
# which the process that it stops may be in the middle of something that may take minutes.
HOLD = """
import ctypes, os, sys
if ctypes.CDLL(None).ptrace(16, int(sys.argv[1]), None, None):  # PTRACE_ATTACH
    sys.exit(1)
os.waitpid(int(sys.argv[1]), 0)
print("held", flush=True)
os.waitpid(int(sys.argv[1]), 0)  # its parent learns of its end only after its tracer
"""


def start_holder(pid: int) -> subprocess.Popen[bytes]:
    """Stops the main thread of a process, whose other threads continue."""
    command = [sys.executable, "-c", HOLD, str(pid)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert holder.stdout
    with holder.stdout:
        if holder.stdout.readline() != b"held\n":
            holder.wait()
            raise SkippedTrial("tracing a process is not allowed here")
    return holder


def damaged_checkpoint(bench: Bench, trial: int) -> None:
    """Damages the newest checkpoint, or two: it is detected, and the right one is restored."""
    reference = bench.reference()
    steps = checkpoints.finished_steps(reference)
    workdir = bench.fresh("damaged")
    shutil.copytree(reference / checkpoints.FOLDER, workdir / checkpoints.FOLDER)
    damaged = steps[-1:] if trial % 10 else steps[-2:]
    done = {step: damage(workdir / checkpoints.FOLDER / str(step), bench) for step in damaged}
    try:
        checkpoints.restore_network(workdir, str(steps[-1]), {}, "validation_accuracy")
    except InputError as error:
        if str(steps[-1]) not in str(error):
            raise FailedTrial(f"{done}: the step is not named: {error}") from None
    else:
        raise FailedTrial(f"{done}: restored without an error")
    messages = io.StringIO()
    with contextlib.redirect_stdout(messages):
        step, _ = checkpoints.latest_valid_step(workdir)
    valid = [one for one in steps if one not in damaged]
    if step != (valid[-1] if valid else 0):
        raise FailedTrial(f"{done}: fell back to step {step} of {steps}")
    for one in damaged:
        if f"checkpoint {one} is corrupted" not in messages.getvalue():
            raise FailedTrial(f"{done}: no message about step {one}")
    if step and checkpoints.find_corruption(workdir / checkpoints.FOLDER / str(step)):
        raise FailedTrial(f"{done}: the restored step is corrupted, too")


def damage(folder: Path, bench: Bench) -> str:
    """Damages one file of a folder; returns how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    while True:
        file = bench.random.choice(files)
        content = bytearray(file.read_bytes())
        kind = bench.random.choice(["flipped", "zeroed", "truncated", "deleted"])
        if kind == "deleted":
            file.unlink()
            return f"{file.relative_to(folder)} deleted"
        if not content:
            continue
        at = bench.random.randrange(len(content))
        if kind == "flipped":
            content[at] ^= 1 << bench.random.randrange(8)
        elif kind == "zeroed":
            content[at : at + 512] = bytes(len(content[at : at + 512]))
        else:
            del content[at:]
        if content != file.read_bytes():
            file.write_bytes(content)
            return f"{file.relative_to(folder)} {kind} at {at}"


# (processes, devices of each) before and after.
TOPOLOGIES = (
    ((1, 1), (1, 8)),
    ((1, 8), (1, 1)),
    ((2, 4), (1, 8)),
    ((1, 8), (2, 4)),
    ((2, 4), (1, 1)),
    ((1, 1), (2, 4)),
)


def other_topology(bench: Bench, trial: int) -> None:
    """Resumes on another number of devices: the first loss agrees within 1e-5."""
    before, after = TOPOLOGIES[trial % len(TOPOLOGIES)]
    workdir = bench.fresh("moved")
    run = bench.start(workdir, processes=before[0], devices=before[1])
    run.wait_for_steps(bench.random.randint(3, 9))
    run.process.send_signal(signal.SIGTERM)
    if (code := run.wait(STARTS_WITHIN_S)) != PREEMPTED:
        raise run.fail(f"exit code {code}")
    losses = []
    for processes, devices in (before, after):
        copy = bench.fresh("moved_on")
        shutil.copytree(workdir, copy, dirs_exist_ok=True)
        run = bench.start(copy, processes=processes, devices=devices)
        # A step is shown just before its row is written, so two more steps than the one compared.
        run.wait_for_steps(3)
        run.kill()
        step = int(re.findall(r"continuing from step (\d+)", run.log.read_text())[-1])
        losses += [row["train_loss"] for row in metrics(copy) if row["step"] == step + 1]
    if len(losses) != 2 or abs(losses[1] / losses[0] - 1) > 1e-5:
        raise FailedTrial(f"{before} to {after}: the first losses are {losses}")


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Callable[[str], None]]:
    """Mounts a file system on a folder; yields a function that changes its options."""
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "fer_jax_faults"]
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise SkippedTrial(f"no file system can be mounted here: {done.stderr.strip()}")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    try:
        yield remount
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def bad_disk(bench: Bench, trial: int) -> None:
    """Fills the disk or makes it read-only: the error names it; the step before restores."""
    workdir = bench.fresh("disk")
    with mounted(workdir) as remount:
        if trial % 2:
            run = bench.start(workdir)
            run.wait_for_steps(bench.random.randint(8, 20))
            run.kill()
            remount("ro")
            message = "Read-only file system"
        else:
            reference = bench.reference()
            files = (reference / checkpoints.FOLDER).rglob("*")
            used = sum(file.stat().st_blocks * 512 for file in files)
            each = used // len(checkpoints.finished_steps(reference))
            # Two are kept, and the best, while the next is written.
            remount(f"size={int(each * bench.random.uniform(1.5, 2.8)) + 2**18}")
            message = "No space left on device"
        run = bench.start(workdir)
        code, text = run.wait(STARTS_WITHIN_S), run.log.read_text()
        if not code or "fer-jax: " not in text or message not in text or "Traceback" in text:
            raise run.fail(f"exit code {code}, expected one line with '{message}'")
        remount(f"rw,size={DISK_BYTES}")
        bench.finish(workdir)
        bench.compare(workdir)


def change_record(bench: Bench, change: Callable[[Any], None]) -> tuple[Path, str]:
    """Copies the data with one training record changed; returns its folder and the record's id."""
    data, shard = bench.copied_data()
    with contextlib.closing(array_record_module.ArrayRecordReader(str(shard))) as reader:
        serialized = reader.read_all()
    at = bench.random.randrange(len(serialized))
    example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue] (made by protobuf at import)
    example.ParseFromString(serialized[at])
    change(example.features.feature)
    serialized[at] = example.SerializeToString()
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
    with contextlib.closing(writer):
        for record in serialized:
            writer.write(record)
    return data, example.features.feature["record_id"].bytes_list.value[0].decode()


def not_a_number(bench: Bench, trial: int) -> None:
    """Puts a NaN among the votes: the error names the step and the record."""

    def change(feature: Any) -> None:
        feature["emotion_probabilities"].float_list.value[0] = float("nan")

    data, record = change_record(bench, change)
    options = ["--config.loss.soft_labels=true"]
    bench.start(bench.fresh("damaged"), data=data, options=options).check_named(record)


def corrupt_record(bench: Bench, trial: int) -> None:
    """Replaces an image by noise: the error names the record."""

    def change(feature: Any) -> None:
        jpeg = feature["image"].bytes_list.value[0]
        feature["image"].bytes_list.value[0] = bench.random.randbytes(len(jpeg) // 2)

    data, _ = change_record(bench, change)
    bench.start(bench.fresh("damaged"), data=data).check_named(DATASET, "record ")


def truncated_shard(bench: Bench, trial: int) -> None:
    """Truncates a shard: the error names the dataset."""
    data, shard = bench.copied_data()
    size = shard.stat().st_size
    os.truncate(shard, bench.random.randrange(size // 10, size))
    bench.start(bench.fresh("damaged"), data=data).check_named(DATASET)


def stalled_reader(bench: Bench, trial: int) -> None:
    """Lets the reader hang: a line says so while it does."""
    # The watchdog knows a step's usual time by then, and nothing was validated yet.
    after = bench.random.randint(6, 10)
    program = (str(Path(__file__).resolve()), f"--stall_after={after}")
    run = bench.start(bench.fresh("stalled"), program=program)
    run.wait_for_steps(4)
    deadline = time.monotonic() + WARNS_WITHIN_S + STARTS_WITHIN_S
    shown, since = 0, 0.0
    while "the input pipeline is slow" not in run.log.read_text():
        if steps_in(run.log) > shown:
            shown, since = steps_in(run.log), time.monotonic()
        late = time.monotonic() > min(deadline, since + WARNS_WITHIN_S)
        if late or run.process.poll() is not None:
            run.kill()
            raise run.fail(f"no message in {WARNS_WITHIN_S:.0f} s")
        time.sleep(0.1)
    run.kill()


def stall(after: int, argv: Sequence[str]) -> int:
    """Runs a verb whose reader hangs after so many batches of training."""
    read, left = batches.Mixture.images, after

    @functools.wraps(read)
    def hanging(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        while left < 0:
            time.sleep(1)
        return read(*arguments, **options)

    batches.Mixture.images = hanging
    return fer_jax(list(argv))


def on_slurm(bench: Bench, first: int, count: int, *, preempt: bool) -> None:
    """Preempts a job of two tasks or kills a task: it is requeued once, and ends the same."""
    if reason := one_node.missing():
        raise SkippedTrial(reason)
    folder, done = bench.fresh("slurm"), 0
    with one_node.cluster(folder) as environment:
        environment |= bench.environment(1)
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        for attempt in range(3 * count):
            workdir = bench.fresh("on_slurm")
            log = folder / f"job_{attempt}.txt"
            describe = functools.partial(end_of, log)
            job = one_node.submit(
                environment,
                *("--chdir", str(ROOT), "--ntasks-per-node=2", "--output", str(log)),
                *("launch/slurm/train.sbatch", *OPTIONS),
                *(f"--workdir={workdir}", f"--data_dir={bench.data}"),
            )
            steps = bench.random.randint(4, 20)
            shown = functools.partial(lambda log, steps: steps_in(log) >= steps, log, steps)
            one_node.wait_for(shown, STARTS_WITHIN_S, describe)
            if preempt:
                one_node.preempt(environment)
            else:
                os.kill(bench.random.choice(trainers_of(workdir)), signal.SIGKILL)
            state = one_node.wait_for_job(environment, job, 2 * STARTS_WITHIN_S, describe)
            # A run that finished before it was preempted is replaced by another.
            if preempt and "JobState=COMPLETED" in state and "Restarts=0 " in state:
                continue
            if "JobState=COMPLETED" not in state or "Restarts=1 " not in state:
                raise FailedTrial(f"the job was not requeued once: {end_of(log)}")
            bench.compare(workdir, 2)
            done += 1
            if done == count:
                return
    raise FailedTrial(f"of {3 * count} jobs {done} were preempted")


def trainers_of(workdir: Path) -> list[int]:
    """Returns the ids of the processes that train in a workdir."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"python" in words[0] and f"--workdir={workdir}".encode() in words:
                found.append(int(folder.name))
    return found


def in_a_process(bench: Bench, first: int, count: int, *, kind: str) -> str:
    """Runs trials of hostile.py in a process of their own; returns what they print."""
    if kind == "idle_network" and not shutil.which("strace"):
        raise SkippedTrial("needs strace")
    words = [kind, str(first), str(count), str(bench.folder / "hostile")]
    environment = bench.environment(1) | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("hostile.py")), *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise FailedTrial(f"ended with {done.returncode}: {done.stderr[-1500:]}")
    return done.stdout.strip()


def with_dask(bench: Bench, first: int, count: int) -> None:
    """Builds on a cluster that loses a worker or its scheduler: the records are the same."""
    world = on_dask.make_world(bench.fresh("dask"), os.environ)
    for trial in range(first, first + count):
        on_dask.lose(world, bench.fresh("on_dask"), trial, bench.random)


def with_dask_on_slurm(bench: Bench, first: int, count: int) -> None:
    """Cancels a job of a cluster on Slurm: the records are the same, and a job replaces it."""
    if reason := one_node.missing():
        raise SkippedTrial(reason)
    world = on_dask.make_world(bench.fresh("dask"), os.environ)
    for _ in range(count):
        on_dask.cancel_job(world, bench.fresh("on_dask"), bench.random)


class Fault(NamedTuple):
    """A row of the table.

    Attributes:
      trials: of --full.
      together: trials that share a run.
      run: runs some trials: (bench, number of the first, how many).
      passes: when a trial has passed, for the scorecard.
    """

    trials: int
    together: int
    run: Callable[[Bench, int, int], str | None]
    passes: str


def hostile(kind: str, trials: int, together: int, passes: str) -> Fault:
    """Returns the fault of a kind of hostile.py."""
    return Fault(trials, together, functools.partial(in_a_process, kind=kind), passes)


def each(trial: Callable[[Bench, int], None]) -> Callable[[Bench, int, int], None]:
    """Runs independent trials one after another."""

    def run(bench: Bench, first: int, count: int) -> None:
        for number in range(first, first + count):
            trial(bench, number)

    return run


def repeatedly(interrupt: Interrupt, **options: Any) -> Callable[[Bench, int, int], None]:
    """Interrupts one run in all trials."""
    return functools.partial(interrupted, interrupt=interrupt, **options)


def losing(lose: Callable[[int], Any]) -> Fault:
    """Returns the fault of losing one of two processes."""
    interrupt = functools.partial(lose_peer, lose=lose)
    run = repeatedly(interrupt, processes=2)
    return Fault(5, TRIALS_PER_RUN, run, "all processes end within 30 s; the run resumes")


LINE = "one line, code 2"
SAME_END = "the run resumes; the final state is the same bit for bit"
SAME_RECORDS = "the records of a build without Dask"
DASK = "Dask: worker killed, stopped, scheduler killed, crashing clip"
FAULTS = {
    "kill -9": Fault(50, TRIALS_PER_RUN, repeatedly(kill), SAME_END),
    "damaged checkpoint": Fault(
        200, 20, each(damaged_checkpoint), "detected; training falls back to the right step"
    ),
    "SIGTERM, SIGINT, SIGHUP": Fault(
        20, TRIALS_PER_RUN, repeatedly(send_signal), "saved, exit code 75; the same final state"
    ),
    "other topology": Fault(6, 1, each(other_topology), "first loss agrees within 1e-5"),
    "full or read-only disk": Fault(10, 1, each(bad_disk), "named; the step before restores"),
    "NaN in a batch": Fault(5, 1, each(not_a_number), "the error names the step and the record"),
    "corrupt record": Fault(5, 1, each(corrupt_record), "the error names the record"),
    "truncated shard": Fault(5, 1, each(truncated_shard), "the error names the dataset"),
    "stalled reader": Fault(5, 1, each(stalled_reader), "a message within 60 s"),
    "peer killed": losing(lambda pid: os.kill(pid, signal.SIGKILL)),
    "peer stopped": losing(lambda pid: os.kill(pid, signal.SIGSTOP)),
    "peer stuck": losing(start_holder),
    "hostile .h5": hostile("hostile_h5", 200, 50, LINE),
    "hostile .pkl": hostile("hostile_pickle", 115, 40, LINE),
    "broken JSON": hostile("broken_json", 196, 50, f"{LINE}, or what it says is left out"),
    "enormous files": hostile("enormous", 10, 5, f"{LINE}, or a row of the ledger; below 3 GB"),
    "two commands at once": hostile("two_at_once", 8, 4, "the second is refused; each row once"),
    "ulimit, closed streams": hostile("low_limit", 15, 5, f"{LINE}; without streams as with them"),
    "taken port": hostile("taken_port", 5, 5, LINE),
    "page: malformed requests": hostile("malformed_requests", 10, 5, "refused, or let go"),
    "page: 1,500 slow connections": hostile("slow_clients", 2, 1, "let go; others are served"),
    "page: 200 uploads at once": hostile("many_uploads", 2, 1, "each gets an answer"),
    "page: 2,000 requests": hostile("many_requests", 1, 1, "its memory stays within 5 %"),
    "a minute of silence": hostile("idle_network", 5, 5, "no address is connected or sent to"),
    "killed while it writes": hostile("leftovers", 12, 4, "the next one leaves nothing else"),
    "Slurm: preempted": Fault(3, 3, functools.partial(on_slurm, preempt=True), SAME_END),
    "Slurm: task killed": Fault(3, 3, functools.partial(on_slurm, preempt=False), SAME_END),
    DASK: Fault(20, 4, with_dask, SAME_RECORDS),
    "Dask on Slurm: job cancelled": Fault(3, 3, with_dask_on_slurm, SAME_RECORDS),
}


def groups(fault: Fault, full: bool) -> list[tuple[int, int]]:
    """Returns the groups of trials that share a run: (number of the first, how many)."""
    trials = fault.trials if full else max(1, round(fault.trials / 5))
    # At least two groups, because some faults differ between groups.
    together = fault.together if full else max(1, min(fault.together, trials // 2))
    return [(start, min(together, trials - start)) for start in range(0, trials, together)]


def code_digest() -> str:
    """Returns a hash of all code that a trial runs."""
    patterns = ("fer_jax/**/*.py", "launch/**/*", "tests/faults/*.py", "configs/demo.py")
    patterns += ("tests/hostile_files.py", "tests/nvidia_files.py", "tests/small_runs.py")
    files = {file for pattern in patterns for file in ROOT.glob(pattern) if file.is_file()}
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.suffix != ".pyc"):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def scorecard(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Returns the number of trials, of passed and of skipped ones of each fault."""
    card = {}
    for row in rows:
        counts = card.setdefault(row["fault"], {"trials": 0, "passed": 0, "skipped": 0})
        counts["trials"] += row["trials"]
        if row["outcome"] in counts:
            counts[row["outcome"]] += row["trials"]
    return {name: card[name] for name in FAULTS if name in card}


def table(card: dict[str, dict[str, int]]) -> str:
    """Formats the scorecard as Markdown."""
    cells = [("fault", "trials", "passed", "skipped", "passes when"), ("---",) * 5]
    cells += [(name, *map(str, n.values()), FAULTS[name].passes) for name, n in card.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def run_group(bench: Bench, name: str, first: int, count: int) -> dict[str, Any]:
    """Runs a group of trials; returns its row of trials.jsonl."""
    began, outcome, note = time.monotonic(), "passed", ""
    log = bench.folder / "log.txt"
    log.unlink(missing_ok=True)
    try:
        note = FAULTS[name].run(bench, first, count) or ""
    except SkippedTrial as skipped:
        outcome, note = "skipped", str(skipped)
    except FailedTrial as failed:
        outcome, note = "FAILED", str(failed)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        outcome, note = "FAILED", f"{type(error).__name__}: {error}"
    if outcome == "FAILED" and log.is_file():
        # The next group has a log of the same name; the note has the end only, of one process.
        log.rename(bench.folder / f"failed_{list(FAULTS).index(name)}_{first}.txt")
    seconds = round(time.monotonic() - began, 1)
    return {
        **{"fault": name, "first": first, "trials": count},
        **{"outcome": outcome, "note": note, "seconds": seconds},
    }


def run_suite(folder: Path, *, full: bool, only: str, seed: int) -> int:
    """Runs the trials that are not recorded yet, and writes faults.json; returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    file, about = folder / "trials.jsonl", {"code": code_digest(), "seed": seed}
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [only] if only else list(FAULTS)
    todo = [(name, *group) for name in names for group in groups(FAULTS[name], full)]
    rows = {
        key: row
        for row in map(json.loads, lines)
        if (key := (row["fault"], row["first"], row["trials"])) in todo and row["about"] == about
    }
    if not (folder / "data").is_dir():
        partial = folder / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        if fer_jax(["build", DATASET, f"--data_dir={partial}"]):
            return 2
        partial.rename(folder / "data")
    left = [key for key in todo if key not in rows]
    began = time.monotonic()
    for number, (name, first, count) in enumerate(left, 1):
        group = groups(FAULTS[name], full).index((first, count))
        bench = Bench(folder, group, random.Random(f"{seed} {name} {first}"))
        row = {"about": about} | run_group(bench, name, first, count)
        rows[name, first, count] = row
        with file.open("a") as appended:
            appended.write(json.dumps(row) + "\n")
        eta = int((time.monotonic() - began) / number * (len(left) - number))
        note = f" ({row['note']})" if row["note"] else ""
        print(
            f"{name}, {count} trials from {first + 1}: {row['outcome']} in {row['seconds']:.0f} s"
            f"{note}  [{number} of {len(left)}, ETA {eta // 60}:{eta % 60:02}]",
            flush=True,
        )
    card = scorecard(list(rows.values()))
    (folder / "faults.json").write_text(json.dumps(card, indent=1) + "\n")
    print(f"\n{table(card)}\n{folder / 'faults.json'}")
    failed = sum(row["trials"] for row in rows.values() if row["outcome"] == "FAILED")
    print(f"{failed} failed" if failed else "none failed")
    return 1 if failed else 0


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="faults.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all trials instead of a fifth")
    parser.add_argument("--only", default="", choices=list(FAULTS), metavar="FAULT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "faults")
    parser.add_argument("--stall_after", type=int, help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args(argv)
    for number in (signal.SIGINT, signal.SIGHUP):
        # Under `nohup` and in the background they are ignored, and would be in the runs, too: a
        # handler that does nothing is not inherited.
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    # Orbax warns about a file that its own manager does not write.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if arguments.stall_after is not None:
        return stall(arguments.stall_after, rest)
    if rest:
        parser.error(f"unknown options {rest}")
    return run_suite(
        arguments.folder.resolve(), full=arguments.full, only=arguments.only, seed=arguments.seed
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
