"""Which image a position in the endless stream of training is.

A sampler is a pure function of (seed, position): int64 (B,) positions -> images and views, int64
(B,) each. No two positions have the same image and view, and by these its draws are hashed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from resnets.data.rng import class_orders, order, shuffled

Sampler = Callable[[Tensor], tuple[Tensor, Tensor]]


def uniform_sampler(seed: int, n: int, repeats: int) -> Sampler:
    """Every image once in an epoch, or `repeats` times in as many epochs.

    Position p = e * n + q is image order(seed, e)[q // repeats] in view
    e + 2**32 * (q % repeats).
    """
    permutation = lru_cache(maxsize=2)(lambda epoch: order(seed, epoch, n))

    def sample(positions: Tensor) -> tuple[Tensor, Tensor]:
        epochs, q = positions // n, positions % n
        indices = [permutation(e)[q[epochs == e] // repeats] for e in sorted(set(epochs.tolist()))]
        return torch.cat(indices), epochs + (q % repeats << 32)

    return sample


def balanced_sampler(seed: int, labels: Tensor, repeats: int) -> Sampler:
    """Every class equally often: int64 (N,) labels, of which each that occurs is a class.

    With K classes, p // repeats = r * K + c is the r-th image of the class that stands at c in
    round r: every class stands once in a round. A class goes through all its images before one
    comes again, each pass in another order; the passes are the views.
    """
    members = [(labels == label).nonzero()[:, 0] for label in sorted(set(labels.tolist()))]
    permutation = lru_cache(maxsize=2 * len(members))(
        lambda label, epoch: shuffled(seed, epoch, members[label])
    )
    sizes = torch.tensor([len(indices) for indices in members])

    def sample(positions: Tensor) -> tuple[Tensor, Tensor]:
        numbers = positions // repeats
        rounds = numbers // len(members)
        places = (numbers % len(members))[:, None]
        classes = class_orders(seed, rounds, len(members)).gather(1, places)[:, 0]
        passes, ranks = rounds // sizes[classes], rounds % sizes[classes]
        drawn = zip(classes.tolist(), passes.tolist(), ranks.tolist(), strict=True)
        indices = torch.stack([permutation(label, epoch)[rank] for label, epoch, rank in drawn])
        return indices, passes + (positions % repeats << 32)

    return sample
