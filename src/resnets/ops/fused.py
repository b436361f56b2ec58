"""f(h + BN(x * w)) of a training step on the CPU in one call: what the plain layers do, faster.

The kernels of `fused.cpp` are compiled once by the machine's C++ compiler. Where `fits` says no,
as always at test time, the layers themselves are called.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnets.errors import DiskError
from resnets.files import write_whole

SOURCE = Path(__file__).with_name("fused.cpp")
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-w")
AVX512 = tuple(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "bf16"))
NHWC = torch.channels_last


class Plus(nn.Module):
    """h + x, as a layer that is called once."""

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.h = h

    def forward(self, x: Tensor) -> Tensor:
        return self.h + x


class Chain(nn.Sequential):
    """Layers in order."""

    def forward(self, x: Tensor) -> Tensor:
        return chained(self, x)


def chained(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The layers in order, applied to x. Convolution, BN, `Plus` and ReLU in a row are one call."""
    todo = list(layers)
    while todo:
        match todo:
            case [nn.Conv2d() as conv, nn.BatchNorm2d() as norm, *rest] if fits(norm, x, conv):
                w = conv.weight
            case [nn.BatchNorm2d() as norm, *rest] if fits(norm, x):
                w = None
            case [layer, *todo]:
                x = layer(x)
                continue
        h = None
        match rest:
            case [Plus(h=h), nn.ReLU(), *todo] if h.dtype == x.dtype:
                relu = True
            case [nn.ReLU(), *todo]:
                h, relu = None, True
            case todo:
                h, relu = None, False
        stride = 1 if w is None else conv.stride[0]
        before = x
        x, same = _ConvNormAct.apply(x, w, h, norm.weight, norm.bias, norm, relu, stride)
        todo = [Plus(same) if isinstance(l, Plus) and l.h is before else l for l in todo]
    return x


def fits(norm: nn.BatchNorm2d, x: Tensor, conv: nn.Conv2d | None = None) -> bool:
    """Whether the kernels compute these layers on this input: the one choice there is."""
    return (
        norm.training
        and type(norm) is nn.BatchNorm2d
        and norm.num_features % 16 == 0
        and norm.weight.dtype == torch.float32
        and norm.momentum is not None
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.is_contiguous(memory_format=NHWC)
        and x.numel() > x.shape[1]
        and not torch.compiler.is_compiling()
        and (
            conv is None
            or (
                torch.is_autocast_enabled("cpu")
                and x.dtype == torch.bfloat16
                and conv.weight.dtype == torch.float32
                and (conv.kernel_size, conv.padding, conv.groups) == ((3, 3), (1, 1), 1)
                and conv.stride in ((1, 1), (2, 2))
                and x.shape[2] % conv.stride[0] == 0
                and conv.bias is None
                and conv.in_channels % 16 == 0
                and x.shape[3] % (8 * conv.stride[0]) == 0
                and not torch.cpu._is_amx_tile_supported()  # oneDNN is faster with it
            )
        )
        and library() is not None
    )


class _ConvNormAct(torch.autograd.Function):
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
        stride: int,
    ) -> Tensor:
        (N, C, H, W), O = x.shape, len(gamma)
        H, W = H // stride, W // stride
        w = None if w is None else w.contiguous(memory_format=NHWC)
        h = None if h is None else h.contiguous(memory_format=NHWC)
        y = torch.empty((N, O, H, W), dtype=x.dtype, memory_format=NHWC)
        z = x if w is None else torch.empty_like(y)
        mean, inverse = torch.empty(O), torch.empty(O)
        norm.num_batches_tracked.add_(1)
        _call("forward", x.dtype, x, w, z, h, y, gamma, beta, mean, inverse, norm.running_mean, norm.running_var, N, H, W, C, O, stride, norm.momentum, norm.eps, relu)
        ctx.save_for_backward(x, w, z, y if relu else None, gamma, mean, inverse)
        ctx.add, ctx.stride = h is not None, stride
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    def backward(ctx: Any, dy: Tensor, skip) -> tuple[Tensor | None, ...]:
        x, w, z, y, gamma, mean, inverse = ctx.saved_tensors
        (N, O, H, W), C = z.shape, x.shape[1]
        dy = dy.contiguous(memory_format=NHWC)
        skip = None if skip is None else skip.contiguous(memory_format=NHWC)
        dx, dgamma, dbeta = torch.empty_like(x), torch.empty_like(gamma), torch.empty_like(gamma)
        dw = None if w is None else torch.empty_like(w)
        dh = torch.empty_like(dy) if ctx.add else None
        _call("backward", x.dtype, dy, skip, x, w, z, y, dx, dw, dh, gamma, mean, inverse, dgamma, dbeta, N, H, W, C, O, ctx.stride)
        return dx, dw, dh, dgamma, dbeta, None, None, None

def _call(name, dtype, *values):
    args = [v.data_ptr() if isinstance(v, Tensor) else v for v in values]
    library()[name, dtype](*args, torch.get_num_threads())

@functools.cache
def library():
    if not torch.cpu._is_avx512_bf16_supported():
        return None
    lib = ctypes.CDLL("/tmp/A/f.so")
    P, I, D, i = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int
    types = {
        "forward": ctypes.CFUNCTYPE(None, *[P] * 11, *[I] * 6, D, D, i, i),
        "backward": ctypes.CFUNCTYPE(None, *[P] * 14, *[I] * 6, i),
    }
    return {
        (name, dtype): kind.in_dll(lib, f"{name}_{str(dtype)[6:]}")
        for name, kind in types.items() for dtype in (torch.float32, torch.bfloat16)
    }
