"""The processes of one run: torchrun starts them, DDP and all-reduce keep their states equal.

One process is a world of size 1, in which every function here returns what it was given.
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
Message = tuple[int, torch.dtype]  # the number of its values, and their type

CPU = torch.device("cpu")
RESTARTS = 3
LAUNCH_TIME = "RESNETS_LAUNCH_TIME"  # variable in which `launch` passes its time to the ranks
RESIDUAL_STAGE = re.compile(r"(^|\.)layer\d$")  # of a residual network
RANK_TIMEOUT = datetime.timedelta(minutes=10)  # after which a rank that hangs ends the others
ALIVE_SECONDS = 5.0  # seconds in which ranks that lost another report that they are alive


@dataclass(frozen=True)
class World:
    """This process among `size`."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU  # of what is sent

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_reduce_max(self, numbers: list[int]) -> list[int]:
        """The element-wise maximum over the ranks."""
        if self.size > 1:
            values = torch.tensor(numbers, device=self.device)
            dist.all_reduce(values, dist.ReduceOp.MAX)
            numbers = values.tolist()
        return numbers

    def all_reduce_mean(self, tensors: list[Tensor]) -> None:
        """Replace each floating tensor by its mean over the ranks, with one message."""
        if self.size > 1 and tensors:
            total = self.all_reduce_sum(torch.cat([t.flatten() for t in tensors]))
            means = torch.split(total / self.size, [t.numel() for t in tensors])
            shaped = [mean.view_as(t) for mean, t in zip(means, tensors, strict=True)]
            torch._foreach_copy_(tensors, shaped)

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Each rank's value, on every rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def replicate(
        self, network: nn.Module, inputs: Sequence[Any], sent: list[Message]
    ) -> nn.Module:
        """The network in DDP, whose backward pass averages the gradients over the ranks.

        DDP groups its messages anew after the first backward pass. That pass is done here, on
        `inputs`, so that the order of the sums, and with it every bit, is the same after a restart;
        then another, after which `sent` lists what a pass sends. Later passes append to it.
        """
        if self.size == 1:
            return network
        # Renamed in torch 2.15. `all_reduce_mean` does the buffers.
        known = inspect.signature(DistributedDataParallel).parameters
        name = next(n for n in ("forward_sync_buffers", "broadcast_buffers") if n in known)
        options: dict[str, Any] = {name: False}
        replica = DistributedDataParallel(network, **options)
        replica.register_comm_hook(sent, average_and_record)
        before = [b.clone() for b in network.buffers()]
        for _ in range(2):
            sent.clear()
            replica(*inputs).sum().backward()
        for buffer, old in zip(network.buffers(), before, strict=True):
            buffer.copy_(old)
        network.zero_grad()
        return replica

    def shard(self, network: nn.Module) -> None:
        """Shard the parameters over the ranks: a stage's are whole only while it computes."""
        if self.size > 1:
            mesh = init_device_mesh(self.device.type, (self.size,))
            stages = [m for name, m in network.named_modules() if RESIDUAL_STAGE.search(name)]
            for module in (*stages, network):
                fully_shard(module, mesh=mesh)

    @contextmanager
    def report_dead_ranks(self) -> Iterator[None]:
        """Where communication fails, raise ResnetsError that names the ranks that do not answer.

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
                store.append("alive", f"{self.rank} ")  # type: ignore[attr-defined]
                # Rank 0 may hold the store.
                time.sleep(2 * ALIVE_SECONDS if self.is_main else ALIVE_SECONDS)
                alive = {int(rank) for rank in store.get("alive").split()}
            except RuntimeError:
                alive = set(range(1, self.size))
            dead = ", ".join(str(rank) for rank in range(self.size) if rank not in alive)
            if not dead:
                raise
            raise ResnetsError(
                f"rank {dead} of {self.size} does not respond: {error}\n"
                "The checkpoints are whole; continue with `resnets resume`."
            ) from error

    def leave(self) -> None:
        """End the communication."""
        if self.size > 1:
            dist.destroy_process_group()


SINGLE_PROCESS = World()


def average_and_record(sent, bucket):  # type: ignore[no-untyped-def]  # DDP refuses these annotations as text
    """Average gradients over the ranks as DDP does by default, and list the message."""
    sent.append((bucket.buffer().numel(), bucket.buffer().dtype))
    return allreduce_hook(None, bucket)  # type: ignore[arg-type]


def accumulating(replica: nn.Module, more: bool) -> AbstractContextManager[None]:
    """While `more` micro-batches follow, add gradients up on each rank and send nothing."""
    if isinstance(replica, FSDPModule):
        replica.set_requires_gradient_sync(not more)
    if more and isinstance(replica, DistributedDataParallel):
        context: AbstractContextManager[None] = replica.no_sync()
        return context
    return nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that is sharded over the ranks, on each of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of a whole tensor, where `like` is sharded."""
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
        raise UsageError(f"--device {device}: under torchrun each rank has its own GPU; write cuda")
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # PyTorch 2.15 leaves the addresses of the dead processes in the store that all share.
        raise UsageError(
            "--max-restarts would hang: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun, "
            "with --rdzv-backend c10d or --standalone"
        )
    rank_device = CPU
    if device != "cpu" and torch.cuda.is_available():
        rank_device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(rank_device)
    if not dist.is_initialized():
        backend = "nccl" if rank_device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=RANK_TIMEOUT)
        this_host = socket.gethostname()
        processes = World(0, dist.get_world_size(), rank_device).gather((this_host, os.getpid()))
        watch_parent([pid for host, pid in processes if host == this_host])
    return World(dist.get_rank(), dist.get_world_size(), rank_device)


