"""The vision transformer of Dosovitskiy et al. 2020, arXiv 2010.11929, from pre-activation units.

A block is two residual additions, x + attention(norm(x)) and x + mlp(norm(x)): the law of
1603.05027 with other branches.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnets.config.arch import VitArch
from resnets.errors import UsageError
from resnets.models.blocks import PreActivation, make_stage
from resnets.models.mlp import feed_forward


class VisionTransformer(nn.Module):
    """Shapes: (N, channels, size, size) -> (N, classes).

    Raises UsageError for an image of another size, which has no position embedding.
    """

    def __init__(self, arch: VitArch, *, activation_checkpointing: int = 0) -> None:
        super().__init__()
        if arch.size % arch.patch or arch.heads < 1 or arch.width % arch.heads:
            raise UsageError("a transformer needs size divisible by patch, width by heads")
        self.arch = arch
        self.levels = {"blocks": (arch.width, arch.patch)}
        tokens = (arch.size // arch.patch) ** 2 + 1
        self.patches = nn.Conv2d(arch.channels, arch.width, arch.patch, arch.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, arch.width))
        self.positions = nn.Parameter(torch.empty(1, tokens, arch.width).normal_(std=0.02))
        self.dropout = nn.Dropout(arch.dropout)
        self.blocks = make_stage(
            {str(i): make_block(arch) for i in range(arch.blocks)}, activation_checkpointing
        )
        self.norm = nn.LayerNorm(arch.width, eps=1e-6)
        self.fc = nn.Linear(arch.width, arch.classes)
        # As torchvision: patches ~ N(0, 1 / fan-in), a classifier of zeros.
        fan_in = arch.channels * arch.patch**2
        nn.init.trunc_normal_(self.patches.weight, std=fan_in**-0.5)
        for zero in (self.patches.bias, self.fc.weight, self.fc.bias):
            nn.init.zeros_(zero)  # type: ignore[arg-type]

    def tokens(self, x: Tensor) -> Tensor:
        """(N, channels, size, size) -> (N, 1 + patches, width), the class token first."""
        side = self.arch.size
        if tuple(x.shape[2:]) != (side, side):
            got = " x ".join(str(n) for n in x.shape[2:])
            raise UsageError(f"this transformer takes {side} x {side} pixels, not {got}")
        patches = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], 1)
        return self.norm(self.blocks(self.dropout(tokens + self.positions)))

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """(N, channels, size, size) -> {"blocks": (N, width, size / patch, size / patch)}."""
        side = self.arch.size // self.arch.patch
        return {"blocks": self.tokens(x)[:, 1:].mT.reshape(x.shape[0], -1, side, side)}

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.tokens(x)[:, 0])


def make_block(arch: VitArch) -> nn.Sequential:
    """x + attention(norm(x)), then x + mlp(norm(x))."""
    mix, drop = Attention(arch.width, arch.heads), nn.Dropout(arch.dropout)
    mlp = feed_forward(arch, nn.GELU())
    for linear in (mlp["linear1"], mlp["linear2"]):
        nn.init.xavier_uniform_(linear.weight)  # type: ignore[arg-type]
        nn.init.normal_(linear.bias, std=1e-6)  # type: ignore[arg-type]
    branches = {"attention": {"mix": mix, "dropout": drop}, "mlp": mlp}
    units = {
        name: PreActivation(nn.LayerNorm(arch.width, 1e-6), branch, nn.Identity())
        for name, branch in branches.items()
    }
    return nn.Sequential(OrderedDict(units))


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v in `heads` heads of d = width / heads: Vaswani et al. 2017.

    Shapes: (N, T, width) -> (N, T, width).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        # (N, T, 3 * width) -> three of (N, heads, T, d)
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)
        return self.out(heads.transpose(1, 2).reshape(n, t, width))


# Parts of names, ours -> torchvision's.
NAMES = {
    "class_token": "class_token",
    "positions": "encoder.pos_embedding",
    "patches.": "conv_proj.",
    "blocks.": "encoder.layers.encoder_layer_",
    "attention.pre.": "ln_1.",
    "attention.mix.qkv.": "self_attention.in_proj_",
    "attention.mix.out.": "self_attention.out_proj.",
    "mlp.pre.": "ln_2.",
    "mlp.linear1.": "mlp.0.",
    "mlp.linear2.": "mlp.3.",
    "norm.": "encoder.ln.",
    "fc.": "heads.head.",
}


def rename_parts(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors of a vision transformer under torchvision's names (`vit_b_16` and kin): by `NAMES`.

    Raises KeyError for a name that is not put together from `names`.
    """
    pattern = "|".join(map(re.escape, names))
    for name in state:
        if not re.fullmatch(rf"(?:{pattern}|\d+\.)+(?:weight|bias)?", name):
            raise KeyError(name)
    return {re.sub(pattern, lambda m: names[m[0]], name): state[name] for name in state}
