"""Errors that end a command: user errors (exit code 2) and preemption (exit code 75).

The command line prints their message as one line; every other exception is a defect of fer_jax
and keeps its traceback.
"""

import difflib
import errno
import os
from collections.abc import Iterable

# Errors of the file system that the user can fix: a missing permission, a full or failing disk.
DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
USER_FIXABLE_ERRNOS = DISK_FULL_ERRNOS | {
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EIO),
}


PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again


class InputError(ValueError):
    """An error that the user can fix; the message says what is wrong and what to do."""


class Preempted(SystemExit):
    """The run was preempted after saving; rerun the same command to resume."""

    def __init__(self, message: str) -> None:
        super().__init__(PREEMPTED)
        self.message = message


def disk_error_message(error: BaseException | None) -> str:
    """Returns why the file system refused an operation, or "" for errors of another kind.

    Searches the causes, too, and their text: libraries in C++ raise their own errors that quote
    the system's message.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in USER_FIXABLE_ERRNOS:
            return os.strerror(error.errno)
        for number in USER_FIXABLE_ERRNOS:
            if os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""


def did_you_mean(word: str, accepted: Iterable[str]) -> str:
    """Returns the end of an error message: "; did you mean 'x'?" or "; choose one of a, b, c"."""
    accepted = sorted(accepted)
    if close := difflib.get_close_matches(word, accepted, n=1, cutoff=0.6):
        return f"; did you mean '{close[0]}'?"
    return f"; choose one of {', '.join(accepted)}" if accepted else ""
