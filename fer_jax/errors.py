"""How a program ends early: by a mistake that a person can mend, or because it was asked to.

The command line prints an `InputError` as one line and exits with code 2, a `Preempted` with
code 75; every other exception is a defect of ours and keeps its traceback.
"""

import difflib
import errno
import os
from collections.abc import Iterable

# What the file system may refuse for a reason that lies with the person, not with us.
MENDABLE = {
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


def refused_by_disk(error: BaseException | None) -> str:
    """In words what the file system refused, "" where the error is another one.

    Libraries that write in C++ raise errors of their own that quote the system's words.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in MENDABLE:
            return os.strerror(error.errno)
        for number in MENDABLE:
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
