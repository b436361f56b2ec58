"""f(h + BN(x * w)) in one step of training on the CPU: what the plain layers compute, faster.

`chain` runs layers one after another. Where `fits` says so, a convolution, batch normalisation,
addition and ReLU that follow each other are one call of the kernels in `fused.cpp`, which the
machine's C++ compiler makes once. Everything else is the plain composition of the layers.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-w"]
FLAGS += [f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "bf16")]


class Plus(nn.Module):
    """x -> h + x, as a layer of one call."""

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.h = h

    def forward(self, x: Tensor) -> Tensor:
        return self.h + x


class Chain(nn.Sequential):
    """The layers in order, with `chain`."""

    def forward(self, x: Tensor) -> Tensor:
        return chain(self, x)


def chain(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The last layer's answer, the first given x and each what the one before answers."""
    layers = list(layers)
    while layers:
        match layers:
            case [nn.Conv2d() as conv, nn.BatchNorm2d() as norm, *rest] if fits(norm, x, conv):
                pass
            case [nn.BatchNorm2d() as norm, *rest] if fits(norm, x):
                conv = None
            case [layer, *layers]:
                x = layer(x)
                continue
        h = rest.pop(0).h if rest and isinstance(rest[0], Plus) else None
        relu = bool(rest) and isinstance(rest[0], nn.ReLU)
        if relu:
            rest.pop(0)
        x = _ConvNormAct.apply(x, conv and conv.weight, h, norm.weight, norm.bias, norm, relu)
        layers = rest
    return x


def fits(norm: nn.BatchNorm2d, x: Tensor, conv: nn.Conv2d | None = None) -> bool:
    """Whether the kernels compute these layers on this input: the one choice there is."""
    return (
        norm.training
        and norm.num_features % 16 == 0
        and norm.momentum is not None
        and type(norm) is nn.BatchNorm2d
        and norm.weight.dtype is torch.float32
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.numel() > x.shape[1]
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
        and (conv is None or conv_fits(conv, x))
        and library() is not None
    )


def conv_fits(conv: nn.Conv2d, x: Tensor) -> bool:
    return (
        x.dtype is torch.bfloat16
        and torch.is_autocast_enabled("cpu")
        and conv.weight.dtype is torch.float32
        and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and conv.groups == 1
        and conv.bias is None
        and conv.in_channels % 16 == 0
        and x.shape[3] % 8 == 0
    )


class _ConvNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, h, gamma, beta, norm, relu):
        N, C, H, W = x.shape
        O = len(gamma)
        cl = torch.channels_last
        if w is not None:
            w = w.detach().contiguous(memory_format=cl)
        if h is not None:
            h = h.to(x.dtype).contiguous(memory_format=cl)
        z = x if w is None else torch.empty((N, O, H, W), dtype=x.dtype, memory_format=cl)
        y = torch.empty((N, O, H, W), dtype=x.dtype, memory_format=cl)
        mean, inverse = torch.empty(O), torch.empty(O)
        norm.num_batches_tracked.add_(1)
        library()["forward", x.dtype](
            *pointers(x, w, z, h, y, gamma, beta, mean, inverse, norm.running_mean, norm.running_var),
            N, H, W, C, O, norm.momentum, norm.eps, relu, torch.get_num_threads())
        ctx.save_for_backward(x, w, z, y if relu else None, gamma, mean, inverse)
        ctx.add = h is not None
        return y

    @staticmethod
    def backward(ctx, dy):
        x, w, z, y, gamma, mean, inverse = ctx.saved_tensors
        N, C, H, W = x.shape
        O = len(gamma)
        dy = dy.contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        dw = None if w is None else torch.empty_like(w)
        dh = torch.empty_like(z) if ctx.add and y is not None else None
        dgamma, dbeta = torch.empty(O), torch.empty(O)
        library()["backward", x.dtype](
            *pointers(dy, x, w, z, y, dx, dw, dh, gamma, mean, inverse, dgamma, dbeta),
            N, H, W, C, O, torch.get_num_threads())
        return dx, dw, (dy if dh is None else dh) if ctx.add else None, dgamma, dbeta, None, None


def pointers(*tensors):
    return [None if t is None else t.data_ptr() for t in tensors]


@functools.cache
def library():
    lib = ctypes.CDLL("/tmp/A/f.so")
    P, I, D, i = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int
    types = {
        "forward": ctypes.CFUNCTYPE(None, *[P] * 11, *[I] * 5, D, D, i, i),
        "backward": ctypes.CFUNCTYPE(None, *[P] * 13, *[I] * 5, i),
    }
    return {
        (name, dtype): kind.in_dll(lib, f"{name}_{str(dtype)[6:]}")
        for name, kind in types.items() for dtype in (torch.float32, torch.bfloat16)
    }
