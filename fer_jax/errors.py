"""The one error class for mistakes that a person can make and mend.

The command line prints an `InputError` as one line and exits with code 2; every other
exception is a defect of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something a person gave us cannot be used; the message says what to do instead."""


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
