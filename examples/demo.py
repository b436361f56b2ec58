"""The main job in a minute and a half: train on images, test, use; and the papers' phenomenon.

`make demo` runs it. Everything it does is a command too.
"""

import shutil
import time
from dataclasses import replace
from pathlib import Path

from PIL import Image

import resnets
from resnets.config.recipe import Augment
from resnets.config.recipes import digits
from resnets.data import dataset
from resnets.training.clock import ProgressReport

RUNS = Path("runs/demo")


def show(progress: ProgressReport) -> None:
    """One line an evaluation."""
    if progress.train_error is not None:
        print(
            f"  epoch {progress.epoch:4.0f}   training error {100 * progress.train_error:5.2f} %"
            f"   {progress.images_per_second:,.0f} images/s",
            flush=True,
        )


def main() -> None:
    """Train, evaluate, predict; then plain against residual at 56 layers."""
    began = time.monotonic()
    shutil.rmtree(RUNS, ignore_errors=True)

    print("1. resnets train digits", flush=True)
    outcome = resnets.train("digits", epochs=35, run=RUNS / "digits", on_progress=show)

    print(f"\n2. resnets evaluate {outcome.run} digits")
    result = resnets.evaluate(outcome.run, "digits")
    low, high = result.interval
    print(
        f"  accuracy on the test half: {100 * result.top1:.2f} % "
        f"(95 % interval {100 * low:.2f} to {100 * high:.2f}, {result.images} images)"
    )

    print(f"\n3. resnets predict {outcome.run} IMAGES")
    test = dataset.load("digits").test
    files = []
    for k in range(5):
        files.append(RUNS / f"is-a-{test.labels[k]}-{k}.png")
        Image.fromarray(test.images[k, 0].numpy()).save(files[-1])
    for guess in resnets.predict(outcome.run, files):
        print(f"  {guess.file}: {guess.classes[0]} ({100 * guess.probabilities[0]:.1f} %)")

    print("\n4. Why residual: 56 layers, 110 steps, the same rate; only the shortcuts differ")
    twins = replace(digits(), size=12, steps=110, ema=0.0, augment=Augment(), eval_every=1e9)
    twins = replace(twins, precision="float32")  # the same on every processor, but for rounding
    for name in ("plain56", "resnet56"):
        twin = resnets.train("digits", model=name, recipe=twins, run=RUNS / name)
        print(f"  {name:8} test error {100 * twin.result.error:5.1f} %", flush=True)
    print(f"\n{time.monotonic() - began:.0f} s in all; the runs are in {RUNS}/")


if __name__ == "__main__":
    main()
