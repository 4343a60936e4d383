"""Prepares the process: streams that exist, limits that suffice, freed memory that stays."""

import ctypes
import os
import resource
import sys
import threading

from fer_jax.errors import InputError

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
# JAX and the readers of data start fewer threads than this, beside 4 for each core.
NUM_THREADS = 64
# Each thread reserves 8 MiB. A small training aborts at 2 GiB and runs at 4.
MIN_ADDRESS_SPACE = 4 * 2**30


def open_closed_streams() -> None:
    """Opens /dev/null for each of stdin, stdout and stderr that the caller closed.

    Otherwise the next file that is opened takes its number, and gets what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            setattr(sys, name, open(number, "r" if number == 0 else "w"))


def check_limits() -> None:
    """Refuses limits of memory or threads under which JAX aborts or hangs; names them."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < MIN_ADDRESS_SPACE:
        raise InputError(
            f"the address space is limited to {limit / 2**30:.1f} GiB, and "
            f"{MIN_ADDRESS_SPACE >> 30} GiB are needed; run `ulimit -v unlimited` first"
        )
    ready = threading.Event()
    needed = NUM_THREADS + 4 * (os.cpu_count() or 1)
    threads = [threading.Thread(target=ready.wait, daemon=True) for _ in range(needed)]
    started: list[threading.Thread] = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise InputError(
            f"only {len(started)} of {needed} threads can be started; raise the limit of "
            "processes (`ulimit -u`, or the job's) or end other programs"
        ) from error
    finally:
        ready.set()
        for thread in started:
            thread.join()


def keep_freed_memory() -> bool:
    """Tells glibc not to hand freed memory back to the kernel; call it before threads start.

    A training step on CPU allocates a gigabyte and frees it again. Handed back, every page of it is
    cleared by the kernel at the next step: 310 CPU-ms per image instead of 238 (Xception at 224 px,
    batch 8, float32). Settings in $GLIBC_TUNABLES take precedence.

    Returns whether it took effect; other C libraries and systems are left alone.
    """
    if not sys.platform.startswith("linux") or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # A threshold of -1 switches trimming off.
    settings = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
