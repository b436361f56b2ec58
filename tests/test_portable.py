"""What other systems lack is not needed: Windows has none of these modules, calls and signals."""

import ast
import signal
import subprocess
import sys
from pathlib import Path

import torch

import resnets
from resnets.data import loader
from resnets.training import memory
from resnets.training.signals import SignalFlags

POSIX = ("fcntl", "resource", "termios", "pwd", "grp", "pty", "tty")

# Importing all of what the packages below us need comes first: they have their own ways.
EVERY_MODULE = f"""
import importlib, pkgutil, sys
import filelock, matplotlib.pyplot, PIL.Image, rich.console, scipy.special, sklearn.datasets
import torch.distributed.run, torchvision
for name in {POSIX}:
    sys.modules[name] = None  # importing it now raises ImportError
import resnets
names = [m.name for m in pkgutil.walk_packages(resnets.__path__, "resnets.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""


def test_every_module_without_what_posix_alone_has():
    ended = subprocess.run(
        [sys.executable, "-c", EVERY_MODULE], capture_output=True, text=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 80


def test_the_peak_of_memory_is_unknown_where_nothing_tells(monkeypatch):
    assert memory.peak_bytes(torch.device("cpu")) > 2**26
    monkeypatch.setitem(sys.modules, "resource", None)
    assert memory.peak_bytes(torch.device("cpu")) is None


def test_signals_that_windows_lacks(monkeypatch):
    for name in ("SIGUSR1", "SIGHUP", "SIGCHLD"):
        monkeypatch.delattr(signal, name)
    monkeypatch.setattr(loader.os, "name", "nt")
    with SignalFlags() as stop:
        assert sorted(stop.previous) == [signal.SIGINT, signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
    assert stop.signal == signal.SIGTERM
    assert list(loader._quiet_iter([1, 2])) == [1, 2]


def test_texts_are_read_and_written_as_utf_8():
    """Windows has another encoding: what one system writes the other reads."""
    for path in sorted(Path(resnets.__file__).parent.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            name = ast.unparse(call.func).rpartition(".")[2]
            modes = {each.value for each in call.args if isinstance(each, ast.Constant)}
            text = name == "open" and modes & {"r", "w", "a", "x"}
            text = text or (name in {"read_text", "write_text"} and not modes & {"utf-8"})
            named = any(each.arg == "encoding" for each in call.keywords)
            own = ast.unparse(call.func) in {"read_text", "Image.open"}
            assert named or own or not text, f"{path.name}:{call.lineno}: {ast.unparse(call)}"
