"""What is wrong with a data set, and what was assumed of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resnets.errors import DataErrors, Problem


@dataclass(slots=True)
class Issues:
    """Problems and notes, collected while a data set is read.

    Training refuses a data set with `errors`. `warnings` belong to one place in data that is used;
    `notes` to the whole, each with a count and an example.
    """

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _counted: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def error(self, place: object, reason: str) -> None:
        self.errors.append((str(place), reason))

    def warn(self, place: object, reason: str) -> None:
        self.warnings.append((str(place), reason))

    def note(self, what: str, examples: Sequence[object], origin: object = "") -> None:
        """Note how many examples of something there are, and the first; nothing of none."""
        if examples:
            start = f"{origin}: " if origin else ""
            self.notes.append(f"{start}{len(examples):,} {what}, first {examples[0]}")

    def count(self, what: str, place: str) -> None:
        """Count something that occurs in many places, for one note of them all."""
        self._counted[what].append(place)

    def note_counts(self) -> None:
        """Turn what was counted into notes."""
        for what, places in self._counted.items():
            self.note(what, places)
        self._counted.clear()

    def to_error(self, data: Path, unreadable: Iterable[tuple[Path, str]] = ()) -> DataErrors:
        """The exception that has all of them."""
        notes = [(str(data), note) for note in self.notes]
        files = [(str(path), f"unreadable: {reason}") for path, reason in unreadable]
        return DataErrors(data, self.errors, [*notes, *self.warnings, *files])
