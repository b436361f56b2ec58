"""kill -9 again and again: half at named points, half at any time; every run must end bit for bit.

    python benchmarks/kills.py --kills 240

It prints one line, or ends with the first difference. The tests do the same with 24.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.training.faults.driver import Driver
from tests.training.faults.kills import POINTS, kill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    points = list(POINTS)
    names = [points[i // 2 % len(points)] if i % 2 else "" for i in range(options.kills)]
    driver, began = Driver(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        assert driver.train(whole) == (0, "")
        runs = kill(driver, whole, Path(folder), names, options.seed)
    driver.close()
    seconds = time.monotonic() - began
    print(
        f"{options.kills} kills in {runs} runs, {seconds:.0f} s: all ended with the same weights, "
        "statistics, averages, moments, log and model file as the run that nothing disturbed"
    )


if __name__ == "__main__":
    main()
