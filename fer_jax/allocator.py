"""Lets glibc keep freed memory, which makes a training step on CPU a quarter faster."""

import ctypes
import os
import sys

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc not to hand freed memory back to the kernel; call it before threads start.

    A training step on CPU allocates a gigabyte and frees it again. Handed back, every page of it
    is cleared by the kernel at the next step: 310 CPU-ms per image instead of 238 (Xception at
    224 px, batch 8, float32). Settings in $GLIBC_TUNABLES take precedence.

    Returns:
      Whether it took effect; other C libraries and systems are left alone.
    """
    if not sys.platform.startswith("linux") or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # A threshold of -1 switches trimming off.
    settings = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1))
    return all([mallopt(parameter, value) == 1 for parameter, value in settings])
