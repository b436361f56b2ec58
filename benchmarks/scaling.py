"""Images a second of one and more processes of this machine, and what a message costs.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py              # half a minute on two idle cores
    OMP_NUM_THREADS=1 python benchmarks/scaling.py --ranks 1 2 4 --steps 5
    OMP_NUM_THREADS=1 python benchmarks/scaling.py --model resnet8 --batch 8 --steps 1   # a try

"strong" shares `--batch` images among the ranks, "weak" gives each rank as many. A rank computes
with one thread. "all-reduce" is the time of one message of all gradients by itself, "step" the
median of `--steps` steps after two that are not counted, efficiency the images a second over those
of the first row times the ranks.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn import functional as F

from resnets import models
from resnets.device import use_bfloat16
from resnets.training.distributed import SINGLE_PROCESS, Message, join

HALF = use_bfloat16("auto", torch.device("cpu"))


def work(rank: int, ranks: int, port: int, args: argparse.Namespace, batch: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    world = join("cpu") if ranks > 1 else SINGLE_PROCESS
    network = models.create(args.model).to(memory_format=torch.channels_last)
    images = torch.randn(batch // ranks, 3, args.size, args.size)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch // ranks,))
    sent: list[Message] = []  # grows by a pass; nobody reads it here
    replica = world.replicate(network, (images[:2],), sent)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, foreach=True)
    buffers = [b for b in network.buffers() if b.is_floating_point()]

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
            logits = replica(images)
        F.cross_entropy(logits.float(), labels).backward()
        world.all_reduce_mean(buffers)
        optimizer.step()
        optimizer.zero_grad()

    gradients = torch.zeros(sum(p.numel() for p in network.parameters()))
    steps, messages = (
        timed(step, args.steps),
        timed(lambda: world.all_reduce_sum(gradients), args.steps),
    )
    if world.is_main:
        row = torch.tensor([steps, messages, gradients.nbytes], dtype=torch.float64)
        torch.save(row, args.result)
    world.leave()


def timed(action, times: int) -> float:
    """Median seconds; the ranks begin together."""
    seconds = []
    for _ in range(times + 2):
        if dist.is_initialized():
            dist.barrier()
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--result", default="/tmp/resnets-scaling.pt", help=argparse.SUPPRESS)
    args = parser.parse_args()

    load = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    print(
        f"{args.model}, {args.size} px, {'bfloat16' if HALF else 'float32'}, "
        f"torch {torch.__version__}, load {load}"
    )
    print("scaling  ranks  batch  step ms  all-reduce ms      MB  images/s  efficiency")
    for kind in ("strong", "weak"):
        base = 0.0
        for ranks in args.ranks:
            batch = args.batch * (ranks if kind == "weak" else 1)
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            torch.multiprocessing.start_processes(
                work, (ranks, port, args, batch), ranks, start_method="fork"
            )
            step, message, size = torch.load(args.result).tolist()
            rate = batch / step
            base = base or rate / ranks
            print(
                f"{kind:7}  {ranks:5}  {batch:5}  {1e3 * step:7.1f}  {1e3 * message:13.2f}  "
                f"{size / 1e6:6.2f}  {rate:8.0f}  {100 * rate / ranks / base:8.0f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
