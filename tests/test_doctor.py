"""The doctor's findings, each from facts that are given to it."""

import json
import sys
from pathlib import Path

import pytest

from fer_jax import doctor
from fer_jax.__main__ import main


def test_pins_are_read_for_this_python():
    now = f"{sys.version_info.major}.{sys.version_info.minor}"
    text = (
        "# a comment\n"
        f"jax==1.0 ; python_version == '{now}' \\\n    --hash=sha256:00\n"
        f"jax==2.0 ; python_version != '{now}' \\\n"
        "numpy==3.1\n"
    )
    assert doctor.tested_versions(text) == {"jax": "1.0", "numpy": "3.1"}


def test_versions_are_compared():
    def status(*versions: str | None) -> str:
        return doctor.check_version("jax", *versions).status

    assert status("1.0", "1.0") == status("1.0", None) == doctor.OK
    assert status("2.0", "1.0") == doctor.WARNING
    assert status(None, "1.0") == doctor.FAILED


def test_a_broken_import_is_reported_with_its_message():
    assert doctor.check_import("json").status == doctor.OK
    broken = doctor.check_import("fer_jax.no_such_module")
    assert broken.status == doctor.FAILED
    assert "no_such_module" in broken.detail


def test_an_unused_gpu_and_a_full_disk_are_warnings():
    assert doctor.check_devices("cpu", ["cpu"], False).status == doctor.OK
    assert doctor.check_devices("gpu", ["H"], True).status == doctor.OK
    unused = doctor.check_devices("cpu", ["cpu"], True)
    assert unused.status == doctor.WARNING and "cuda" in unused.remedy
    assert doctor.check_disk(Path("/"), 10**9).status == doctor.WARNING
    assert doctor.check_disk(Path("/"), 10**12).status == doctor.OK


def test_missing_kernels_are_a_warning_and_kernels_that_are_off_are_not():
    assert doctor.check_kernels("").status == doctor.OK
    assert doctor.check_kernels("FER_JAX_CPU_KERNELS=no").status == doctor.OK
    missing = doctor.check_kernels("no C++ compiler was found")
    assert missing.status == doctor.WARNING and "install g++" in missing.remedy


def test_the_cache_must_be_writable_and_missing_extras_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert doctor.check_cache(tmp_path / "not" / "yet").status == doctor.OK
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)  # root may write anywhere
    assert doctor.check_cache(tmp_path).status == doctor.WARNING
    monkeypatch.setattr(doctor, "EXTRAS", {"a": ("json",), "b": ("json", "no_such_module")})
    extras = doctor.check_extras()
    assert extras.detail == "installed: a" and "'.[b]'" in extras.remedy


def test_the_verb_prints_json_and_says_whether_something_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(["doctor", "--json", f"--data_dir={tmp_path / 'not yet'}"]) == 0
    checks = {one["name"]: one["status"] for one in json.loads(capsys.readouterr().out)}
    assert checks["video"] == checks["scripts"] == checks["devices"] == checks["cache"] == doctor.OK
    monkeypatch.setattr(doctor, "_installed", lambda name: None)
    assert main(["doctor"]) == 1
    assert "16 failed" in capsys.readouterr().out


def test_a_missing_script_runtime_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    assert "Deno 2." in doctor.check_script_runtime().detail
    monkeypatch.setattr("deno.find_deno_bin", lambda: "/no/such/deno")
    missing = doctor.check_script_runtime()
    assert missing.status == doctor.WARNING and "YouTube" in missing.detail
