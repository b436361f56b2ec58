"""kill -9 at named points and at random times, and what must be left."""

import random
from dataclasses import replace
from pathlib import Path

from faults.driver import Driver, Fault, results
from resnets.training import checkpoint

STATE, ASIDE = "checkpoints/*/state.safetensors", "checkpoints/*.tmp"
POINTS = {
    "before the file is opened": Fault("create", where=STATE),
    "in the middle of the write": Fault("write", do="TORN", where=STATE),
    "before the file is synced": Fault("fsync", where="checkpoints/*/state.json"),
    "before the folder is renamed": Fault("rename", where=ASIDE),
    "before the rename is synced": Fault("fsync", where="checkpoints"),
    "before an old one is deleted": Fault("unlink", where="checkpoints/*/state.*"),
    "while an old one is deleted": Fault("rmdir", where="checkpoints/*"),
    "in an evaluation": Fault("evaluated batch"),
    "while the result is written": Fault("write", do="TORN", where=".model.safetensors*"),
    "while a row is logged": Fault("write", do="TORN", where="metrics.jsonl"),
    "before the first checkpoint": Fault("mkdir", where=ASIDE),
    "in a step beside the writer": Fault("step while writing"),
}
ONCE = {"while the result is written", "before the first checkpoint"}
SECONDS = (0.02, 0.8)  # a run's length, about


def fault(rng: random.Random, name: str = "") -> Fault:
    """A kill at that point, at one of its first passings, or else at any time."""
    if not name:
        return Fault("clock", rng.uniform(*SECONDS))
    return replace(POINTS[name], n=1 if name in ONCE else rng.randint(1, 6))


def chain(driver: Driver, run: Path, faults: list[Fault]) -> int:
    """Train with one fault after another, then to the end; how many of them killed the run."""
    killed, begun = 0, False
    for each in [*faults, None]:
        if (run / "result.json").exists():
            return killed
        code, told = driver.train(run, *([each] if each else []))
        assert code in (0, -9), told
        assert not told
        killed += code == -9
        if code == 0:
            return killed
        there = checkpoint.finished(run / "checkpoints")
        begun = begun or bool(there)
        assert not begun or any(loads(path) for path in there[-2:])
    raise AssertionError("the run never ended")


def loads(path: Path) -> bool:
    """Whether a checkpoint is whole."""
    try:
        checkpoint.read(path)
    except checkpoint.CheckpointError:
        return False
    return True


def differences(run: Path, whole: Path) -> list[str]:
    """What differs between two finished runs."""
    mine, theirs = results(run), results(whole)
    return [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
