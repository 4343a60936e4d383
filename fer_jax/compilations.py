"""Compilation: the cache on disk, and a line that tells what is compiled and how long it took."""

import contextlib
import hashlib
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

COUNT_EVERY_S = 1.0  # seconds of a compilation, on a terminal


def enable_compilation_cache() -> None:
    """Writes compiled programs to the user's cache and reads them from there.

    The folder is $JAX_COMPILATION_CACHE_DIR where it is set, else one under $XDG_CACHE_HOME
    (~/.cache). It may be deleted at any time.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder()))


@contextlib.contextmanager
def announce(what: str) -> Iterator[None]:
    """Prints "compiling WHAT..." and, when the block ends, its seconds; a terminal counts them."""
    line, started, ended = f"compiling {what}...", time.monotonic(), threading.Event()

    def count() -> None:
        while not ended.wait(COUNT_EVERY_S):
            print(f"\r{line} {time.monotonic() - started:.0f} s", end="", flush=True)

    print(line, end="", flush=True)
    counter = threading.Thread(target=count, name="compilation", daemon=True)
    if sys.stdout.isatty():
        counter.start()
    seconds = ""
    try:
        yield
        seconds = f" {time.monotonic() - started:.1f} s"
    finally:
        ended.set()
        if counter.is_alive():
            counter.join()
        print(f"\r{line}{seconds}" if sys.stdout.isatty() else seconds, flush=True)


def folder() -> Path:
    """Returns this machine's folder of compiled programs, without $JAX_COMPILATION_CACHE_DIR."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard says to ignore a relative path.
    cache = Path(home) if Path(home).is_absolute() else Path("~/.cache").expanduser()
    # A program compiled for one processor may crash on another with an illegal instruction, and
    # the machines of a cluster share home directories.
    return cache / "fer_jax" / "compilations" / hashlib.sha256(_processor()).hexdigest()[:12]


def _processor() -> bytes:
    found = cpu_info("flags", "Features")
    return f"{platform.machine()} {platform.processor()} {found}".encode()


def cpu_info(*names: str) -> str:
    """Returns the first line of /proc/cpuinfo that begins with one of the names; "" without one."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line for line in lines if line.startswith(names)), "")
