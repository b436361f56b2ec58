"""What a run of five minutes costs beside its steps: start-up, averaging, checks, saves, the log.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --times 1 --batch 8    # a try

ResNet-20 on images of CIFAR's size (noise: what they show costs nothing), batch 128. Each part is
timed by itself; the sum is what a run of 300 s would pay, with a save each 30 s and a row an epoch.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from resnets.config.recipes import quick_cifar10
from resnets.data.dataset import Source, Split
from resnets.training.resolve import resolve
from resnets.training.run import Run
from resnets.training.saver import SAVE_SECONDS, Saver
from resnets.training.state import TrainProgress, all_finite, ema_update, flat_view, floating
from resnets.training.step import Step

RUN = 300.0
PARSER = argparse.ArgumentParser(description=__doc__)
PARSER.add_argument("--times", type=int, default=15, help="that each is timed")
PARSER.add_argument("--batch", type=int, default=128)
OPTIONS = PARSER.parse_args()


def median(function):
    function()
    seconds = []
    for _ in range(OPTIONS.times):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main():
    torch.manual_seed(0)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import resnets.training.runner"], check=True)
    importing = time.perf_counter() - began

    train = Split(
        torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8), torch.arange(50_000) % 10
    )
    source = Source(
        name="noise", channels=3, size=32, digest="", classes=tuple("abcdefghij"), train=train,
        mean=(0.5,) * 3, std=(0.25,) * 3,
    )  # fmt: skip
    plan = resolve(
        replace(quick_cifar10(), monitor="val", batch=OPTIONS.batch), source, torch.device("cpu"), 0
    )
    began = time.perf_counter()
    state = plan.start()
    step = Step(plan, state)
    stream = plan.batches(state.progress)
    step.update(next(stream))  # compiles the kernels where they are not there yet
    starting = time.perf_counter() - began

    whole = median(lambda: step.update(next(stream)))
    averaging = median(lambda: ema_update(step.average, step.current, 0.99))
    grads = [p.detach() for p in step.parameters]
    checking = median(lambda: all_finite([*map(flat_view, grads), *floating(step.buffers)]))
    checking += median(lambda: all_finite(step.learned))

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        writer = Saver(run, plan.world)
        blocked, written = [], []
        for k in range(7):
            progress = TrainProgress(**{**asdict(state.progress), "step": k})
            began = time.perf_counter()
            writer.write(state.tensors(), progress)
            blocked.append(time.perf_counter() - began)
            writer.wait()
            written.append(time.perf_counter() - began)
        # A save while steps run: what the steps lose.
        beside = []
        for k in range(7, 12):
            began = time.perf_counter()
            writer.write(state.tensors(), TrainProgress(**{**asdict(state.progress), "step": k}))
            step.update(next(stream))
            beside.append(time.perf_counter() - began - whole)
            writer.wait()
        logging = median(lambda: run.append("metrics.jsonl", {"step": 1, "loss": 0.5}))

    steps, saves, rows = RUN / whole, RUN / SAVE_SECONDS, RUN / whole * OPTIONS.batch / 50_000
    parts = {
        "import of torch and all": importing,
        "state, first step": starting - whole,
        "averaging": steps * averaging,
        "checks that all is finite": steps * checking,
        "saves": saves * statistics.median(beside),
        "rows of the log": rows * 2 * logging,
    }
    figures = {
        "a step": whole,
        "averaging in it": averaging,
        "checks in it": checking,
        "a save until training goes on": statistics.median(blocked),
        "a save until it is on disk": statistics.median(written),
        "a step and a save beside it, longer by": statistics.median(beside),
        "the same, the worst": max(beside),
    }
    for what, seconds in figures.items():
        print(f"{what:>38}  {1000 * seconds:7.2f} ms")
    for what, seconds in parts.items():
        print(f"{what:>28}  {seconds:6.2f} s  {100 * seconds / RUN:5.2f} %")
    total = sum(parts.values())
    print(f"{'together':>28}  {total:6.2f} s  {100 * total / RUN:5.2f} % of {RUN:.0f} s")


if __name__ == "__main__":
    main()
