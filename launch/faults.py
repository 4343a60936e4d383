"""Breaks runs in every way of the table and looks whether they survive, or say what is wrong.

    bash launch/faults.sh            # a fifth of the trials
    bash launch/faults.sh --full     # all
    bash launch/faults.sh --only "kill -9"

A tiny network on drawn faces, in real processes of `fer-jax train`, one or two of them. Trials of
one kind that end in the same run share it: it is killed again and again, and must still end with
the parameters, statistics and optimizer state of an uninterrupted one, bit for bit. Each trial is
written down as it ends, so the same command goes on where it was stopped, unless the code changed.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import importlib.util
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402  (JAX must find the platform in the environment)
import numpy as np  # noqa: E402  (as above)
import orbax.checkpoint as ocp  # noqa: E402  (as above)
from array_record.python import (  # noqa: E402  (as above)
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue] (a compiled module)
)
from tensorflow_datasets.proto import tf_example_pb2  # noqa: E402  (as above)

from fer_jax import checkpoints  # noqa: E402  (as above)
from fer_jax.__main__ import main as fer_jax  # noqa: E402  (as above)
from fer_jax.data import batches  # noqa: E402  (as above)
from fer_jax.data.records import dataset_directory  # noqa: E402  (as above)
from fer_jax.errors import InputError  # noqa: E402  (as above)

DATASET = "demo/controlled"
WORDS = (
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
GONE_WITHIN_S = 30.0
NAMED_WITHIN_S = 60.0
# A start on a busy machine, compilation included.
STARTS_WITHIN_S = 600.0
SHARED_BY = 5  # trials that one run may serve
TIMINGS = {"images_per_second", "data_wait_share", "model_flop_per_second"}


class Miss(Exception):
    """A run did not survive, or did not say what is wrong; with what was seen."""


class Skip(Exception):
    """A trial cannot be made here; with the reason."""


@dataclasses.dataclass
class Run:
    """A started run.

    Attributes:
      process: of `fer-jax train`, or of the launcher of several.
      processes: how many train.
      log: what it says.
    """

    process: subprocess.Popen[bytes]
    processes: int
    log: Path

    def steps(self) -> int:
        """How many steps this start has shown."""
        return len(re.findall(r"^step \d+/", self.log.read_text(), re.MULTILINE))

    def trainers(self) -> list[int]:
        """The process ids of those that train."""
        if self.processes == 1:
            return [self.process.pid]
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in listed.read_text().split()]

    def wait(self, seconds: float) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Miss(f"still there after {seconds:.0f} s: {self.tail()}") from None

    def kill(self) -> None:
        """Kills all of it at once."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for pid in self.trainers():
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def until_steps(self, count: int) -> None:
        """Waits for steps of this start.

        Raises:
          Miss: it ended before, or they did not come.
        """
        deadline = time.monotonic() + STARTS_WITHIN_S
        while self.steps() < count:
            if self.process.poll() is not None:
                raise Miss(f"ended with {self.process.returncode} at the start: {self.tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise Miss(f"no {count} steps in {STARTS_WITHIN_S:.0f} s: {self.tail()}")
            time.sleep(0.02)

    def tail(self) -> str:
        """The end of what it said."""
        return end_of(self.log)


@dataclasses.dataclass
class Bench:
    """Where trials are made.

    Attributes:
      folder: holds data, compiled programs, reference runs and the trials' workdirs.
      turn: counts the groups of trials of a fault that are judged together.
      random: of the group.
    """

    folder: Path
    turn: int
    random: random.Random

    @property
    def data(self) -> Path:
        """Where the drawn faces are."""
        return self.folder / "data"

    def fresh(self, name: str) -> Path:
        """An empty folder."""
        workdir = self.folder / name.replace(" ", "_")
        shutil.rmtree(workdir, ignore_errors=True)
        workdir.mkdir(parents=True)
        return workdir

    def environment(self, devices: int) -> dict[str, str]:
        """For a run on so many devices a process."""
        return dict(os.environ) | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compilations"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            # Half the time of a fifth of the trials would be compilation.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
            "PYTHONPATH": str(ROOT),
        }

    def start(
        self,
        workdir: Path,
        *,
        processes: int = 1,
        devices: int = 1,
        words: Sequence[str] = (),
        data: Path | None = None,
        program: Sequence[str] = ("-m", "fer_jax"),
    ) -> Run:
        """Starts or continues a run."""
        command = [sys.executable, *program]
        if processes > 1:
            command = [sys.executable, "launch/local.py", f"--processes={processes}"]
        log = self.folder / "log.txt"
        with log.open("wb") as said:
            process = subprocess.Popen(
                [
                    *(*command, "train", *WORDS, *words),
                    f"--workdir={workdir}",
                    f"--data_dir={data or self.data}",
                ],
                cwd=ROOT,
                env=self.environment(devices),
                stdout=said,
                stderr=subprocess.STDOUT,
            )
        return Run(process, processes, log)

    def finish(self, workdir: Path, **options: Any) -> None:
        """Runs until the end.

        Raises:
          Miss: it did not end well.
        """
        run = self.start(workdir, **options)
        code = run.wait(STARTS_WITHIN_S)
        if code:
            raise Miss(f"ended with {code}: {run.tail()}")

    def reference(self, processes: int = 1) -> Path:
        """The workdir of an uninterrupted run; trained once."""
        workdir = self.folder / f"reference_{processes}"
        finished, code = workdir / "finished", code_digest()
        if not finished.is_file() or finished.read_text() != code:
            self.finish(self.fresh(workdir.name), processes=processes)
            finished.write_text(code)
        return workdir

    def compare(self, workdir: Path, processes: int = 1) -> None:
        """Compares a finished run with the uninterrupted one.

        Raises:
          Miss: the state or the metrics differ.
        """
        reference = self.reference(processes)
        if final_hash(workdir) != final_hash(reference):
            raise Miss("the final state differs from the uninterrupted run's")
        if metrics(workdir) != metrics(reference):
            raise Miss("metrics.jsonl differs from the uninterrupted run's")


