"""Whether the fused step learns what the plain one learns: CIFAR-10, some seeds, a short schedule.

    resnets data get cifar10
    python benchmarks/accuracy.py --steps 600 --seeds 3
    python benchmarks/accuracy.py --model resnet8 --steps 4 --seeds 1     # a try

Trains quick-cifar10 with a shortened schedule, in turns with the fused kernels and with PyTorch's
layers, and prints the test error of each run, the means, and the time of all their steps.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import resnets
from resnets.ops import cpu_fused


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="resnet20")
    arguments = parser.parse_args()
    fits, errors, seconds = cpu_fused.fits, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for what, choice in (("fused", fits), ("plain", lambda *_: False)):
                cpu_fused.fits = choice
                outcome = resnets.train(
                    "cifar10",
                    recipe="quick-cifar10",
                    model=arguments.model,
                    seed=seed,
                    run=Path(folder) / f"{what}-{seed}",
                    overrides={"steps": arguments.steps, "eval_every": 1000},
                )
                errors.setdefault(what, []).append(100 * outcome.result.error)
                seconds.setdefault(what, []).append(outcome.seconds)
                print(f"{what} seed {seed}: {errors[what][-1]:.2f} %, {outcome.seconds:.0f} s")
    for what, values in errors.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(
            f"{what}: {statistics.mean(values):.2f} +- {spread:.2f} % test error, "
            f"{statistics.mean(seconds[what]):.0f} s of training with one evaluation"
        )


if __name__ == "__main__":
    main()
