"""Builds on a Dask cluster: the same records as without, whatever happens to its processes."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fer_jax.__main__ import main
from fer_jax.data.records import open_records
from fer_jax.media import cluster
from fer_jax.storage import read_table

pytest.importorskip("distributed")
NUM_CLIPS = 24
ENDS_WITHIN_S = 120
DASHBOARD_PORT = 8787
Contents = list[list[tuple[str, bytes, str]]]
BUILD = ("clips/folds", "--name=filmed", "--folds=2", "--detector=none", "--every=1")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, write_video: Callable[..., Path]) -> Path:
    """A folder of clips with class folders, each clip other noise."""
    folder = tmp_path_factory.mktemp("clips") / "source"
    rng = np.random.default_rng(0)
    for number in range(NUM_CLIPS):
        emotion = ("anger", "happiness", "neutral")[number % 3]
        pictures = rng.integers(0, 256, (40, 240, 320, 3), np.uint8)
        write_video(folder / emotion / f"p{number:02}.avi", pictures)
    return folder


def command(source: Path, data_dir: Path, *more: str) -> list[str]:
    return [*BUILD, f"--source={source}", f"--data_dir={data_dir}", *more]


def contents(data_dir: Path) -> Contents:
    """The records of each split in their order: id, picture, and all other fields as text."""
    # Whole records differ between processes, because the fields of a record have no order.
    found = []
    for split in ("fold_0", "fold_1"):
        records = open_records("filmed/folds", split, data_dir)
        others = sorted(set(records.columns) - {"image"})
        rows = range(len(records))
        about = [repr([(name, records.columns[name][row]) for name in others]) for row in rows]
        ids = records.columns["record_id"].tolist()
        found.append([(ids[row], records.jpeg(row), about[row]) for row in rows])
    return found


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    """The records of a build without Dask."""
    data_dir = tmp_path_factory.mktemp("local")
    assert main(["build", *command(source, data_dir, "--processes=2")]) == 0
    return contents(data_dir)


@dataclasses.dataclass
class Processes:
    """A scheduler and two workers."""

    scheduler: Any
    workers: list[Any]
    file: Path


@pytest.fixture
def cluster_of_two(tmp_path: Path) -> Iterator[Processes]:
    with contextlib.ExitStack() as stack:
        file = tmp_path / "scheduler.json"

        def dask(*words: str) -> Any:
            started = subprocess.Popen(
                [sys.executable, "-m", "dask", *words, "--host=127.0.0.1", "--no-dashboard"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(started.wait)
            stack.callback(started.kill)
            return started

        scheduler = dask("scheduler", "--port=0", f"--scheduler-file={file}")
        wait_until(file.is_file)
        options = (f"--scheduler-file={file}", "--nthreads=1", "--no-nanny")
        place = f"--local-directory={tmp_path / 'scratch'}"
        workers = [dask("worker", *options, place) for _ in range(2)]
        yield Processes(scheduler, workers, file)


def wait_until(there: Callable[[], Any]) -> None:
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not there():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "fer_jax", "build", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finished_clips(data_dir: Path) -> int:
    return len(list(data_dir.glob(".clips/filmed/*.zip")))


def test_workers_of_this_machine_make_the_same_records(
    source: Path, expected: Contents, tmp_path: Path
):
    with start(*command(source, tmp_path, "--dask=local:2")) as built:
        _, errors = built.communicate(timeout=ENDS_WITHIN_S)
    assert built.returncode == 0, errors
    assert contents(tmp_path) == expected
    assert not list(tmp_path.glob(".clips/filmed/.*"))


def test_a_killed_and_a_stopped_worker_change_nothing(
    source: Path, expected: Contents, tmp_path: Path, cluster_of_two: Processes
):
    data_dir = tmp_path / "data"
    with start(*command(source, data_dir, f"--dask={cluster_of_two.file}")) as built:
        wait_until(lambda: finished_clips(data_dir) >= 4)
        killed, stopped = cluster_of_two.workers
        stopped.send_signal(signal.SIGSTOP)
        killed.kill()
        time.sleep(2)
        assert built.poll() is None
        stopped.send_signal(signal.SIGCONT)
        _, errors = built.communicate(timeout=ENDS_WITHIN_S)
    assert built.returncode == 0, errors
    assert contents(data_dir) == expected


def test_a_lost_scheduler_is_one_line_and_the_command_goes_on(
    source: Path, expected: Contents, tmp_path: Path, cluster_of_two: Processes
):
    data_dir = tmp_path / "data"
    with start(*command(source, data_dir, f"--dask={cluster_of_two.file}")) as built:
        wait_until(lambda: finished_clips(data_dir) >= 4)
        cluster_of_two.scheduler.kill()
        _, errors = built.communicate(timeout=ENDS_WITHIN_S)
    assert built.returncode == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("fer-jax:")]
    assert "scheduler was lost" in line and "Traceback" not in errors
    assert not list(data_dir.glob("filmed/folds/*"))
    done = finished_clips(data_dir)
    assert 4 <= done < NUM_CLIPS
    assert main(["build", *command(source, data_dir, "--processes=1")]) == 0
    assert contents(data_dir) == expected


def test_ctrl_c_in_the_terminal_is_one_line(source: Path, tmp_path: Path):
    words = command(source, tmp_path, "--dask=local:2")
    with start(*words, start_new_session=True) as built:
        wait_until(lambda: finished_clips(tmp_path) >= 4)
        os.killpg(built.pid, signal.SIGINT)  # workers are in the terminal's group, too
        _, errors = built.communicate(timeout=ENDS_WITHIN_S)
    assert built.returncode == 130
    assert errors.split("\r")[-1].strip().splitlines() == [
        "fer-jax: interrupted; rerun the same command to resume"
    ]


@pytest.mark.usefixtures("crashing_decoder")
def test_a_clip_that_ends_its_worker_is_a_row_of_the_ledger(
    source: Path, tmp_path: Path, write_video: Callable[..., Path]
):
    mixed = tmp_path / "source"
    for number, file in enumerate(sorted(source.glob("*/*.avi"))[:12]):
        target = mixed / file.parent.name / ("crash.avi" if number == 5 else file.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    words = command(mixed, tmp_path / "data", "--dask=local:2")
    words = [word for word in words if not word.startswith("--every")]
    environment = os.environ["PYTHONPATH"]
    with subprocess.Popen(
        [sys.executable, "-m", "fer_jax", "build", *words, "--frames=3"],
        env=os.environ | {"PYTHONPATH": f"{environment}:{Path(__file__).parents[1]}"},
        stderr=subprocess.PIPE,
        text=True,
    ) as built:
        _, errors = built.communicate(timeout=ENDS_WITHIN_S)
    assert built.returncode == 0, errors
    (folder,) = (tmp_path / "data").glob("filmed/folds/*")
    (row,) = read_table(folder / "ledger.csv")
    assert row["item"] == "filmed/anger/crash" and row["reason"] == "its decoder crashed"
    assert len(read_table(folder / "quality.csv")) == 11 * 3


def test_pictures_are_finished_in_blocks(tmp_path: Path):
    rng = np.random.default_rng(1)
    for number in range(600):
        file = tmp_path / "source" / ("anger", "happiness")[number % 2] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), rng.integers(0, 256, (40, 40 + number % 5, 3), np.uint8))
    (tmp_path / "source" / "anger" / "broken.png").write_bytes(b"no picture")
    words = ["build", "face_folder/folds", "--name=filmed", "--folds=2"]
    words += [f"--source={tmp_path / 'source'}", "--margin=0.1"]
    assert main([*words, f"--data_dir={tmp_path / 'local'}"]) == 0
    data_dir = tmp_path / "data"
    # Dask's usual port is another program's here: no warning, which would be an error.
    with socket.socket() as taken:
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", DASHBOARD_PORT))
            taken.listen()
        assert main([*words, f"--data_dir={data_dir}", "--dask=local:2"]) == 0
    assert contents(data_dir) == contents(tmp_path / "local")
    assert sum(map(len, contents(data_dir))) == 600
    ledgers = [next(place.glob("filmed/folds/*/ledger.csv")) for place in tmp_path.glob("[dl]*a*")]
    assert ledgers[0].read_bytes() == ledgers[1].read_bytes()
    assert not list(data_dir.glob(".clips/filmed/*"))


ENDS = """
import json, os

