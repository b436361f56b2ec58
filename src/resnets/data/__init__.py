"""Images, labels and batches."""

from resnets.data.dataset import Source, Split, load
from resnets.data.loader import Batch, test_batches, train_batches
from resnets.data.rng import order

__all__ = ["Batch", "Source", "Split", "load", "order", "test_batches", "train_batches"]
