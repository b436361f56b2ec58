"""The processes of one run: torchrun starts them, PyTorch's DDP and all-reduce join them.

One process is a world of size 1, in which every function here gives back what it was given.
"""

from __future__ import annotations

import datetime
import inspect
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.run import main as torchrun
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from resnets.errors import ResnetsError, UsageError

T = TypeVar("T")
Message = tuple[int, torch.dtype]  # its number of values

CPU = torch.device("cpu")
RESTARTS = 3
STAGE = re.compile(r"(^|\.)layer\d$")  # of a residual network
PATIENCE = datetime.timedelta(minutes=10)  # after which a rank that hangs ends the others
GRACE = 5.0  # seconds in which ranks that lost another find each other


@dataclass(frozen=True)
class World:
    """This process among `size`."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU  # of messages

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_reduce_max(self, numbers: list[int]) -> list[int]:
        """For each place the largest number of any rank."""
        if self.size > 1:
            values = torch.tensor(numbers, device=self.device)
            dist.all_reduce(values, dist.ReduceOp.MAX)
            numbers = values.tolist()
        return numbers

    def all_reduce_mean(self, tensors: list[Tensor]) -> None:
        """Replace each floating tensor by its mean over the ranks, with one message."""
        if self.size > 1 and tensors:
            flat = torch.cat([t.flatten() for t in tensors])
            parts = torch.split(self.all_reduce_sum(flat) / self.size, [t.numel() for t in tensors])
            views = [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]
            torch._foreach_copy_(tensors, views)

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Each rank's value, on every rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def replicate(
        self, network: nn.Module, inputs: Sequence[Any], sent: list[Message]
    ) -> nn.Module:
        """The network whose backward pass averages the gradients over the ranks.

        DDP regroups its messages after the first backward pass. That one is done here, on `inputs`,
        so that the order of the sums, and with it every bit, is the same after a restart; and
        another one, that leaves in `sent` what a pass sends. Later passes append to it.
        """
        if self.size == 1:
            return network
        # Renamed in torch 2.15. `average` does the buffers.
        known = inspect.signature(DistributedDataParallel).parameters
        name = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known)
        options: dict[str, Any] = {name: False}
        replica = DistributedDataParallel(network, **options)
        replica.register_comm_hook(sent, send)
        before = [b.clone() for b in network.buffers()]
        for _ in range(2):
            sent.clear()
            replica(*inputs).sum().backward()
        for buffer, old in zip(network.buffers(), before, strict=True):
            buffer.copy_(old)
        network.zero_grad()
        return replica

    def shard(self, network: nn.Module) -> None:
        """Split the parameters over the ranks: each stage's are whole only while it computes."""
        if self.size > 1:
            mesh = init_device_mesh(self.device.type, (self.size,))
            stages = [m for name, m in network.named_modules() if STAGE.search(name)]
            for module in (*stages, network):
                fully_shard(module, mesh=mesh)

    @contextmanager
    def report_dead_ranks(self) -> Iterator[None]:
        """Where a message fails, raises ResnetsError that names the ranks that do not notice it.

        Those that hang or died are among them. The wait also lets the rank that failed first end
        first, so that its exit code is the run's.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1:
                raise
            store = dist.distributed_c10d._get_default_store()
            try:
                store.append("here", f"{self.rank} ")  # type: ignore[attr-defined]
                time.sleep(2 * GRACE if self.is_main else GRACE)  # it may hold the store
                here = {int(rank) for rank in store.get("here").split()}
            except RuntimeError:
                here = set(range(1, self.size))
            names = ", ".join(str(rank) for rank in range(self.size) if rank not in here)
            if not names:
                raise
            raise ResnetsError(
                f"no answer from rank {names} of {self.size}: {error}\n"
                "The checkpoints are whole; `resnets resume` goes on."
            ) from error

    def leave(self) -> None:
        """End the communication."""
        if self.size > 1:
            dist.destroy_process_group()


SINGLE_PROCESS = World()


def send(sent, bucket):  # type: ignore[no-untyped-def]  # DDP refuses these annotations as text
    """Average gradients over the ranks as DDP does by itself, and remember that they were sent."""
    sent.append((bucket.buffer().numel(), bucket.buffer().dtype))
    return allreduce_hook(None, bucket)  # type: ignore[arg-type]


def accumulating(replica: nn.Module, more: bool) -> AbstractContextManager[None]:
    """While `more` micro-batches follow, gradients add up on each rank without a message."""
    if isinstance(replica, FSDPModule):
        replica.set_requires_gradient_sync(not more)
    if more and isinstance(replica, DistributedDataParallel):
        context: AbstractContextManager[None] = replica.no_sync()
        return context
    return nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is split over the ranks, on each of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a whole tensor, where `like` is split."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def join(device: str = "auto") -> World:
    """Join the processes that torchrun started, with NCCL on GPUs and gloo on processors.

    Raises UsageError for one GPU by number, and where torchrun could not start the ranks again.
    """
    if device.startswith("cuda:"):
        raise UsageError(f"--device {device}: under torchrun each rank has its own; write cuda")
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # PyTorch 2.15 leaves the addresses of the dead processes in the store that all share.
        raise UsageError(
            "--max-restarts would hang: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, "
            "with --rdzv-backend c10d or --standalone"
        )
    own = CPU
    if device != "cpu" and torch.cuda.is_available():
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=PATIENCE)
        here = socket.gethostname()
        ranks = World(0, dist.get_world_size(), own).gather((here, os.getpid()))
        watch_parent([pid for host, pid in ranks if host == here])
    return World(dist.get_rank(), dist.get_world_size(), own)


def watch_parent(ranks: Sequence[int]) -> None:
    """Watch, in a thread, for what a rank that waits for the others would miss.

    When the launcher dies this process stops as by SIGTERM. A signal wakes those `ranks` of this
    machine that were stopped, so that all can end together. POSIX alone has parents that change.
    """
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return
    parent, (heard, told) = os.getppid(), os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def watch() -> None:
        stopping = False
        while True:
            if select.select([heard], [], [], 1.0)[0]:
                stopping |= not {signal.SIGINT, signal.SIGTERM}.isdisjoint(os.read(heard, 64))
                for pid in ranks:
                    with suppress(OSError):
                        os.kill(pid, signal.SIGCONT)
            if os.getppid() != parent and not stopping:
                stopping = True
                os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def launch(ranks: int, arguments: list[str]) -> int:
    """Run `resnets` with these arguments in as many processes of this machine, by torchrun.

    A rank that is killed takes the others with it, and all start again, three times at most; a rank
    that ends by itself with an error ends the run. Returns the exit code.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    words = ["--standalone", f"--nproc-per-node={ranks}", "-m", "--", "resnets", *arguments]
    code = 1
    for _ in range(1 + RESTARTS):
        try:
            torchrun(words)
        except SignalException as stopped:
            return 128 + stopped.sigval
        except ChildFailedError as failed:
            codes = [failure.exitcode for failure in failed.failures.values()]
            # The others lost a message, which is 1, or were ended while they waited.
            killed = [-c for c in codes if c < 0 and c != -signal.SIGTERM]
            if max(codes) > 1 or not killed:
                return max(1, *codes)
            code = 128 + killed[0]
            os.environ.pop("RESNETS_BEGAN", None)  # what was spent is in the checkpoint
        else:
            return 0
    return code
