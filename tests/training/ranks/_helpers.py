"""Ranks for tests, forked from a process that has imported torch and done nothing else.

Importing takes seconds; a process that has computed gradients with threads cannot be forked.
"""

import multiprocessing
import os
import socket
import sys

import pytest
import torch

from resnets.cli.main import main
from resnets.training import distributed
from resnets.training.distributed import SINGLE_PROCESS

if "forkserver" not in multiprocessing.get_all_start_methods():
    pytest.skip("the ranks of a test are forks, which Windows lacks", allow_module_level=True)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__, "resnets.api.training", "resnets.training.loop"])


def start(ranks, work, *rest, patience=None):
    """Start work(world, *rest) in so many processes, as torchrun would, and give them."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        FORKS.Process(target=enter, args=(rank, ranks, port, patience, work, *rest))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def enter(rank, ranks, port, patience, work, *rest):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.RANK_TIMEOUT, distributed.ALIVE_SECONDS = patience or distributed.RANK_TIMEOUT, 2.0
    work(distributed.join("cpu") if ranks > 1 else SINGLE_PROCESS, *rest)


def together(ranks, work, *rest):
    """Run work(world, *rest) in so many processes to the end."""
    for process in (processes := start(ranks, work, *rest)):
        process.join()
    assert [process.exitcode for process in processes] == [0] * ranks


def command(folder, words):
    """Start `resnets` or torchrun in a process group of its own; it prints into folder/log."""
    process = FORKS.Process(target=shell, args=(folder, words))
    process.start()
    return process


def shell(folder, words):
    os.setpgid(0, 0)
    os.chdir(folder)
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with (folder / "log").open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    if words[0] == "torchrun":
        from torch.distributed.run import main as torchrun

        sys.exit(torchrun(words[1:]))
    main(words)
