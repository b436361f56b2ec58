import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from resnets import http_files
from resnets.cli.main import main
from resnets.files import cache_folder
from tests.models.io._helpers import Site, running_site

# The same examples on every machine: a change is judged by itself, not by chance.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # Workers of pytest-xdist on as many cores: more threads than cores make everything crawl.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


DATA = cache_folder()  # of the person, before the caches of the session are set


@pytest.fixture(autouse=True, scope="session")
def own_caches(tmp_path_factory) -> Iterator[None]:
    """What this machine did before must not matter: kernels and data sets begin empty.

    The processes of pytest-xdist share them, since a kernel takes a while to compile.
    """
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # listing the fonts takes seconds
        patch.setenv("XDG_CACHE_HOME", str(root / "caches"))
        for name in (
            "RESNETS_DATA",
            "RESNETS_WEIGHTS_TABLE",
            "HF_HOME",
            "HF_HUB_CACHE",
            "TORCH_HOME",
        ):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def cifar10() -> Iterator[None]:
    """CIFAR-10 of the person's cache, for the slow checks."""
    if not (DATA / "cifar10.safetensors").exists():
        pytest.skip("CIFAR-10 is not in the cache: resnets data get cifar10")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNETS_DATA", str(DATA))
        yield


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder; (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        return caught.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def shared() -> Path:
    """The folder of real data and other people's checkpoints, for the slow checks."""
    folder = os.environ.get("RESNETS_SHARED")
    path = Path(folder) if folder else Path(__file__).parents[2] / "shared"
    if not (path / "checkpoints").exists():
        pytest.skip("no shared data: set RESNETS_SHARED to the folder that has checkpoints/")
    return path


@pytest.fixture
def weights_site(tmp_path, monkeypatch) -> Iterator[Site]:
    """A local server that stands for the hub and for torchvision's, and empty caches of weights."""
    monkeypatch.setattr(http_files, "PAUSE", 0.001)
    for name in ("RESNETS_DATA", "HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / f"cache-{name}"))
    with running_site() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        monkeypatch.setenv("RESNETS_TORCHVISION_MIRROR", f"{site.url}/torchvision")
        site.table = tmp_path / "table.json"

        def publish(*rows: dict[str, Any]) -> None:
            site.table.write_text(json.dumps({"weights": rows}))
            monkeypatch.setenv("RESNETS_WEIGHTS_TABLE", str(site.table))

        site.publish = publish
        yield site


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A CSV of boxes, and images with masks, of the same 24 pictures of one object each."""
    root = tmp_path_factory.mktemp("drawn")
    generator = np.random.default_rng(0)
    lines = ["path,x1,y1,x2,y2,label,split"]
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for folder in ("images", "masks"):
            (root / "masks" / folder / split).mkdir(parents=True)
        for i in range(count):
            k, x, y = i % 2, *generator.integers(0, (40, 28)).tolist()
            pixels = generator.integers(0, 50, (64, 80, 3), dtype=np.uint8)
            classes = np.zeros((64, 80), np.uint8)
            place = np.s_[y : y + 30, x : x + 24]
            pixels[place] = (200, 80 * k, 0)
            classes[place] = 1 + k
            name = f"{split}/{i}.png"
            Image.fromarray(pixels).save(root / "masks" / "images" / name)
            Image.fromarray(classes).save(root / "masks" / "masks" / name)
            box = f"{x},{y},{x + 24},{y + 30}"
            lines.append(f"masks/images/{name},{box},{'red' if k else 'dark'},{split}")
    (root / "boxes.csv").write_text("\n".join(lines))
    return {"detect": root / "boxes.csv", "localize": root / "boxes.csv", "segment": root / "masks"}