def final_hash(workdir: Path) -> str:
    """SHA-256 of all arrays of the last checkpoint, by name."""
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
    """The rows of metrics.jsonl without timings.

    Raises:
      Miss: a step is there twice.
    """
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    if len({row["step"] for row in rows}) != len(rows):
        raise Miss("a step is in metrics.jsonl twice")
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def killed(bench: Bench, first: int, count: int) -> None:
    """Kill -9 at random moments, every other one while a checkpoint is finished."""
    processes = 1 + bench.turn % 2
    workdir = bench.fresh("killed")
    done = 0
    while done < count:
        run = bench.start(workdir, processes=processes)
        run.until_steps(1)
        if done % 2:
            at_a_save(workdir, run)
            time.sleep(bench.random.uniform(0, 0.1))
        else:
            time.sleep(bench.random.uniform(0, 2.0))
        # A run that was faster than that was not killed: another takes its place.
        ended = run.process.poll() is not None
        run.kill()
        if ended:
            bench.compare(workdir, processes)
            workdir = bench.fresh("killed")
        else:
            done += 1
    bench.finish(workdir, processes=processes)
    bench.compare(workdir, processes)


def at_a_save(workdir: Path, run: Run) -> None:
    """Waits until a checkpoint is being written or sealed, or the run has ended."""
    folder = workdir / checkpoints.FOLDER
    deadline = time.monotonic() + STARTS_WITHIN_S
    while run.process.poll() is None and time.monotonic() < deadline:
        names = {path.name for path in folder.glob("*")}
        unsealed = [
            name for name in names if not (folder / name / checkpoints.CHECKSUMS_FILE).exists()
        ]
        if unsealed:
            return
        time.sleep(0.001)


