"""Runs that a signal stops."""

from resnets.training.loop import fit
from resnets.training.run import Run
from resnets.training.signals import SignalFlags


def run_to(folder, plan, stop_after=None):
    """Train in a folder, until a signal comes after a step; the run."""
    run = Run(folder)
    if not folder.exists():
        run.create()
    stop = SignalFlags()
    for progress in fit(run, plan, stop):
        if stop_after is not None and progress.step >= stop_after:
            stop.signal = 15
    return run
