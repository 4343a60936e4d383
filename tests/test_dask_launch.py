"""launch/dask: the certificates let a cluster's own processes in, and nobody else."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask.config
import distributed
import numpy as np
import pytest

from fer_jax.__main__ import main
from fer_jax.data.records import open_records

ROOT = Path(__file__).resolve().parents[1]
CERTIFICATES = ROOT / "launch" / "dask" / "certificates.sh"
STARTS_WITHIN_S = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates; its name has a space."""
    made = tmp_path_factory.mktemp("dask") / "my certificates"
    subprocess.run(["bash", CERTIFICATES, made], check=True, capture_output=True)
    return made


@pytest.fixture(scope="module")
def variables(folder: Path) -> dict[str, str]:
    """What dask.env sets."""
    printed = subprocess.run(
        ["bash", "-c", 'source "$1" && env -0', "bash", folder / "dask.env"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    pairs = (entry.partition("=") for entry in printed.split("\0"))
    return {name: value for name, _, value in pairs if name.startswith("DASK_")}


def configured(variables: dict[str, str]) -> dask.config.set:
    """A block in which Dask has the configuration of a program with these variables."""
    given = dask.config.collect_env(variables)
    return dask.config.set(dask.config.merge(dask.config.config, given))


def worker(place: str, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "dask", "worker", place, "--nthreads=1", "--no-nanny"),
        *("--host=127.0.0.1", "--dashboard-address=127.0.0.1:0", *more),
    ]


@pytest.fixture(scope="module")
def scheduler(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with one worker, both with the certificate."""
    scratch = tmp_path_factory.mktemp("scratch")
    file = scratch / "scheduler.json"
    environment = variables | {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    options = [f"--scheduler-file={file}", "--host=127.0.0.1", "--dashboard-address=127.0.0.1:0"]
    commands = [
        [sys.executable, "-m", "dask", "scheduler", "--port=0", *options],
        worker(f"--scheduler-file={file}", f"--local-directory={scratch}"),
    ]
    started = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for command in commands
    ]
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not file.is_file():
            assert time.monotonic() < deadline and started[0].poll() is None
            time.sleep(0.05)
        with configured(variables):
            with distributed.Client(scheduler_file=str(file)) as client:
                client.wait_for_workers(1, STARTS_WITHIN_S)
                address = str(client.scheduler_info()["address"])
        yield address
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_the_keys_are_readable_by_their_owner_only_and_never_replaced(folder: Path):
    names = {file.name for file in folder.iterdir()}
    assert names == {"authority.pem", "certificate.pem", "dask.env", "key.pem"}
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    before = (folder / "key.pem").read_bytes()
    again = subprocess.run(["bash", CERTIFICATES, folder], capture_output=True, text=True)
    assert again.returncode == 2 and "has a certificate already" in again.stderr
    assert (folder / "key.pem").read_bytes() == before


def test_a_build_over_tls_needs_nothing_but_the_variables(
    scheduler: str,
    variables: dict[str, str],
    tmp_path: Path,
    write_video: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
):
    assert scheduler.startswith("tls://127.0.0.1:")
    rng = np.random.default_rng(0)
    for number, emotion in enumerate(("anger", "happiness")):
        pictures = rng.integers(0, 256, (4, 48, 64, 3), np.uint8)
        write_video(tmp_path / "source" / emotion / f"p{number}.avi", pictures)
    words = ["build", "clips/folds", "--name=filmed", "--folds=2", "--detector=none", "--every=1"]
    words += [f"--source={tmp_path / 'source'}", f"--data_dir={tmp_path / 'data'}"]
    with configured(variables):
        assert main([*words, f"--dask={scheduler}"]) == 0
    assert "warning" not in capsys.readouterr().err
    splits = [open_records("filmed/folds", f"fold_{fold}", tmp_path / "data") for fold in (0, 1)]
    assert [len(split) for split in splits] == [4, 4]


def test_who_has_no_certificate_or_another_one_is_refused(
    scheduler: str, variables: dict[str, str], tmp_path: Path
):
    without, another = distributed.Security(), distributed.Security.temporary()
    open_address = scheduler.replace("tls:", "tcp:")
    for address, security in ((scheduler, without), (scheduler, another), (open_address, without)):
        with pytest.raises((OSError, TypeError)):
            distributed.Client(address, security=security, timeout=2)
    with configured(variables), pytest.raises(RuntimeError, match="encryption required"):
        distributed.Client(open_address, timeout=2)
    refused = subprocess.run(
        worker(scheduler, "--death-timeout=2", f"--local-directory={tmp_path}"),
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=STARTS_WITHIN_S,
    )
    assert refused.returncode != 0 and "ssl_context" in refused.stderr
