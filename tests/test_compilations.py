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
    before = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", "/named")
        compilations.keep()
        assert jax.config.jax_compilation_cache_dir == "/named"
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        compilations.keep()
        assert Path(str(jax.config.jax_compilation_cache_dir)).is_relative_to(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
