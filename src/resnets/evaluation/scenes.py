"""How scenes are read at test time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import takewhile
from typing import Required, TypedDict, Unpack

import torch
from torch import Tensor

from resnets.config.recipe import Preprocess
from resnets.data.joint_transforms import fit_side
from resnets.data.loader import Batch, test_batches
from resnets.data.splits import Split


class LoaderOptions(TypedDict, total=False):
    """What `test_batches` is told: which part of a split is read, how, and where to."""

    preprocess: Required[Preprocess]
    device: Required[torch.device | str]
    batch: Required[int]
    workers: int
    rank: int
    ranks: int


def never() -> bool:
    """No signal asks to break off."""
    return False


def iter_batches(
    split: Split, stopped: Callable[[], bool], **reading: Unpack[LoaderOptions]
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Batches, and the sizes of their images inside the views and as files: int64 (B, 2) each.

    It ends once `stopped` says so. Raises as `test_batches`.
    """
    assert split.sizes is not None
    size = reading["preprocess"].size
    for batch in takewhile(lambda _: not stopped(), test_batches(split, **reading)):
        own = split.sizes[batch.indices]
        seen = [fit_side(height, width, size) for height, width in own.tolist()]
        images = batch.images.contiguous(memory_format=torch.channels_last)
        inside = torch.tensor(seen, device=images.device).view(-1, 2)
        yield replace(batch, images=images), inside.long(), own