def damaged(bench: Bench, first: int, count: int) -> None:
    """A bit flipped, bytes zeroed, a file cut or deleted in the newest checkpoint, or in two."""
    source = bench.reference() / checkpoints.FOLDER
    steps = checkpoints.finished_steps(bench.reference())
    for number in range(first, first + count):
        workdir = bench.fresh("damaged")
        shutil.copytree(source, workdir / checkpoints.FOLDER)
        broken = steps[-1:] if number % 10 else steps[-2:]
        done = {step: damage(workdir / checkpoints.FOLDER / str(step), bench) for step in broken}
        try:
            checkpoints.restore_network(workdir, str(steps[-1]), {}, "validation_accuracy")
        except InputError as error:
            if str(steps[-1]) not in str(error):
                raise Miss(f"{done}: the step is not named: {error}") from None
        else:
            raise Miss(f"{done}: restored without a word")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            step, _ = checkpoints.latest_valid_step(workdir)
        whole = [one for one in steps if one not in broken]
        if step != (whole[-1] if whole else 0):
            raise Miss(f"{done}: fell back to step {step} of {steps}")
        for one in broken:
            if f"checkpoint {one} is corrupted" not in said.getvalue():
                raise Miss(f"{done}: nothing was said of step {one}")
        if step and checkpoints.find_corruption(workdir / checkpoints.FOLDER / str(step)):
            raise Miss(f"{done}: the step fallen back to is corrupted, too")


def damage(folder: Path, bench: Bench) -> str:
    """Damages one file of a folder. Returns what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    while True:
        file = bench.random.choice(files)
        content = bytearray(file.read_bytes())
        kind = bench.random.choice(["flipped", "zeroed", "cut", "deleted"])
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


def signalled(bench: Bench, first: int, count: int) -> None:
    """SIGTERM and SIGINT in turn: saved, exit code 75, the same end."""
    processes = 1 + bench.turn % 2
    workdir = bench.fresh("signalled")
    done = 0
    while done < count:
        run = bench.start(workdir, processes=processes)
        run.until_steps(1)
        time.sleep(bench.random.uniform(0, 2.0))
        number = (signal.SIGTERM, signal.SIGINT)[done % 2]
        with contextlib.suppress(ProcessLookupError):
            run.process.send_signal(number)
        code = run.wait(GONE_WITHIN_S)
        if code == 0:
            bench.compare(workdir, processes)
            workdir = bench.fresh("signalled")
            continue
        saved = re.findall(r"step (\d+) is saved", run.log.read_text())
        if code != PREEMPTED or not saved:
            raise Miss(f"{number.name}: exit code {code}: {run.tail()}")
        if checkpoints.latest_valid_step(workdir)[0] != int(saved[-1]):
            raise Miss(f"{number.name}: step {saved[-1]} is not there")
        done += 1
    bench.finish(workdir, processes=processes)
    bench.compare(workdir, processes)


TOPOLOGIES = (
    ((1, 1), (1, 8)),
    ((1, 8), (1, 1)),
    ((2, 4), (1, 8)),
    ((1, 8), (2, 4)),
    ((2, 4), (1, 1)),
    ((1, 1), (2, 4)),
)


def moved(bench: Bench, first: int, count: int) -> None:
    """Continued on other (processes, devices of each): the first loss is the same within 1e-5."""
    for number in range(first, first + count):
        before, after = TOPOLOGIES[number % len(TOPOLOGIES)]
        workdir = bench.fresh("moved")
        run = bench.start(workdir, processes=before[0], devices=before[1])
        run.until_steps(bench.random.randint(3, 9))
        run.process.send_signal(signal.SIGTERM)
        if (code := run.wait(STARTS_WITHIN_S)) != PREEMPTED:
            raise Miss(f"exit code {code}: {run.tail()}")
        losses = []
        for processes, devices in (before, after):
            copy = bench.fresh("moved_on")
            shutil.copytree(workdir, copy, dirs_exist_ok=True)
            run = bench.start(copy, processes=processes, devices=devices)
            # The step that was under way, the first one, and another: a step is shown just before
            # its row is written.
            run.until_steps(3)
            run.kill()
            step = int(re.findall(r"continuing from step (\d+)", run.log.read_text())[-1])
            losses += [row["train_loss"] for row in metrics(copy) if row["step"] == step + 1]
        if len(losses) != 2 or abs(losses[1] / losses[0] - 1) > 1e-5:
            raise Miss(f"{before} to {after}: the first losses are {losses}")


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Any:
    """A file system of so many bytes on a folder.

    Raises:
      Skip: that is not allowed here.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "fer_jax_faults", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def disk(bench: Bench, first: int, count: int) -> None:
    """A disk that is full and one that is read-only, in turn: named; the step before restores."""
    for number in range(first, first + count):
        workdir = bench.fresh("disk")
        whole = 64 * 2**20
        with mounted(workdir, whole):
            if number % 2:
                run = bench.start(workdir)
                run.until_steps(bench.random.randint(8, 20))
                run.kill()
                remount(workdir, "ro")
                code, named = bench.start(workdir).wait(STARTS_WITHIN_S), "Read-only file system"
            else:
                reference = bench.reference() / checkpoints.FOLDER
                one = sum(file.stat().st_blocks * 512 for file in reference.rglob("*")) // len(
                    checkpoints.finished_steps(bench.reference())
                )
                # Two are kept, and the best, while the next is written.
                remount(workdir, f"size={int(one * bench.random.uniform(1.5, 2.8)) + 2**18}")
                code, named = bench.start(workdir).wait(STARTS_WITHIN_S), "No space left on device"
            said = (bench.folder / "log.txt").read_text()
            if not code or "fer-jax: " not in said or named not in said:
                raise Miss(f"exit code {code}, and not named '{named}': {said[-1500:]}")
            if "Traceback" in said:
                raise Miss(f"a traceback: {said[-1500:]}")
            remount(workdir, f"rw,size={whole}")
            bench.finish(workdir)
            bench.compare(workdir)


