"""What recomputation saves: peak memory and time of a training step of the two deepest networks.

    python benchmarks/memory.py                                  # about 20 GB and some minutes
    python benchmarks/memory.py --batch 4 --segment 0 16      # a try
    python benchmarks/memory.py --precision bfloat16             # as training runs where it can

Each row is a process of its own, so that the peak of one does not hide in that of another. "peak"
is the greatest resident size less the size before the first step (on CUDA what was allocated);
"saved" is what autograd keeps between forward and backward, each storage counted once, without
the parameters. The time is the least of `--steps` steps after one that is not counted. float32 is
in PyTorch's own layout with its own layers, bfloat16 in channels_last with the fused ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from resnets import models
from resnets.models.accelerate import accelerate
from resnets.training.memory import peak_bytes as resident


def measure(
    name: str, segment: int, precision: str, batch: int, size: int, steps: int, device: str
) -> None:
    """Prints one row as JSON."""
    network = models.create(name, activation_checkpointing=segment).to(device)
    images = torch.randn(batch, 3, size, size, device=device)
    half = precision == "bfloat16"
    if half:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
        accelerate(network)

    def loss_of() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            logits = network(images)
        return F.cross_entropy(logits.float(), labels)

    labels = torch.randint(10, (batch,), device=device)
    cuda = torch.device(device).type == "cuda"
    before = resident(torch.device("cpu")) or 0

    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    storages: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = loss_of()
    saved = sum(storages.values())
    loss.backward()
    del loss

    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        loss_of().backward()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = (resident(images.device) or 0) - (0 if cuda else before)
    print(json.dumps({"peak": peak, "saved": saved, "seconds": min(seconds)}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["resnet1202", "preresnet1001"])
    parser.add_argument("--segment", nargs="+", type=int, default=[0, 8, 16, 24])
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        rest = (args.precision, args.batch, args.size, args.steps, args.device)
        measure(args.model[0], args.segment[0], *rest)
        return

    print(
        f"batch {args.batch}, {args.size} px, {args.precision}, {args.device}, "
        f"torch {torch.__version__}"
    )
    print(f"{'network':16} {'segment':>7} {'peak MiB':>9} {'saved MiB':>9} {'s / step':>9}")
    for model in args.model:
        for segment in args.segment:
            case = ["--model", model, "--segment", str(segment), "--child"]
            keys = ("precision", "batch", "size", "steps", "device")
            rest = [f"--{key}={getattr(args, key)}" for key in keys]
            run = subprocess.run(
                [sys.executable, __file__, *case, *rest], stdout=subprocess.PIPE, text=True
            )
            if run.returncode:
                print(f"{model:16} {segment:7} failed with code {run.returncode}")
                continue
            row = json.loads(run.stdout)
            print(
                f"{model:16} {segment:7} {row['peak'] / 2**20:9.0f} {row['saved'] / 2**20:9.0f}"
                f" {row['seconds']:9.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
