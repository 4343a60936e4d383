"""Two real processes: they meet on the loopback, divide the work, and end as one process would."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import write_dataset

from fer_jax import distributed
from fer_jax.__main__ import main
from fer_jax.config import Config, default_config, from_json, read_config, to_json
from fer_jax.errors import InputError
from fer_jax.training import start

ROOT = Path(__file__).resolve().parents[1]
EMOTIONS = 7


def environment(devices: int, **more: str) -> dict[str, str]:
    """A process of its own."""
    return dict(os.environ) | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
        **more,
    }


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")

    def people(name: str, count: int) -> list[tuple[str, int]]:
        return [(f"{name}{index % 4}", index % EMOTIONS) for index in range(count)]

    # 13 to score: three batches of 4 and one that is filled up.
    rows = {"train": people("a", 24), "validation": people("b", 8), "test": people("c", 13)}
    write_dataset(folder, "lab", rows)
    return folder


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.py"
    file.write_text(
        "from fer_jax.config import default_config\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.sources = config.test_sets = ('lab',)\n"
        "    config.batch_size = 4\n"
        "    config.num_epochs = 1.0\n"
        "    config.model.update(width=0.03, num_middle_blocks=0, image_size=71)\n"
        "    config.log_every_steps = 1\n"
        "    config.validate_every_epochs = 0.5\n"
        "    return config\n"
    )
    return file


# A minute of CPU: six starts of JAX, of which three compile the step.
def test_two_processes_train_and_score_as_one(data_dir: Path, config_file: Path, tmp_path: Path):
    for name, command, devices in (
        ("one", ["-m", "fer_jax"], 2),
        ("two", ["launch/local.py", "--processes=2"], 1),
    ):
        workdir = f"--workdir={tmp_path / name}"
        for words in (
            ["train", f"--config={config_file}", workdir, f"--data_dir={data_dir}"],
            ["evaluate", workdir],
        ):
            done = subprocess.run(
                [sys.executable, *command, *words],
                cwd=ROOT,
                env=environment(devices),
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("evaluate it with") == (words[0] == "train"), "one speaks"

    def rows(name: str) -> list[dict[str, Any]]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        timings = {"images_per_second", "data_wait_share", "model_flop_per_second"}
        return [
            {key: value for key, value in json.loads(line).items() if key not in timings}
            for line in lines
        ]

    assert len(rows("one")) == 6 and "validation_loss" in rows("one")[-1]
    assert rows("two") == [pytest.approx(row, rel=1e-5, nan_ok=True) for row in rows("one")]
    tables = {path.name for path in (tmp_path / "one" / "predictions").glob("*.csv")}
    assert tables == {"lab.test.csv", "lab.validation.csv"}
    for table in tables:
        one, two = (tmp_path / name / "predictions" / table for name in ("one", "two"))
        assert two.read_text() == one.read_text()
    test_access = (tmp_path / "two" / "test_access.jsonl").read_text().splitlines()
    assert len(test_access) == 1, "one of the processes logs the access"
    described = json.loads((tmp_path / "two" / "environment.json").read_text())
    assert described["processes"] == 2 and len(described["devices"]) == 2


def test_only_the_first_of_several_processes_locks_the_workdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(distributed.jax, "process_index", lambda: 1)
    with distributed.lock(tmp_path), distributed.lock(tmp_path):
        assert not list(tmp_path.iterdir())


# Run in each of two processes: what each input reads, against all of it; and who listens where.
PROGRAM = """
import sys
from pathlib import Path

from fer_jax import distributed
distributed.initialize()

import jax
import numpy as np
from fer_jax.config import default_config
from fer_jax.data import batches
from fer_jax.data.records import Records, open_records
from fer_jax.sharding import make_mesh
from fer_jax.training import pipeline