def watch_parent(ranks: Sequence[int]) -> None:
    """Watch, in a thread, for what a rank that waits for the others would miss.

    When the launcher dies this process stops as by SIGTERM. A signal wakes those processes of
    `ranks`, on this machine, that were stopped, so that all can end together. On POSIX only.
    """
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return
    parent, (reader, writer) = os.getppid(), os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        stopping = False
        while True:
            if select.select([reader], [], [], 1.0)[0]:
                stopping |= not {signal.SIGINT, signal.SIGTERM}.isdisjoint(os.read(reader, 64))
                for pid in ranks:
                    with suppress(OSError):
                        os.kill(pid, signal.SIGCONT)
            if os.getppid() != parent and not stopping:
                stopping = True
                os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def launch_time(otherwise: float) -> float:
    """When `launch` started this rank, at the first call; `otherwise` in any other process."""
    return float(os.environ.pop(LAUNCH_TIME, otherwise))


def launch(ranks: int, arguments: list[str], began: float) -> int:
    """Run `resnets` with these arguments in that many processes of this machine, by torchrun.

    When a rank is killed all start again, three times at most; a rank that ends by itself with an
    error ends the run. A budget counts from `began`, a time.monotonic() of this process, which on a
    machine is that of every process. Returns the exit code.
    """
    os.environ[LAUNCH_TIME] = str(began)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    command = ["--standalone", f"--nproc-per-node={ranks}", "-m", "--", "resnets", *arguments]
    code = 1
    for _ in range(1 + RESTARTS):
        try:
            torchrun(command)
        except SignalException as stopped:
            return 128 + stopped.sigval
        except ChildFailedError as failed:
            codes = [failure.exitcode for failure in failed.failures.values()]
            # The others lost their connection, which is 1, or were ended while they waited.
            killed = [-c for c in codes if c < 0 and c != -signal.SIGTERM]
            if max(codes) > 1 or not killed:
                return max(1, *codes)
            code = 128 + killed[0]
            os.environ.pop(LAUNCH_TIME, None)  # what was spent is in the checkpoint
        else:
            return 0
    return code