def remount(folder: Path, options: str) -> None:
    """Changes what `mounted` mounted."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def rewritten(bench: Bench, change: Callable[[Any], None]) -> tuple[Path, str]:
    """The data with one training record changed; where they are and the record's id."""
    data = bench.fresh("broken_data")
    shutil.copytree(bench.data, data, dirs_exist_ok=True)
    shard = next(dataset_directory(DATASET, data).glob("*-train.array_record*"))
    reader = array_record_module.ArrayRecordReader(str(shard))
    serialized = reader.read_all()
    reader.close()
    at = bench.random.randrange(len(serialized))
    example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue] (made by protobuf at import)
    example.ParseFromString(serialized[at])
    change(example.features.feature)
    serialized[at] = example.SerializeToString()
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
    for record in serialized:
        writer.write(record)
    writer.close()
    return data, example.features.feature["record_id"].bytes_list.value[0].decode()


def not_a_number(bench: Bench, first: int, count: int) -> None:
    """A vote that is NaN: the step, the record and the last checkpoint are named."""
    for _ in range(count):

        def change(feature: Any) -> None:
            feature["emotion_probabilities"].float_list.value[0] = float("nan")

        data, record = rewritten(bench, change)
        workdir = bench.fresh("not_a_number")
        run = bench.start(workdir, data=data, words=["--config.loss.soft_labels=true"])
        named(run, record)


def corrupt(bench: Bench, first: int, count: int) -> None:
    """A record whose image is none: named."""
    for _ in range(count):

        def change(feature: Any) -> None:
            jpeg = feature["image"].bytes_list.value[0]
            half = len(jpeg) // 2
            feature["image"].bytes_list.value[0] = bench.random.randbytes(half)

        data, _ = rewritten(bench, change)
        run = bench.start(bench.fresh("corrupt"), data=data)
        named(run, DATASET, "record ")


