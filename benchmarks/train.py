"""Images a second of a bare training step: the settings that PyTorch offers, and ours.

    python benchmarks/train.py                                          # ResNet-20, 128 of 32 px
    python benchmarks/train.py --model resnet50 --batch 16 --size 224
    python benchmarks/train.py --model resnet8 --batch 8 --rounds 1 --steps 1    # a try

Each row is a process of its own with its network, SGD and one batch; in each round every process
makes `--steps` steps while the others wait, so that what else runs on the machine meets all alike.
The figure is the median over the rounds of a round's median. The stock rows are torchvision's
network where it has one, else ours with its layers called one by one. "ours" is in bfloat16 where
the processor has it, and there alone are the other rows of bfloat16 made by default. `--check`
compares loss and gradients of a step with float64.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from resnets import models
from resnets.device import use_bfloat16
from resnets.models.accelerate import accelerate

HALF = use_bfloat16("auto", torch.device("cpu"))
ROWS = {
    "float32 NCHW": (torch.float32, torch.contiguous_format),
    "float32 NHWC": (torch.float32, torch.channels_last),
    "bfloat16 NHWC": (torch.bfloat16, torch.channels_last),
    "bfloat16 NHWC compile": (torch.bfloat16, torch.channels_last),
    "ours float32": (torch.float32, torch.channels_last),
    "ours": (torch.bfloat16 if HALF else torch.float32, torch.channels_last),
}
HERE = [row for row in ROWS if HALF or not (row.startswith("bfloat16") or row == "ours float32")]


def made(row: str, model: str) -> nn.Module:
    """The network of a row, always with the same weights."""
    torch.manual_seed(0)
    network = models.create(model).train()
    if row.startswith("ours"):
        accelerate(network)
    else:
        stock = getattr(torchvision.models, model, None)
        if stock:
            weights = network.state_dict()
            network = stock().train()
            network.load_state_dict(weights)
    return network


def batch_of(images: int, size: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(images, 3, size, size, generator=draw)
    return x, torch.randint(10, (images,), generator=draw)


def child(pipe: Connection, row: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    dtype, layout = ROWS[row]
    network = made(row, args.model).to(memory_format=layout)
    forward = torch.compile(network) if row.endswith("compile") else network
    images, labels = batch_of(args.batch, args.size)
    images = images.to(memory_format=layout)
    foreach = None if dtype == torch.float32 else True
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=1e-4, foreach=foreach)

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = F.cross_entropy(forward(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - start

    for _ in range(2):
        step()
    pipe.send(None)
    while pipe.recv():
        step()
        pipe.send([step() for _ in range(args.steps)])


def check(args: argparse.Namespace) -> None:
    """Relative errors against float64, of the plain layers in bfloat16 and of ours."""

    def gradients(network: nn.Module, images: Tensor, bfloat16: bool) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(network(images).to(torch.float64), labels)
        loss.backward()
        return loss.detach(), torch.cat([p.grad.double().flatten() for p in network.parameters()])

    images, labels = batch_of(args.batch, args.size)
    ours = made("ours", args.model).to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    found = {"ours": gradients(ours, images, True)}
    plain = made("plain", args.model).to(memory_format=torch.channels_last)
    found["plain"] = gradients(plain, images, True)
    exact = made("plain", args.model).double()
    loss, gradient = gradients(exact, images.double(), False)
    for row, (value, all_of_it) in found.items():
        error = (all_of_it - gradient).norm() / gradient.norm()
        print(f"{row:22} loss {abs(value / loss - 1):8.1e}  gradient {error:8.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", nargs="+", default=HERE, choices=list(ROWS))
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        check(args)
        return

    context = multiprocessing.get_context("spawn")
    pipes = {}
    for row in args.rows:
        pipes[row], other = context.Pipe()
        context.Process(target=child, args=(other, row, args), daemon=True).start()
        other.close()  # so that a child that dies is an error here and not a wait
        pipes[row].recv()
    rounds: dict[str, list[list[float]]] = {row: [] for row in args.rows}
    for _ in range(args.rounds):
        for row, pipe in pipes.items():
            pipe.send(True)
            rounds[row].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)

    times = {row: statistics.median(map(statistics.median, found)) for row, found in rounds.items()}
    stock = min(
        (t for row, t in times.items() if not row.startswith("ours")), default=times[args.rows[0]]
    )
    kind = "bfloat16" if HALF else "float32"
    print(
        f"{args.model}, batch {args.batch}, {args.size} px, ours {kind}, torch {torch.__version__}"
    )
    print(f"{'':22} {'ms':>8} {'least ms':>8} {'images/s':>8} {'of best stock':>13}")
    for row, seconds in times.items():
        least = min(map(min, rounds[row]))
        print(
            f"{row:22} {1e3 * seconds:8.1f} {1e3 * least:8.1f} {args.batch / seconds:8.0f}"
            f" {stock / seconds:13.2f}"
        )
    print(f"load average {os.getloadavg()[0]:.1f} over a minute, {args.threads} threads")


if __name__ == "__main__":
    main()
