import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The same examples on every machine: a change is judged by itself, not by chance.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # Workers of pytest-xdist on as many cores: more threads than cores make everything crawl.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture
def shared() -> Path:
    """The folder of real data and other people's checkpoints, for the slow checks."""
    folder = os.environ.get("RESNETS_SHARED")
    path = Path(folder) if folder else Path(__file__).parents[2] / "shared"
    if not (path / "checkpoints").exists():
        pytest.skip("no shared data: set RESNETS_SHARED to the folder that has checkpoints/")
    return path