def cut(bench: Bench, first: int, count: int) -> None:
    """A shard that ends too early: named."""
    for _ in range(count):
        data = bench.fresh("broken_data")
        shutil.copytree(bench.data, data, dirs_exist_ok=True)
        shard = next(dataset_directory(DATASET, data).glob("*-train.array_record*"))
        size = shard.stat().st_size
        os.truncate(shard, bench.random.randrange(size // 10, size))
        named(bench.start(bench.fresh("cut"), data=data), DATASET)


def named(run: Run, *words: str) -> None:
    """Looks whether a run ends in time with one line that has the words."""
    code = run.wait(STARTS_WITHIN_S)
    lines = [line for line in run.log.read_text().splitlines() if line.startswith("fer-jax: ")]
    if code != 2 or len(lines) != 1 or not all(word in lines[0] for word in words):
        raise Miss(f"exit code {code}, wanted 2 and {words}: {run.tail()}")


def stalled(bench: Bench, first: int, count: int) -> None:
    """A reader that hangs: the person is told while it does."""
    for _ in range(count):
        # The watchdog knows a step's usual time by then, and no part was validated yet.
        after = bench.random.randint(6, 10)
        program = (str(Path(__file__).resolve()), f"--stall_after={after}")
        run = bench.start(bench.fresh("stalled"), program=program)
        run.until_steps(4)
        deadline = time.monotonic() + NAMED_WITHIN_S + STARTS_WITHIN_S
        shown, since = run.steps(), time.monotonic()
        while "the loader stalls" not in run.log.read_text():
            if run.steps() > shown:
                shown, since = run.steps(), time.monotonic()
            late = time.monotonic() > min(deadline, since + NAMED_WITHIN_S)
            if late or run.process.poll() is not None:
                run.kill()
                raise Miss(f"not told in {NAMED_WITHIN_S:.0f} s: {run.tail()}")
            time.sleep(0.1)
        run.kill()


def stall(after: int, words: Sequence[str]) -> int:
    """A verb whose reader hangs after so many of training's batches."""
    read, left = batches.decode, after

    @functools.wraps(read)
    def hanging(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        while left < 0:
            time.sleep(1)
        return read(*arguments, **options)

    batches.decode = hanging
    return fer_jax(list(words))


def peer(bench: Bench, first: int, count: int, *, lose: Callable[[int], Any]) -> None:
    """One of two processes is lost: all are gone in time, and the run continues."""
    workdir = bench.fresh("peer")
    for _ in range(count):
        run = bench.start(workdir, processes=2)
        # The watchdog must know a step's usual time.
        run.until_steps(bench.random.randint(5, 7))
        trainers = run.trainers()
        began = time.monotonic()
        lost = lose(bench.random.choice(trainers))
        code = run.wait(GONE_WITHIN_S + 30)
        took = time.monotonic() - began
        if isinstance(lost, subprocess.Popen):
            lost.kill()
            lost.wait()
        there = [pid for pid in trainers if Path(f"/proc/{pid}").exists()]
        if not code or there or took > GONE_WITHIN_S:
            raise Miss(f"exit code {code} after {took:.0f} s, still there: {there}: {run.tail()}")
    bench.finish(workdir, processes=2)
    bench.compare(workdir, 2)


PTRACE_ATTACH = 16


def hold(pid: int) -> subprocess.Popen[bytes]:
    """Stops the main thread of a process and leaves its others: it lives, and does nothing."""
    holder = subprocess.Popen([sys.executable, __file__, f"--hold={pid}"], stdout=subprocess.PIPE)
    assert holder.stdout
    if holder.stdout.readline() != b"held\n":
        holder.wait()
        raise Skip("a process may not be traced here")
    holder.stdout.close()
    return holder


def hold_here(pid: int) -> int:
    """What the process that `hold` starts does."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, pid, None, None):
        return 1
    os.waitpid(pid, 0)
    print("held", flush=True)
    with contextlib.suppress(ChildProcessError):
        # Until it is gone; its parent is told only when its tracer was.
        os.waitpid(pid, 0)
    return 0


def slurm() -> Any:
    """launch/slurm/one_node.py."""
    file = ROOT / "launch" / "slurm" / "one_node.py"
    spec = importlib.util.spec_from_file_location("one_node", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_slurm(bench: Bench, first: int, count: int, *, preempt: bool) -> None:
    """A job of two tasks loses its place or a task: it is queued again, and ends the same."""
    one_node = slurm()
    if reason := one_node.missing():
        raise Skip(reason)
    folder = bench.fresh("slurm")
    with one_node.cluster(folder) as found:
        environment = found | bench.environment(1)
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        done = 0
        for attempt in range(3 * count):
            workdir = bench.fresh("on_slurm")
            log = folder / f"job_{attempt}.txt"
            job = one_node.run(
                environment,
                *("sbatch", "--parsable", "--chdir", str(ROOT), "--ntasks-per-node=2"),
                *("--output", str(log), "launch/slurm/train.sbatch", *WORDS),
                *(f"--workdir={workdir}", f"--data_dir={bench.data}"),
            )
            one_node.wait_for(
                functools.partial(shows, log, bench.random.randint(4, 20)),
                STARTS_WITHIN_S,
                functools.partial(end_of, log),
            )
            if preempt:
                one_node.run(
                    environment,
                    *"sbatch --partition=high --exclusive --output=/dev/null --wrap=true".split(),
                )
            else:
                os.kill(bench.random.choice(trainers_of(workdir)), signal.SIGKILL)
            one_node.wait_for(
                functools.partial(one_node.is_over, environment, job),
                2 * STARTS_WITHIN_S,
                functools.partial(end_of, log),
            )
            told = one_node.run(environment, "scontrol", "show", "job", job)
            # A run that was faster than Slurm was not preempted: another takes its place.
            if preempt and "JobState=COMPLETED" in told and "Restarts=0 " in told:
                continue
            if "JobState=COMPLETED" not in told or "Restarts=1 " not in told:
                raise Miss(f"the job was not queued again once: {end_of(log)}")
            bench.compare(workdir, 2)
            done += 1
            if done == count:
                return
        raise Miss(f"of {3 * count} jobs {done} were preempted")


def shows(log: Path, count: int) -> bool:
    """Whether a log has so many steps."""
    return len(re.findall(r"^step \d+/", end_of(log, 10**6), re.MULTILINE)) >= count


def end_of(log: Path, length: int = 1500) -> str:
    """The end of a file; "" while it is not there."""
    return log.read_text()[-length:].strip() if log.is_file() else ""


def trainers_of(workdir: Path) -> list[int]:
    """The processes that train in a workdir."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"python" in words[0] and f"--workdir={workdir}".encode() in words:
                found.append(int(folder.name))
    return found


@dataclasses.dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
      trials: of --full.
      together: trials that are made and judged together.
      try_it: makes some trials: (bench, number of the first, how many).
      passes: when a trial has passed, for the scorecard.
    """

    trials: int
    together: int
    try_it: Callable[[Bench, int, int], None]
    passes: str


def kill_one(pid: int) -> None:
    """Kill -9."""
    os.kill(pid, signal.SIGKILL)


def stop_one(pid: int) -> None:
    """SIGSTOP."""
    os.kill(pid, signal.SIGSTOP)


SAME_END = "continues; the same final state, bit for bit"
GONE = "all processes gone in 30 s; the run continues"
FAULTS = {
    "kill -9": Fault(50, SHARED_BY, killed, SAME_END),
    "damaged checkpoint": Fault(200, 20, damaged, "none silent; the right fallback every time"),
    "SIGTERM, SIGINT": Fault(20, SHARED_BY, signalled, "saved, exit code 75; the same final state"),
    "other topology": Fault(6, 1, moved, "first continued loss within 1e-5"),
    "full or read-only disk": Fault(10, 1, disk, "named; the step before restores"),
    "NaN in a batch": Fault(5, 1, not_a_number, "named with step and record"),
    "corrupt record": Fault(5, 1, corrupt, "named"),
    "truncated shard": Fault(5, 1, cut, "named"),
    "stalled reader": Fault(5, 1, stalled, "told in 60 s"),
    "peer killed": Fault(5, SHARED_BY, functools.partial(peer, lose=kill_one), GONE),
    "peer stopped": Fault(5, SHARED_BY, functools.partial(peer, lose=stop_one), GONE),
    "peer stuck": Fault(5, SHARED_BY, functools.partial(peer, lose=hold), GONE),
    "Slurm: preempted": Fault(3, 3, functools.partial(on_slurm, preempt=True), SAME_END),
    "Slurm: task killed": Fault(3, 3, functools.partial(on_slurm, preempt=False), SAME_END),
}


def groups(fault: Fault, full: bool) -> list[tuple[int, int]]:
    """The trials to make, as (number of the first, how many) of those made together."""
    trials = fault.trials if full else max(1, round(fault.trials / 5))
    # Of a few trials none may be of the second kind.
    together = fault.together if full else max(1, min(fault.together, trials // 2))
    starts = range(0, trials, together)
    return [(start, min(together, trials - start)) for start in starts]


def code_digest() -> str:
    """Of everything that a trial runs."""
    files = [*ROOT.glob("fer_jax/**/*.py"), *ROOT.glob("launch/**/*"), ROOT / "configs/demo.py"]
    digest = hashlib.sha256()
    for file in sorted(path for path in files if path.is_file() and path.suffix != ".pyc"):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def scorecard(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Trials, passed and skipped of each fault."""
    card = {}
    for name in FAULTS:
        of_it = [row for row in rows if row["fault"] == name]
        card[name] = {
            "trials": sum(row["trials"] for row in of_it),
            "passed": sum(row["trials"] for row in of_it if row["outcome"] == "passed"),
            "skipped": sum(row["trials"] for row in of_it if row["outcome"] == "skipped"),
        }
    return {name: counts for name, counts in card.items() if counts["trials"]}


def table(card: dict[str, dict[str, int]]) -> str:
    """The scorecard for people."""
    lines = [
        "| fault | trials | passed | skipped | passes when |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, counts in card.items():
        numbers = " | ".join(str(counts[key]) for key in ("trials", "passed", "skipped"))
        lines.append(f"| {name} | {numbers} | {FAULTS[name].passes} |")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def suite(folder: Path, *, full: bool, only: str, seed: int) -> int:
    """Makes the trials that are not made yet, and writes faults.json. Returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    book, code = folder / "trials.jsonl", code_digest()
    about = {"code": code, "seed": seed}
    lines = book.read_text().splitlines() if book.is_file() else []
    rows = [row for row in map(json.loads, lines) if row["about"] == about]
    names = [only] if only else list(FAULTS)
    todo = [(name, *group) for name in names for group in groups(FAULTS[name], full)]
    done = {(row["fault"], row["first"], row["trials"]) for row in rows}
    rows = [row for row in rows if (row["fault"], row["first"], row["trials"]) in set(todo)]
    if not (folder / "data").is_dir():
        partial = folder / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        if fer_jax(["build", DATASET, f"--data_dir={partial}"]):
            return 2
        partial.rename(folder / "data")
    left = [group for group in todo if group not in done]
    began, behind = time.monotonic(), 0
    for name, first, count in left:
        turn = groups(FAULTS[name], full).index((first, count))
        bench = Bench(folder, turn, random.Random(f"{seed} {name} {first}"))
        since, outcome, note = time.monotonic(), "passed", ""
        try:
            FAULTS[name].try_it(bench, first, count)
        except Skip as skip:
            outcome, note = "skipped", str(skip)
        except Miss as miss:
            outcome, note = "MISSED", str(miss)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            outcome, note = "MISSED", f"{type(error).__name__}: {error}"
        row = {"about": about, "fault": name, "first": first, "trials": count}
        row |= {"outcome": outcome, "note": note, "seconds": round(time.monotonic() - since, 1)}
        rows.append(row)
        with book.open("a") as file:
            file.write(json.dumps(row) + "\n")
        behind += 1
        eta = (time.monotonic() - began) / behind * (len(left) - behind)
        print(
            f"{name}, {count} trials from {first + 1}: {outcome} in {row['seconds']:.0f} s"
            + (f" ({note})" if note else "")
            + f"  [{behind} of {len(left)}, ETA {duration(eta)}]",
            flush=True,
        )
    card = scorecard(rows)
    (folder / "faults.json").write_text(json.dumps(card, indent=1) + "\n")
    print(f"\n{table(card)}\n{folder / 'faults.json'}")
    missed = sum(c["trials"] - c["passed"] - c["skipped"] for c in card.values())
    print(f"{missed} missed" if missed else "none missed")
    return 1 if missed else 0


def main(argv: Sequence[str]) -> int:
    """Reads the words. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="faults.sh", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the whole table, not a fifth")
    parser.add_argument("--only", default="", choices=list(FAULTS), metavar="FAULT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "faults")
    parser.add_argument("--hold", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stall_after", type=int, help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args(argv)
    # Orbax misses a file that its own manager does not write.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if arguments.hold is not None:
        return hold_here(arguments.hold)
    if arguments.stall_after is not None:
        return stall(arguments.stall_after, rest)
    if rest:
        parser.error(f"unknown words {rest}")
    return suite(
        arguments.folder.resolve(),
        full=arguments.full,
        only=arguments.only,
        seed=arguments.seed,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
