"""Compiled programs are kept on disk, so that the second run starts without compiling."""

import hashlib
import os
import platform
from pathlib import Path

import jax


def keep() -> None:
    """Keeps what is compiled from now on in the user's cache, and reads what is there.

    The folder is $JAX_COMPILATION_CACHE_DIR where it is set, else one under $XDG_CACHE_HOME
    (~/.cache). It may be deleted at any time.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder()))


def folder() -> Path:
    """Where this machine's programs are kept unless $JAX_COMPILATION_CACHE_DIR says otherwise."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The standard asks that a relative path be passed over.
    cache = Path(home) if Path(home).is_absolute() else Path("~/.cache").expanduser()
    # A program for one processor may end another with an illegal instruction, and clusters
    # share their users' homes.
    return cache / "fer_jax" / "compilations" / hashlib.sha256(_processor()).hexdigest()[:12]


def _processor() -> bytes:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()} {found}".encode()
