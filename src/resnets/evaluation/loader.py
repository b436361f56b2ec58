"""How the images of a split are read for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor

from resnets.config.recipe import Preprocess
from resnets.data.detection.targets import DetectionTargets
from resnets.data.joint_transforms import fit_side
from resnets.data.loader import Batch, test_batches
from resnets.data.splits import Split


def never() -> bool:
    """No signal asks to stop."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """How a split is read, by which rank, and where its images go; as of `test_batches`."""

    preprocess: Preprocess
    device: torch.device | str
    batch: int  # images
    workers: int = 0
    rank: int = 0
    ranks: int = 1
    stopped: Callable[[], bool] = never  # asked before each batch; once true, it is the end

    def batches(self, split: Split) -> Iterator[Batch]:
        """This rank's images of a split, each once. Raises as `test_batches`."""
        batches = test_batches(
            split,
            preprocess=self.preprocess,
            batch=self.batch,
            device=self.device,
            workers=self.workers,
            rank=self.rank,
            ranks=self.ranks,
        )
        return takewhile(lambda _: not self.stopped(), batches)

    def sized_batches(self, split: Split) -> Iterator[tuple[Batch, Tensor, Tensor]]:
        """Batches, and their images' sizes inside the views and as files: int64 (B, 2) each.

        A smaller image stands at the top left of its view.
        """
        assert split.sizes is not None
        for batch in self.batches(split):
            file_sizes, size = split.sizes[batch.indices], self.preprocess.size
            view_sizes = [fit_side(height, width, size) for height, width in file_sizes.tolist()]
            images = batch.images.contiguous(memory_format=torch.channels_last)
            sizes = torch.tensor(view_sizes, dtype=torch.int64, device=images.device).view(-1, 2)
            yield replace(batch, images=images), sizes, file_sizes


def split_of_image(image: Tensor) -> Split:
    """A split of one image, uint8 (C, H, W), for `sized_batches`."""
    sizes, none = torch.tensor([image.shape[1:]]), DetectionTargets.empty(1, 0)
    return Split(image[None], torch.zeros(1, 0), sizes=sizes, objects=none)
