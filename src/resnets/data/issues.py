"""Values in other people's files, what is wrong with a data set, and what was assumed of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from resnets.errors import DataErrors, Problem, quantify
from resnets.escape import shorten

if TYPE_CHECKING:  # which imports this module
    from resnets.data.assemble import ScanResult

# What a value of the wrong kind raises where it is used.
PARSE_ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, OSError),
    SyntaxError,  # of XML
)


def quote(value: object) -> str:
    """A value as a message may hold it: in one line, escaped, and short."""
    text = repr(value)  # which escapes what is not printable
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse_number(value: object) -> float:
    """A number, or the text of one. Raises ValueError for anything else, booleans included."""
    if type(value) is float:  # the usual case, millions of times
        return value
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)) or "_" in str(value):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{quote(value)} is not a number") from None


def parse_flag(value: object) -> bool:
    """A flag written as 0, 1, false, true, or the text of one; None and "" are false.

    Raises ValueError for anything else.
    """
    if value is None or value is False or value == 0:
        return False
    text = str(value).strip().casefold() if isinstance(value, (str, int, float)) else value
    if text in ("", "0", "0.0", "false", "no"):
        return False
    if text in ("1", "1.0", "true", "yes"):
        return True
    raise ValueError(f"{quote(value)} is neither 0 nor 1")


@dataclass(slots=True)
class Issues:
    """Problems and notes, collected while the data set at the path `data` is read.

    Training refuses a data set with `errors`. `warnings` belong to one file or line of data that is
    used; `notes` to the whole, each with a count and an example.
    """

    data: Path
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)
    _counted: dict[str, list[object]] = field(default_factory=lambda: defaultdict(list))

    @property
    def root(self) -> Path:
        """The folder that paths count from: the data's own, or that of a table."""
        return self.data if self.data.is_dir() else self.data.parent

    def error(self, where: object, reason: str) -> None:
        self.errors.append((str(where), reason))

    def warn(self, where: object, reason: str) -> None:
        self.warnings.append((str(where), reason))

    @contextmanager
    def collect(self, where: object) -> Iterator[None]:
        """Make an error of what parsing raises."""
        try:
            yield
        except PARSE_ERRORS as error:
            self.error(where, parse_error_reason(error))

    def note(self, text: str, file: Path | None = None) -> None:
        """Note something of the data set, or of one of its files."""
        self._notes.append(f"{file or self.data}: {text}")

    def count(self, text: str, *examples: object) -> None:
        """Count what occurs at many files or lines, for one note of them all."""
        if examples:
            self._counted[text] += examples

    @property
    def notes(self) -> list[str]:
        """The notes, and one with the number and the first example of whatever was counted."""
        counted = [f"{quantify(len(e), text)}, first {e[0]}" for text, e in self._counted.items()]
        return [*self._notes, *(f"{self.data}: {text}" for text in counted)]

    def to_error(self, scan: ScanResult | None = None) -> DataErrors:
        """The exception that has all of them, and the files of a scan that cannot be read."""
        notes = [(str(self.data), note) for note in self.notes]
        error = DataErrors(self.data, self.errors, [*notes, *self.warnings])
        if scan:
            error.unreadable, error.files = scan.unreadable, len(scan.images) + len(scan.unreadable)
        return error


def parse_error_reason(error: Exception) -> str:
    """The reason of a problem, from what was raised."""
    text = shorten(" ".join(str(error).split()))
    return f"broken: {text} is missing" if isinstance(error, KeyError) else f"broken: {text}"
