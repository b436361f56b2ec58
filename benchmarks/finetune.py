"""Methods for some hundred photographs, each by its command, with fastai's fine-tuning beside them.

    python benchmarks/finetune.py DATA WEIGHTS                      # every row of ours
    python benchmarks/finetune.py DATA WEIGHTS --fastai PYTHON      # a Python that has fastai too
    python benchmarks/finetune.py DATA WEIGHTS --rows default --budgets 3m 15m --seeds 3

DATA has train/, val/ and test/ folders of class folders. WEIGHTS is a name, file or run, as of
`--weights`. Each row is a process of its own, one after another; with several seeds the rows take
turns, so that what else runs on the machine meets all alike. Written are the test accuracy with its
95 % interval, seconds of wall and of processor time, and the most memory: a line of JSON for each
run in OUT/rows.jsonl, and a table.

fastai's row is its own `fine_tune`, with its defaults, on our network with the same weights, mean
and deviation: one epoch of the new classifier, then all layers with one-cycle rates, 1/100 at the
input. Its normalisation stays as in the weights (its callback BnFreeze), since statistics of
batches would destroy weights that have theirs folded. Nothing is chosen by the test images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from resnets.evaluation.intervals import wilson_interval

TRAIN = ["resnets", "train", "DATA", "--workers", "1", "--run", "RUN", "--seed", "SEED"]
FROM = [*TRAIN, "--weights", "WEIGHTS"]
NEW_HEAD = ["--set", "head=random", "--set", "select=best", "--set", "freeze_backbone_epochs=2"]
ROWS = {
    "linear probe": ["resnets", "probe", "WEIGHTS", "DATA", "--train-only", "--json"],
    "linear probe, mirrored views": [
        *["resnets", "probe", "WEIGHTS", "DATA", "--train-only", "--view", "flip", "--json"]
    ],
    "k-NN": ["resnets", "probe", "WEIGHTS", "DATA", "--knn", "--train-only", "--json"],
    "frozen start, then all layers": [*FROM, *NEW_HEAD, "--lr", "0.003"],
    "all layers at once": [*FROM, "--set", "head=random", "--set", "freeze_stages=1"],
    "default": FROM,
    "random weights": [*TRAIN, "--weights", "none"],
}


def main() -> None:
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.peer_seed is not None:
        print(json.dumps(fastai_row(args)))
        return
    jobs = [(name, ROWS[name], "") for name in args.rows]
    jobs += [(f"default, {budget}", [*FROM, "--budget", budget], budget) for budget in args.budgets]
    if args.fastai:
        peer = [args.fastai, __file__, "DATA", "WEIGHTS", "--epochs", f"{args.epochs:g}"]
        jobs.append(("fastai fine_tune", [*peer, "--peer-seed", "SEED"], ""))
    rows = []
    for seed in range(args.seeds):
        for name, words, _ in jobs:
            row = {"method": name, "seed": seed} | measure(name, words, seed, args)
            with (args.out / "rows.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
            rows.append(row)
    print_table(rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument(
        "--budgets", nargs="*", default=[], help="budgets of the default, as 3m 15m"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fastai", help="a Python that has fastai and resnets")
    parser.add_argument("--epochs", type=float, default=10, help="of fastai after its frozen one")
    parser.add_argument(
        "--set", action="append", default=[], help="a field for each of our trainings"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--peer-seed", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(name: str, words: Sequence[str], seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run a row's command, and read what it reached and took."""
    folder = args.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    values = {
        "DATA": str(args.data),
        "WEIGHTS": args.weights,
        "SEED": str(seed),
        "RUN": str(folder),
    }
    command = [values.get(word, word) for word in words]
    if "train" in command:
        command += [word for field in args.set for word in ("--set", field)]
    if command[0] == "resnets":
        command[:1] = [sys.executable, "-m", "resnets"]
    began, log = time.monotonic(), args.out / f"{folder.name}.log"
    cache = {"RESNETS_DATA": str(args.out / f"{folder.name}.cache")}  # features are computed anew
    with log.open("w") as err, (args.out / f"{folder.name}.out").open("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | cache)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        out.seek(0)
        text = out.read()
    if status:
        raise SystemExit(f"{name}: {' '.join(command)}\n{log.read_text()[-2000:]}")
    row = {
        "seconds": round(seconds, 1), "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "memory_mib": used.ru_maxrss // 1024, "command": " ".join(command),
    }  # fmt: skip
    return row | read_figures(folder, text)


def read_figures(folder: Path, text: str) -> dict[str, Any]:
    """Accuracy and interval of a run folder, or of the JSON that a command printed."""
    if (folder / "result.json").exists():
        result = json.loads((folder / "result.json").read_text())
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
        figures = {"accuracy": result["top1"], "interval_95": result["top1_interval_95"]}
        return figures | {"step": result.get("selected_step", steps[-1]), "steps": steps[-1]}
    printed = json.loads(text[text.index("{") :])
    if "accuracy" in printed:
        return printed
    best = printed["scores"][0]
    return {"accuracy": best["accuracy"], "interval_95": best["interval_95"]}


def fastai_row(args: argparse.Namespace) -> dict[str, Any]:
    """fastai's `fine_tune` on the same network, weights and images; what it reached."""
    from fastai.callback.training import BnFreeze
    from fastai.vision.all import (
        ImageDataLoaders,
        Learner,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        params,
        set_seed,
    )

    import resnets

    set_seed(args.peer_seed, reproducible=True)
    model = resnets.load(args.weights)
    see, network = model.metadata.preprocess, model.network
    changes = aug_transforms(size=see.size, min_scale=0.75)
    changes.append(Normalize.from_stats(list(see.mean), list(see.std)))
    loaders = ImageDataLoaders.from_folder(
        args.data, train="train", valid="val", bs=32, num_workers=0, item_tfms=Resize(460),
        batch_tfms=changes,
    )  # fmt: skip
    network.fc = torch.nn.Linear(network.fc.in_features, len(loaders.vocab))
    early = [network.conv1, network.bn1, network.layer1, network.layer2]
    late = [network.layer3, network.layer4]
    learner = Learner(
        loaders, network, metrics=accuracy, cbs=BnFreeze(),
        splitter=lambda m: [
            [p for part in early for p in params(part)], [p for part in late for p in params(part)],
            params(m.fc),
        ],
    )  # fmt: skip
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(int(args.epochs))
    files = sorted((args.data / "test").glob("*/*"))
    predictions, _ = learner.get_preds(dl=loaders.test_dl(files))
    names = [loaders.vocab[k] for k in predictions.argmax(1).tolist()]
    right = torch.tensor(
        [name == file.parent.name for name, file in zip(names, files, strict=True)]
    )
    return {"accuracy": float(right.double().mean()), "interval_95": wilson_interval(right)}


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """The rows as a table of Markdown, seeds together."""
    print("| method | test accuracy, 95 % interval | wall s | processor s | MiB |")
    print("|---|---|---|---|---|")
    for name in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == name]
        accuracies = ", ".join(f"{100 * row['accuracy']:.1f}" for row in of_method)
        low, high = of_method[0]["interval_95"]
        mean = {key: sum(row[key] for row in of_method) / len(of_method) for key in TOOK}
        print(
            f"| {name} | {accuracies} % ({100 * low:.1f} to {100 * high:.1f}) | "
            + " | ".join(f"{value:,.0f}" for value in mean.values())
            + " |"
        )


TOOK = ("seconds", "cpu_seconds", "memory_mib")

if __name__ == "__main__":
    main()