def finish(spec, file, crashed, report):
    found = []
    for item in range(spec["items"]):
        report(item)
        if item in spec["deadly"] and item not in crashed:
            os.kill(os.getpid(), 11)
        found.append(None if item in crashed else item)
    file.write_text(json.dumps(found))
"""


def test_only_items_that_end_a_process_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "ends.py").write_text(ENDS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[1]}")
    spec = {"items": 5, "deadly": [1, 3]}
    cluster._finish_alone(cluster.Task("x", tmp_path / "x.zip", "ends", spec))
    assert json.loads((tmp_path / "x.zip").read_text()) == [0, None, 2, None, 4]


def test_workers_must_be_alike_and_see_the_same_files(tmp_path: Path):
    token = tmp_path / "token"
    token.touch()
    cluster.check_worker(token, cluster.versions())
    with pytest.raises(Exception, match="has other versions: numpy [0-9.]+, here 1.0; install"):
        cluster.check_worker(token, cluster.versions() | {"numpy": "1.0"})
    with pytest.raises(Exception, match="does not see '.*': the source and --data_dir"):
        cluster.check_worker(tmp_path / "elsewhere" / "token", cluster.versions())


@pytest.mark.parametrize(
    "address, message",
    [
        ("local:none", "after 'local:' comes the number of workers"),
        ("local:0", "after 'local:' comes the number of workers"),
        ("nowhere", "is no scheduler"),
        ("tcp://127.0.0.1:9", "no Dask scheduler answers at tcp://127.0.0.1:9"),
        ("tls://127.0.0.1:9", "its certificates are not set; first `source FOLDER/dask.env`"),
        ("xyz://127.0.0.1:9", "no Dask scheduler answers"),
    ],
)
def test_an_address_without_a_scheduler_is_one_line(
    address: str,
    message: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(cluster, "CONNECTS_WITHIN_S", 2)
    assert main(["build", *command(source, tmp_path, f"--dask={address}")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("filmed/*"))
