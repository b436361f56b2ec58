"""The compiled kernels are loaded from a folder and a file that are this user's alone."""

import os
import re
from pathlib import Path

import pytest
import torch

from resnets.config.families import ARCHS
from resnets.models.accelerate import describe_kernels
from resnets.ops import cpu_fused
from tests._helpers import needs_posix_files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(cpu_fused, "_compile", lambda source: b"made here")
    monkeypatch.setattr(cpu_fused, "problems", [])
    return tmp_path / "resnets" / "kernels"


def made(folder):
    return cpu_fused._build_once(folder, "k", Path("k.cpp"))


@needs_posix_files
def test_a_folder_and_file_of_its_own(cache):
    path = made(cache)
    assert path.read_bytes() == b"made here"
    assert cache.stat().st_mode & 0o777 == 0o700
    path.write_bytes(b"changed")
    assert made(cache).read_bytes() == b"made here"  # its digest does not agree: made again


@pytest.mark.parametrize("what", ["folder mode", "file mode", "folder owner", "link", "link away"])
@needs_posix_files
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
    with pytest.raises(PermissionError, match="private to this user"):
        made(cache)


def test_windows_has_none(cache, monkeypatch):
    monkeypatch.delattr(os, "getuid", raising=False)
    assert cpu_fused.library.__wrapped__() is None
    assert cpu_fused.problems == ["OSError: they are built on POSIX systems only"]
    assert not cache.exists()


def test_any_failure_falls_back_and_is_kept_for_doctor(cache):
    assert cpu_fused.library.__wrapped__() is None  # "made here" is no library
    assert "OSError" in cpu_fused.problems[0]


@pytest.mark.parametrize(
    ("model", "bfloat16", "library", "problem", "amx", "words"),
    [
        ("resnet20", True, {}, "", False, r"^fused convolution, normalisation and ReLU$"),
        ("resnet20", False, {}, "", False, r"^fused normalisation .* convolutions \(in float32\)"),
        ("resnet20", True, {}, "", True, r"^fused normalisation .* \(which use AMX\)"),
        ("resnet20", True, None, "", False, r"own kernels \(this processor has no AVX512-BF16\)"),
        ("resnet20", True, None, "no C++ compiler", False, r"own kernels \(no C\+\+ compiler\)"),
        ("vit_s_16", True, {}, "", False, r"own kernels \(no batch normalisation"),
    ],
)
def test_a_plan_says_which_kernels_train(
    monkeypatch, model, bfloat16, library, problem, amx, words
):
    monkeypatch.setattr(cpu_fused, "library", lambda: library)
    monkeypatch.setattr(cpu_fused, "problems", [problem] if problem else [])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert re.search(words, describe_kernels(ARCHS[model], torch.device("cpu"), bfloat16))


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(OSError, match=r"no C\+\+ compiler"):
        cpu_fused._compile(Path("k.cpp"))


def test_the_fused_kernels_are_for_the_processor():
    assert "for the CPU" in describe_kernels(ARCHS["resnet20"], torch.device("cuda"), True)
