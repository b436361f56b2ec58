"""kill -9 at named points and at random times, and what must be left."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

from resnets.training import checkpoint
from tests.training.faults.driver import Driver, Fault, results

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


def kill(driver: Driver, whole: Path, folder: Path, names: list[str], seed: int) -> int:
    """Kill at each of these points, "" for any time, up to five times in a run.

    Returns the number of runs, of which each ended as `whole` did. A name leaves the list when its
    kill came; a run that ended before it is followed by another.
    """
    rng, runs = random.Random(seed), 0
    rng.shuffle(names)
    while names:
        run = folder / f"run-{runs}"
        begun = False
        for name in names[: rng.randint(1, 5)]:
            code, told = driver.train(run, fault(rng, name))
            assert (code, told) in ((0, ""), (-9, "")), told
            if code == 0:
                break
            names.remove(name)
            there = checkpoint.list_finished(run / "checkpoints")
            begun = begun or bool(there)
            assert not begun or any(loads(path) for path in there), name
        if not (run / "result.json").exists():
            assert driver.train(run) == (0, "")
        assert differences(run, whole) == []
        shutil.rmtree(run)
        runs += 1
    return runs


def fault(rng: random.Random, name: str) -> Fault:
    """A kill at one of the first passings of a point, or at any time of about a run's length."""
    if not name:
        return Fault("clock", rng.uniform(0.02, 0.8))
    return replace(POINTS[name], n=1 if name in ONCE else rng.randint(1, 6))


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
