"""y = act(h + BN(x * w)) of a training step on the CPU as one call: what the layers do, faster.

The kernels of `cpu_fused.cpp` are compiled once, by the machine's C++ compiler. Where `fits` says
no, and always at test time, the layers themselves are called.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from resnets.files import write_whole

problems: list[str] = []  # why there are no kernels, where they could run
NO_AVX512 = "this processor has no AVX512-BF16"
NHWC = torch.channels_last
AVX512 = [f"-mavx512{subset}" for subset in ("f", "bw", "dq", "vl", "bf16")]
FLAGS = ["-O3", "-std=c++20", "-fPIC", "-fopenmp", "-fno-math-errno", "-w", *AVX512]


class Plus(nn.Module):
    """h + x, as a layer that is called once."""

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.h = h

    def forward(self, x: Tensor) -> Tensor:
        return self.h + x


def run_layers(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Apply layers in order; convolution, normalisation, `Plus` and ReLU in a row are one call.

    Hooks of layers inside such a call do not run.
    """
    todo = list(layers)
    while todo:
        w: Tensor | None = None
        stride = 1
        match todo:
            case [nn.Conv2d() as conv, nn.BatchNorm2d() as norm, *rest] if fits(norm, x, conv):
                w, stride = conv.weight, conv.stride[0]
            case [nn.BatchNorm2d() as norm, *rest] if fits(norm, x, None):
                pass
            case [layer, *todo]:
                x = layer(x)
                continue
        shape = (len(x), norm.num_features, x.shape[2] // stride, x.shape[3] // stride)
        h = rest[0].h if rest and isinstance(rest[0], Plus) else None
        if h is not None and (h.shape != shape or h.dtype != x.dtype):
            h = None
        rest = rest[h is not None :]
        relu = bool(rest) and type(rest[0]) is nn.ReLU
        y, same = _ConvNormAct.apply(x, w, h, norm.weight, norm.bias, norm, relu, shape)
        # Where x is also added later, its two gradients meet in this call's backward pass.
        todo = [Plus(same) if isinstance(m, Plus) and m.h is x else m for m in rest[relu:]]
        x = y
    return x


def fits(norm: nn.BatchNorm2d, x: Tensor, conv: nn.Conv2d | None) -> bool:
    """Whether the kernels compute these layers on this input: the one choice there is."""
    return (
        norm.training
        and type(norm) is nn.BatchNorm2d
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.ndim == 4
        and x.is_contiguous(memory_format=NHWC)
        and x.numel() > 4 * x.shape[1]
        and norm.num_features % 16 == 0
        and norm.num_features == (x.shape[1] if conv is None else conv.out_channels)
        and (conv is None or _convolution_fits(conv, x))
        and not torch.compiler.is_compiling()
        and library() is not None
    )


def describe(network: nn.Module, bfloat16: bool) -> str:
    """Which kernels compute a training step of this network on the CPU, and why not the fused."""
    if library() is None:
        return f"PyTorch's own kernels ({problems[0] if problems else NO_AVX512})"
    norms = [m for m in network.modules() if type(m) is nn.BatchNorm2d]
    if all(norm.num_features % 16 for norm in norms):
        return "PyTorch's own kernels (no batch normalisation of 16, 32, ... channels to fuse)"
    if not bfloat16:
        reason = "in float32"
    elif torch.cpu._is_amx_tile_supported():
        reason = "which use AMX"
    elif not any(type(m) is nn.Conv2d and _is_fusible(m) for m in network.modules()):
        reason = "none of which match"
    else:
        return "fused convolution, normalisation and ReLU"
    return f"fused normalisation and ReLU, PyTorch's own convolutions ({reason})"


def _is_fusible(conv: nn.Conv2d) -> bool:
    return (
        conv.bias is None
        and (conv.kernel_size, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1))
        and conv.stride in ((1, 1), (2, 2))
        and conv.groups == 1
        and conv.in_channels % 16 == 0
    )


def _convolution_fits(conv: nn.Conv2d, x: Tensor) -> bool:
    return (
        type(conv) is nn.Conv2d
        and torch.is_autocast_enabled("cpu")
        and x.dtype == torch.bfloat16
        and conv.weight.dtype == torch.float32
        and _is_fusible(conv)
        and conv.in_channels == x.shape[1]
        and x.shape[2] % conv.stride[0] == 0
        and x.shape[3] % (8 * conv.stride[0]) == 0
        and not torch.cpu._is_amx_tile_supported()  # oneDNN is faster with it
    )


