"""The compiled kernels are loaded from a folder and a file that are this user's alone."""

import os
from pathlib import Path

import pytest
import torch

from resnets.ops import cpu_fused


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(cpu_fused, "_compiled", lambda source: b"made here")
    monkeypatch.setattr(cpu_fused, "problems", [])
    return tmp_path / "resnets" / "kernels"


def made(folder):
    return cpu_fused._cached(folder, "k", Path("k.cpp"))


def test_a_folder_and_file_of_its_own(cache):
    path = made(cache)
    assert path.read_bytes() == b"made here"
    assert cache.stat().st_mode & 0o777 == 0o700
    path.write_bytes(b"changed")
    assert made(cache).read_bytes() == b"made here"  # its digest does not agree: made again


@pytest.mark.parametrize("what", ["folder mode", "file mode", "folder owner", "link", "link away"])
def test_what_others_may_write_is_not_loaded(cache, monkeypatch, what):
    path = made(cache)
    if what == "folder mode":
        cache.chmod(0o770)
    elif what == "file mode":
        path.chmod(0o666)
    elif what == "folder owner":
        monkeypatch.setattr(os, "getuid", lambda: 4711)
    else:
        target = cache / "other" if what == "link" else cache / "nowhere"
        (cache / "other").write_bytes(b"made here")
        path.unlink()
        path.symlink_to(target)
    with pytest.raises(PermissionError, match="this user's alone"):
        made(cache)


def test_any_failure_falls_back_and_is_kept_for_doctor(cache):
    assert cpu_fused.library.__wrapped__() is None  # "made here" is no library
    assert "OSError" in cpu_fused.problems[0]
