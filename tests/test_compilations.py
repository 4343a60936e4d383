"""The compilation cache's folder, and the line about a compilation."""

import io
import re
import sys
import time
from pathlib import Path

import jax
import pytest

from fer_jax import compilations


def test_the_users_cache_is_where_the_standard_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert compilations.folder().is_relative_to("/somewhere/fer_jax/compilations")
    for other in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", other)
        assert compilations.folder().is_relative_to(Path.home() / ".cache")


def test_another_processor_has_programs_of_its_own(monkeypatch: pytest.MonkeyPatch):
    here = compilations.folder()
    monkeypatch.setattr(compilations, "_processor", lambda: b"another")
    assert compilations.folder() != here and compilations.folder().parent == here.parent


def test_a_folder_that_is_named_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    said = []
    monkeypatch.setattr(jax.config, "update", lambda *words: said.append(words))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/named")
    compilations.enable_compilation_cache()
    assert said == []
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    compilations.enable_compilation_cache()
    assert said == [("jax_compilation_cache_dir", str(compilations.folder()))]


def test_a_compilation_is_announced_with_its_seconds(capsys: pytest.CaptureFixture[str]):
    with compilations.announce("the train step"):
        assert capsys.readouterr().out == "compiling the train step..."
    assert re.fullmatch(r" \d+\.\d s\n", capsys.readouterr().out)


def test_a_terminal_counts_the_seconds(monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(compilations, "COUNT_EVERY_S", 0.01)
    with compilations.announce("the train step"):
        while "\r" not in stream.getvalue():
            time.sleep(0.01)
    first, second, *_, last = stream.getvalue().split("\r")
    assert (first, second) == ("compiling the train step...", "compiling the train step... 0 s")
    assert re.fullmatch(r"compiling the train step\.\.\. \d\.\d s\n", last)
