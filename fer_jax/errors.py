"""Errors that end a command: user errors (exit code 2) and preemption (exit code 75).

The command line prints their message as one line; every other exception is a defect of fer_jax
and keeps its traceback.
"""

import difflib
import errno
import os
from collections.abc import Iterable

# Errors of the file system that the user can fix: a missing permission, a full disk.
USER_FIXABLE_ERRNOS = {
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
}


class InputError(ValueError):
    """Something a person gave us cannot be used; the message says what to do instead."""


class Preempted(SystemExit):
    """Somebody asked for the place; what was done is saved, and the same command continues.

    Exit code 75 is EX_TEMPFAIL of sysexits.h: try again.
    """

    def __init__(self, message: str) -> None:
        """Takes what the person shall read."""
        super().__init__(75)
        self.message = message


def disk_error_message(error: BaseException | None) -> str:
    """In words what the file system refused, "" where the error is another one.

    Libraries that write in C++ raise errors of their own that quote the system's words.
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
    """Ends an error message: names the closest accepted word, or lists all of them.

    Args:
      word: what was given.
      accepted: the words that would have been fine.

    Returns:
      ``"; did you mean 'x'?"`` or ``"; choose one of a, b, c"``.
    """
    accepted = sorted(accepted)
    close = difflib.get_close_matches(word, accepted, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; choose one of {', '.join(accepted)}" if accepted else ""
