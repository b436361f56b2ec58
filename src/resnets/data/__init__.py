"""Images, labels and batches."""

from resnets.data.batches import Batch, test_batches, train_batches
from resnets.data.draws import order
from resnets.data.sources import Source, Split, load

__all__ = ["Batch", "Source", "Split", "load", "order", "test_batches", "train_batches"]
