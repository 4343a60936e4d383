"""JAX's compilation cache on disk, so that the second run starts without compiling."""

import hashlib
import os
import platform
from pathlib import Path

import jax


def enable_compilation_cache() -> None:
    """Writes compiled programs to the user's cache and reads them from there.

    The folder is $JAX_COMPILATION_CACHE_DIR where it is set, else one under $XDG_CACHE_HOME
    (~/.cache). It may be deleted at any time.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder()))


def folder() -> Path:
    """Returns this machine's folder of compiled programs, without $JAX_COMPILATION_CACHE_DIR."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard says to ignore a relative path.
    cache = Path(home) if Path(home).is_absolute() else Path("~/.cache").expanduser()
    # A program compiled for one processor may crash on another with an illegal instruction, and
    # the machines of a cluster share home directories.
    return cache / "fer_jax" / "compilations" / hashlib.sha256(_processor()).hexdigest()[:12]


def _processor() -> bytes:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()} {found}".encode()
