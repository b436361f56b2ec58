"""What can go wrong for a person, each with its exit code.

The message says what is wrong, which file or key, and what to do, in three lines at most. The
command line prints it without a traceback and exits with the code; in Python it is an exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ResnetsError(Exception):
    """Something a person can mend; `exit_code` is the command line's."""

    exit_code = 1


class UsageError(ResnetsError):
    """A wrong name, option or value."""

    exit_code = 2


class DataError(ResnetsError):
    """Data that is missing, empty, broken or not what was said."""

    exit_code = 3


class CheckpointError(ResnetsError):
    """A checkpoint or weights file that is refused."""

    exit_code = 4


class MemoryExhausted(ResnetsError):
    """Out of memory, on the device or the host."""

    exit_code = 5


class DiskError(ResnetsError):
    """A file could not be written."""

    exit_code = 6


class Diverged(ResnetsError):
    """Training produced a value that is not finite."""

    exit_code = 7


class MissingPackage(ResnetsError):
    """An optional package is not installed; the message has the install line."""

    exit_code = 8


class Interrupted(ResnetsError):
    """A signal stopped training after a step; everything is saved, and `again` goes on."""

    def __init__(self, again: str, signal: int) -> None:
        super().__init__(f"stopped; everything is saved. Go on with {again}")
        self.exit_code = 128 + signal


def nearest(name: str, known: Iterable[str]) -> str:
    """A phrase for an error message: the known names nearest to `name`."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(sorted(names))}" if len(names) <= 12 else "see the list of names"