class _ConvNormAct(torch.autograd.Function):
    """(y, x) from x; w or None; h or None; the normalisation's weight, bias and module."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor | None,
        h: Tensor | None,
        gamma: Tensor,
        beta: Tensor,
        norm: nn.BatchNorm2d,
        relu: bool,
        shape: tuple[int, int, int, int],
    ) -> tuple[Tensor, Tensor]:
        w = None if w is None else w.contiguous(memory_format=NHWC)
        h = None if h is None else h.contiguous(memory_format=NHWC)
        y = torch.empty(shape, dtype=x.dtype, memory_format=NHWC)
        z = x if w is None else torch.empty_like(y)
        mean, inverse = torch.empty_like(gamma), torch.empty_like(gamma)
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        tensors = (x, w, z, h, y, gamma, beta, mean, inverse, norm.running_mean, norm.running_var)
        _call("forward", x, z, tensors, norm.momentum, norm.eps, relu)
        ctx.save_for_backward(x, w, z, y if relu else None, gamma, mean, inverse)
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, skip: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w, z, y, gamma, mean, inverse = ctx.saved_tensors
        dy = dy.contiguous(memory_format=NHWC)
        skip = None if skip is None else skip.contiguous(memory_format=NHWC)
        dx, dgamma, dbeta = torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(gamma)
        dw = None if w is None else torch.empty_like(w)
        dh = torch.empty_like(dy) if ctx.needs_input_grad[2] else None
        tensors = (dy, skip, x, w, z, y, dx, dw, dh, gamma, mean, inverse, dgamma, dbeta)
        _call("backward", x, z, tensors)
        return dx, dw, dh, dgamma, dbeta, None, None, None


def _call(
    name: str, x: Tensor, z: Tensor, tensors: Iterable[Tensor | None], *values: float | None
) -> None:
    kernel = (library() or {})[name, x.dtype]
    images, c_out, height, width = z.shape
    sizes = (images, height, width, x.shape[1], c_out, x.shape[2] // height)
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    kernel(*pointers, *sizes, *values, torch.get_num_threads())


@functools.cache
def library() -> dict[tuple[str, torch.dtype], Callable[..., None]] | None:
    """The kernels by name and type of the images; None where they cannot be built or run."""
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    source = Path(__file__).with_name("cpu_fused.cpp")
    digest = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode()).hexdigest()
    try:
        if not hasattr(os, "getuid"):  # whose files they are could not be checked: `_check_own`
            raise OSError("they are built on POSIX systems only")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "resnets"
        loaded = ctypes.CDLL(str(_build_once(cache / "kernels", f"fused-{digest[:16]}", source)))
        # Freed maps of some megabytes would go back to the system and be faulted in anew at every
        # step: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc.
        system = ctypes.CDLL(None)
        system.mallopt(-3, 1 << 28), system.mallopt(-1, 1 << 30)
        sizes = [ctypes.c_int64] * 6
        kinds: dict[str, list[Any]] = {
            "forward": [ctypes.c_void_p] * 11 + sizes + [ctypes.c_double] * 2 + [ctypes.c_int] * 2,
            "backward": [ctypes.c_void_p] * 14 + sizes + [ctypes.c_int],
        }
        return {
            (name, dtype): ctypes.CFUNCTYPE(None, *kind).in_dll(loaded, f"{name}_{key}")
            for name, kind in kinds.items()
            for key, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items()
        }
    except Exception as error:  # whatever is wrong, the layers themselves are as right
        problems.append(f"{type(error).__name__}: {error}")
        return None


def _build_once(folder: Path, name: str, source: Path) -> Path:
    """The compiled file, in a folder that this user alone may write to. Raises as it may."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder, stat.S_ISDIR, 0o077)
    path, seal = folder / f"{name}.so", folder / f"{name}.sha256"
    if path.exists() or path.is_symlink():
        _check_private(path, stat.S_ISREG, 0o022)
        right = hashlib.sha256(path.read_bytes()).hexdigest().encode()
        if seal.exists() and seal.read_bytes() == right:
            return path
    compiled = _compile(source)
    write_whole(seal, hashlib.sha256(compiled).hexdigest().encode())
    write_whole(path, compiled)
    return path


def _check_private(path: Path, kind: Callable[[int], bool], others: int) -> None:
    """Raise PermissionError for what another user made, or may change, or for a link."""
    info = path.lstat()
    if not kind(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & others:
        raise PermissionError(f"{path} is not private to this user; remove it")


def _compile(source: Path) -> bytes:
    if shutil.which("c++") is None:
        raise OSError("no C++ compiler: c++ is not installed")
    with tempfile.TemporaryDirectory() as folder:
        compiled, linked = f"{folder}/fused.o", f"{folder}/fused.so"
        # Linked without -fopenmp: the threads are those of the OpenMP that torch has loaded.
        for command in (
            ["c++", *FLAGS, "-c", str(source), "-o", compiled],
            ["c++", "-shared", compiled, "-o", linked],
        ):
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        return Path(linked).read_bytes()
