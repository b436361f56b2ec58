"""Chance as a pure function: every draw is a hash of what it is for, so nothing has a state.

A draw depends on (seed, epoch, index, number of the draw) alone. The number of workers, the size of
a batch and the step at which a run was resumed cannot change it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64  # splitmix64's odd constants, as signed 64-bit numbers
_M1 = 0xBF58476D1CE4E5B9 - 2**64
_M2 = 0x94D049BB133111EB - 2**64


def _mix(x: Tensor) -> Tensor:
    """splitmix64 (Steele, Lea and Flood, 2014): one to one on 64-bit integers."""
    x = x + _GAMMA
    x = (x ^ _shift(x, 30)) * _M1
    x = (x ^ _shift(x, 27)) * _M2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)  # torch shifts the sign in


def bits(seed: int, epochs: Tensor, indices: Tensor, draws: range) -> Tensor:
    """The hash itself: int64 (B, len(draws)), all 64 bits even.

    The seed counts modulo 2**64; epochs are int64 (B,) or a scalar, indices int64 (B,). Of the
    numbers of the draws `order` has 0 and `uniform` all from 1 on.
    """
    start = torch.tensor((seed + 2**63) % 2**64 - 2**63, device=indices.device)
    numbers = torch.arange(draws.start, draws.stop, device=indices.device)
    image = _mix(_mix(_mix(start) + epochs) + indices)
    return _mix(image[:, None] + numbers)


def uniform(seed: int, epochs: Tensor, indices: Tensor, draws: int) -> Tensor:
    """Float32 (B, draws) in [0, 1) on the device of `indices`, int64 (B,); 24 random bits each.

    `epochs`, int64 (B,) or a scalar, is the pass over the data that a row belongs to, plus 2**32
    times the number of the view where an image has several in a pass. The first draws do not
    depend on how many there are.
    """
    return _shift(bits(seed, epochs, indices, range(1, draws + 1)), 40).float() * 2.0**-24


def draw_for_step(seed: int, step: int) -> float:
    """What a step draws for the whole batch, in [0, 1).

    The hash is that of an image in epoch -2, which no image has; -1 is `stratified_order`'s.
    """
    return uniform(seed, torch.tensor(-2), torch.tensor([step]), 1).item()


def order(seed: int, epoch: int, n: int) -> Tensor:
    """The order of the `n` images in an epoch: int64 (n,), a permutation."""
    return shuffled(seed, epoch, torch.arange(n))


def shuffled(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Some of the images in the order that they have in an epoch: int64 (n,) -> (n,)."""
    keys = bits(seed, torch.tensor(epoch), indices, range(1))
    return indices[torch.argsort(keys[:, 0], stable=True)]


def class_orders(seed: int, rounds: Tensor, classes: int) -> Tensor:
    """A permutation of the classes for each round, int64 (B,): (B, classes).

    The hash is that of an image in epoch -3, which no image has.
    """
    keys = bits(seed, torch.tensor(-3), rounds, range(classes))
    return torch.argsort(keys, dim=1, stable=True)


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """A random order of the images of which every prefix is a stratified sample: int64 (n,).

    The k-th of a class's m images stands at (k + 1/2) / m of the way, so a prefix holds of each
    class its share, to within one image.
    """
    shuffled = order(seed, -1, len(labels)).numpy()
    classes = labels.numpy()[shuffled]
    counts = np.bincount(classes)
    firsts = np.cumsum(counts) - counts
    rank = np.argsort(np.argsort(classes, kind="stable")) - firsts[classes]
    position = (rank + 0.5) / counts[classes]
    return torch.from_numpy(shuffled[np.argsort(position, kind="stable")])
