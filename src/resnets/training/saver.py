"""When a state is saved: at intervals and at the end, in the background, and only if finite."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from torch import Tensor

from resnets.errors import CheckpointError, DiskError
from resnets.files import resume_command
from resnets.training import checkpoint
from resnets.training.distributed import World
from resnets.training.run import Run
from resnets.training.state import State, TrainProgress, all_finite, floating

SAVE_SECONDS = 30.0  # at the least between checkpoints, so that saving stays under 1 % of a run
MAX_FAILURES = 3  # saves in a row that may fail before the run stops


class Saver:
    """Writes checkpoints of a run in the background, one at a time; rank 0 alone writes."""

    def __init__(self, run: Run, world: World) -> None:
        self.run, self.is_main = run, world.is_main
        self.folder = run.path / "checkpoints"
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None
        self.last_save = 0.0  # when the interval to the next save began
        self.failures_in_a_row = 0
        self.failures: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self.pending is not None and not self.pending.done()

    def due(self, progress: TrainProgress, now: float) -> bool:
        """Whether to save now; not after a step that was left out, to which none should return."""
        free = self.is_main and not self.busy and not progress.skipped_in_a_row
        return free and now - self.last_save > SAVE_SECONDS

    def save(self, state: State, now: float) -> bool:
        """Copy the state and write it in the background, after the one before; by all ranks.

        False for a state that is not finite, of which nothing is kept.
        """
        tensors = state.tensors()
        if not all_finite(floating(tensors.values())):
            return False
        self.last_save = now
        if self.is_main:
            state.progress.logs = self.run.log_digests()
            self.write(tensors, state.progress)
        return True

    def write(self, tensors: Mapping[str, Tensor], progress: TrainProgress) -> None:
        """Copy the tensors, so that the next step cannot change them, and write the copies."""
        self.wait()
        copies = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
        self.pending = self.thread.submit(self._write, copies, replace(progress))

    def _write(self, tensors: Mapping[str, Tensor], progress: TrainProgress) -> None:
        try:
            checkpoint.write(self.folder, tensors, progress)
            self.failures_in_a_row = 0
        except (OSError, CheckpointError) as error:
            reason = getattr(error, "strerror", None) or error
            self.failures.append(f"a checkpoint could not be written to {self.folder}: {reason}")
            self.failures_in_a_row += 1

    def wait(self) -> None:
        """Wait until the disk has the last checkpoint."""
        if self.pending is not None:
            self.pending.result()

    def new_failures(self, last: bool = False) -> list[str]:
        """What failed since the last call, for the user; `last` waits for the checkpoint first.

        Raises DiskError after three failures in a row, or for one that no other save follows.
        """
        if last:
            self.wait()
        failures, self.failures = self.failures, []
        allowed = 0 if last else MAX_FAILURES - 1
        if failures and self.failures_in_a_row > allowed:
            raise DiskError(
                f"{failures[-1]}\nThe earlier checkpoints are intact; free some space, then "
                f"{resume_command(self.run.path)}."
            )
        return [f"{failure}; the earlier ones are whole, training goes on" for failure in failures]