data_dir, workdir = map(Path, sys.argv[1:])
process = jax.process_index()
assert jax.process_count() == 2 and distributed.is_first() == (process == 0)
assert distributed.smallest(3 * 2**40 + process) == 3 * 2**40
config = default_config()
config.batch_size, config.model.image_size = 8, 71
mixture = batches.mix([open_records("lab", "train", data_dir)], "emotion", weights=[0.0])
everything = mixture.images(np.arange(len(mixture)), 71)
order = batches.epoch_order(mixture, 24, 0, config.seed)
read = []
image = Records.image
Records.image = lambda self, row: (read.append(row), image(self, row))[1]
whole = 24 * 71 * 71 * 3
for kind, free in (("stream", 0), ("memmap", 0), ("device", whole), ("device", whole // 4)):
    config.input = kind
    read.clear()
    iterator, place = pipeline.open_pipeline(
        config, mixture, make_mesh(), workdir, num_steps=3, free=free
    )
    for step, batch in enumerate(iterator):
        placed = place(batch)
        assert len(batch["image"]) == 4 and placed["image"].shape[0] == 8
        for shard in placed["image"].addressable_shards:
            rows = order[step * 8 : step * 8 + 8][shard.index[0]]
            np.testing.assert_array_equal(np.asarray(shard.data), everything[rows])
        for shard in placed["target"].addressable_shards:
            rows = order[step * 8 : step * 8 + 8][shard.index[0]]
            np.testing.assert_array_equal(np.asarray(shard.data), mixture.targets[rows])
    here = {"stream": 12, "memmap": 0 if process else 24, "device": 24 if free == whole else 12}
    assert len(read) == here[kind], (kind, len(read))
net = Path("/proc/self/net")
lines = [line.split() for name in ("tcp", "tcp6") for line in (net / name).open()]
listening = {(words[1].split(":")[0], words[9]) for words in lines if words[3] == "0A"}
own = {path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
mine = {address for address, inode in listening if f"socket:[{inode}]" in own}
loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
assert mine and mine <= loopback, mine
print("read", process, flush=True, file=sys.stderr)
distributed.exit_process(0)
"""


def test_each_process_decodes_its_rows_and_listens_on_the_loopback_only(
    data_dir: Path, tmp_path: Path
):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, data_dir, tmp_path],
            env=environment(
                2,
                FER_JAX_COORDINATOR=f"127.0.0.1:{port}",
                FER_JAX_PROCESSES="2",
                FER_JAX_PROCESS=str(process),
            ),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for process in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    for number, process in enumerate(started):
        assert process.returncode == 0 and f"read {number}" in said[number], said[number]


def test_what_the_environment_asks_for():
    read = distributed.process_info_from_env
    assert read({}) == (1, -1, "")
    three = {
        "FER_JAX_COORDINATOR": "10.0.0.1:99",
        "FER_JAX_PROCESSES": "4",
        "FER_JAX_PROCESS": "3",
    }
    assert read(three) == (4, 3, "10.0.0.1:99")
    step = {"SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    assert read(step) == (2, -1, "")
    # A batch script is one process, however many tasks its steps will have.
    assert read({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == (1, -1, "")
    for name in three:
        with pytest.raises(InputError, match=f"without {name}: set all three"):
            read({key: value for key, value in three.items() if key != name})
    for wrong in ({"FER_JAX_PROCESS": "4"}, {"FER_JAX_PROCESSES": "four"}):
        with pytest.raises(InputError, match="must be 0 to FER_JAX_PROCESSES - 1"):
            read(three | wrong)
    for wrong in ("node", "node:0", "node:65536", "node:-1"):
        with pytest.raises(InputError, match=f"HOST:PORT with a port .* got '{wrong}'"):
            read(three | {"FER_JAX_COORDINATOR": wrong})


def test_a_port_that_is_taken_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for name, value in zip(distributed.VARIABLES, (f"127.0.0.1:{port}", "2", "0"), strict=True):
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=f"port {port} .* Address already in use"):
            distributed.initialize()


def test_another_number_than_was_asked_for_is_refused():
    distributed.check_count(2, 2)
    with pytest.raises(InputError, match="asked for 4 processes, and 1 are connected"):
        distributed.check_count(1, 4)


def test_a_study_is_not_done_by_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    for name, value in zip(distributed.VARIABLES, ("127.0.0.1:9", "2", "1"), strict=True):
        monkeypatch.setenv(name, value)
    config = f"--config={ROOT / 'configs' / 'study_demo.py'}"
    assert main(["study", config, f"--workdir={tmp_path}"]) == 2
    assert "study runs in one process, and 2 were started" in capsys.readouterr().err


def test_a_config_is_kept_without_secrets_and_still_continues(tmp_path: Path):
    config = default_config()
    config.init_from = "https://me:word@host/x.h5"
    config.sources = ({"name": "a", "train": "token=b"},)
    assert "word" not in to_json(config) and "token=b" not in to_json(config)
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    start.check_continues(config, tmp_path, tmp_path)
    other = Config(from_json(to_json(config)).to_dict() | {"init_from": "https://you@elsewhere/"})
    with pytest.raises(InputError, match="init_from"):
        start.check_continues(other, tmp_path, tmp_path)


def test_a_link_out_of_the_workdir_is_refused(tmp_path: Path):
    workdir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (workdir / "checkpoints").mkdir(parents=True)
    elsewhere.mkdir()
    (workdir / "config.json").write_text(to_json(default_config()))
    (workdir / "last").symlink_to("checkpoints")
    read_config(workdir)
    (workdir / "checkpoints" / "7").symlink_to(elsewhere)
    with pytest.raises(InputError, match="checkpoints/7' is a link out of the workdir"):
        read_config(workdir)
