"""Where compiled programs are kept."""

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
