"""A workdir belongs to one run at a time."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax

from fer_jax.errors import USER_FIXABLE_ERRNOS, InputError

FILE = ".lock"


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keeps other processes from training in the workdir meanwhile; makes the folder.

    The lock is the system's, on an open file: it goes with the process, however that ends, and
    the file that stays behind locks nothing. Of several processes of a run the first holds it.

    Raises:
      InputError: a living process holds it, or the file system has no locks.
    """
    if jax.process_index():
        yield
        return
    file = workdir / FILE
    is_new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            opened.seek(0)
            holder = opened.read().strip() or "another process"
            raise InputError(
                f"'{workdir}' is being trained in by {holder}; wait for it or end it, or choose "
                "another workdir"
            ) from None
        except OSError as error:
            raise InputError(f"'{file}' cannot be locked: {error.strerror}") from error
        try:
            opened.truncate(0)
            opened.write(f"process {os.getpid()} on {socket.gethostname()}")
            opened.flush()
        except OSError as error:
            if error.errno not in USER_FIXABLE_ERRNOS:
                raise
            raise InputError(f"'{file}' cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            opened.truncate(0)
            # A run that is refused before it begins leaves no folder.
            if is_new and [path.name for path in workdir.iterdir()] == [FILE]:
                file.unlink()
                workdir.rmdir()
