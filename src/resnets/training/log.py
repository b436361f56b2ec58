"""What a run writes about itself while it trains: rows of figures, notes, unreadable files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from resnets.errors import DataError, quantify
from resnets.training.plan import Plan
from resnets.training.run import Run


class Log:
    """metrics.jsonl, timing.jsonl, notes.jsonl and TensorBoard's events, all written by rank 0.

    Each rank lists the images that it cannot read: rank 0 in bad_files.csv. Raises DataError, as
    `add_unreadable` does, when more than the allowed share of the images is unreadable.
    """

    def __init__(self, run: Run, plan: Plan, step: int, notes: list[str]) -> None:
        self.run, self.plan, self.notes = run, plan, notes
        self.is_main, folder = plan.world.is_main, run.path / "tensorboard"
        self.write_events = open_events(folder, step, notes) if self.is_main else None
        self.unreadable: dict[str, str] = {}
        self.add_unreadable(plan.source.unreadable)

    def write_row(self, row: Mapping[str, float], images_per_second: float) -> None:
        """Add the figures of an evaluation. Raises DiskError."""
        if self.write_events is None:
            return
        self.run.append("metrics.jsonl", row)
        self.write_events(row)
        if images_per_second:  # nothing was measured yet before the first step
            timing = {"step": row["step"], "images_per_second": round(images_per_second, 1)}
            self.run.append("timing.jsonl", timing)

    def write_notes(self, step: int) -> tuple[str, ...]:
        """Add the notes since the last call, and return them. Raises DiskError."""
        notes = tuple(self.notes)
        if self.is_main:
            for note in notes:
                self.run.append("notes.jsonl", {"step": step, "note": note})
        self.notes.clear()
        return notes

    def add_unreadable(self, files: Iterable[tuple[Path, str]]) -> None:
        """List further images that cannot be read, each with the reason."""
        new = {str(path): reason for path, reason in files}
        if not new:
            return
        self.unreadable |= new
        reasons, source, rank = self.unreadable, self.plan.source, self.plan.world.rank
        name = f"bad_files-{rank}.csv" if rank else "bad_files.csv"
        self.run.write_csv(name, ("file", "reason"), sorted(reasons.items()))
        if len(reasons) > self.plan.recipe.max_unreadable * source.files:
            first, reason = next(iter(reasons.items()))
            count = quantify(len(reasons), f"of {source.files} images are unreadable")
            raise DataError(
                f"{count}, first {first}: {reason}\n"
                f"All are listed in {name}. Repair them, or allow more: --set max_unreadable=0.1"
            )


def open_events(folder: Path, step: int, notes: list[str]) -> Callable[[Mapping[str, float]], None]:
    """A function that writes a row for TensorBoard; it does nothing without that package.

    A disk that fails, or a name that the locale cannot encode, costs the events only, which is
    noted: the run goes on while metrics.jsonl can be written. Events after `step`, which a resumed
    run will write again, are hidden.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder), purge_step=step + 1)
    except ImportError:
        return lambda row: None
    except (OSError, UnicodeError) as error:
        notes.append(f"there will be no events for TensorBoard in {folder}: {error}")
        return lambda row: None

    def write(row: Mapping[str, float]) -> None:
        with suppress(OSError, UnicodeError):
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name, value, row["step"])
            writer.flush()

    return write
