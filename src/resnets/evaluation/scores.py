"""What models say of the images of a split; every figure is a function of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.errors import CheckpointError, UsageError
from resnets.tensor_files import load_tensors, save_tensors


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What models say of each readable image of a split, in the split's order."""

    logits: Tensor  # float32 (N, K), on the CPU, divided by the temperature
    labels: Tensor  # int64 (N,), or float32 (N, K) of 0 and 1 where an image has several labels
    indices: Tensor  # int64 (N,): which images of the split the rows are
    classes: tuple[str, ...]
    unreadable: tuple[tuple[Path, str], ...] = ()
    seconds: float = 0.0  # of reading and computing

    @property
    def several(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.labels.ndim == 2

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, or sigmoid where an image has several labels: float64 (N, K)."""
        logits = self.logits.double()
        return logits.sigmoid() if self.several else logits.softmax(1)

    def take(self, rows: Tensor) -> Scores:
        """The rows at int64 (n,) `rows`, or where bool (N,) `rows` is true."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _TENSORS})


def mean(logits: Tensor, several: bool) -> Tensor:
    """Logits whose probabilities are the mean of V views' or models': (V, N, K) -> (N, K).

    Their logarithm of the sum of exponentials is the mean too, so that one view keeps its logits.
    """
    x = logits.double()
    if several:  # log p - log (1 - p)
        present, absent = (F.logsigmoid(sign * x).logsumexp(0) for sign in (1, -1))
        return (present - absent).float()
    log_p = x.log_softmax(2).logsumexp(0) - math.log(len(x))
    return (log_p + x.logsumexp(2).mean(0)[:, None]).float()


def intersect(scores: Sequence[Scores]) -> list[Scores]:
    """Each with the rows alone that all have.

    Raises CheckpointError where the classes differ, UsageError for none or for other images.
    """
    if not scores:
        raise UsageError("no model and no data to average or compare: name at least one")
    first, *others = scores
    shared = first.indices
    for other in others:
        if other.classes != first.classes:
            pairs = zip_longest(first.classes, other.classes)
            ours, theirs = next(pair for pair in pairs if pair[0] != pair[1])
            raise CheckpointError(f"the models' classes differ: {ours} in one, {theirs} in another")
        shared = shared[torch.isin(shared, other.indices)]
    parts = [each.take(torch.isin(each.indices, shared)) for each in scores]
    labels = parts[0].labels
    if not all(
        torch.equal(part.indices, shared) and torch.equal(part.labels, labels) for part in parts
    ):
        raise UsageError("the scores are of different images: evaluate all on the same split")
    return parts


def ensemble(scores: Sequence[Scores]) -> Scores:
    """The mean of the probabilities, of the images that all could read. Raises as `common`."""
    if len(scores) == 1:
        return scores[0]
    parts = intersect(scores)
    # A few rows at a time, since they are averaged in double precision.
    rows = zip(*(torch.split(part.logits, 4096) for part in parts), strict=True)
    return replace(
        parts[0],
        logits=torch.cat([mean(torch.stack(some), parts[0].several) for some in rows]),
        unreadable=tuple(dict.fromkeys(bad for part in parts for bad in part.unreadable)),
        seconds=sum(part.seconds for part in parts),
    )


def save(path: str | Path, scores: Scores) -> None:
    """One safetensors file, replaced in one step. Raises DiskError."""
    bad = [(str(file), reason) for file, reason in scores.unreadable]
    metadata = {"classes": scores.classes, "unreadable": bad, "seconds": scores.seconds}
    save_tensors(path, {name: getattr(scores, name) for name in _TENSORS}, "scores", metadata)


def load(path: str | Path) -> Scores:
    """What `save` wrote. Raises as `load_tensors`."""
    return load_tensors(path, "scores", _from_tensors, advice(path))


def advice(path: str | Path) -> str:
    """What to do about a file of test results that cannot be used."""
    return f"Delete it: `resnets resume {Path(path).parent}` writes it anew."


def _from_tensors(tensors: dict[str, Tensor], card: dict[str, Any]) -> Scores:
    logits, labels, indices = (tensors[name] for name in _TENSORS)
    (count, classes), several = logits.shape, labels.ndim == 2
    shape(logits, torch.float32, (count, len(card["classes"])), "logits")
    kind = torch.float32 if several else torch.int64
    shape(labels, kind, (count, classes) if several else (count,), "labels")
    shape(indices, torch.int64, (count,), "indices")
    within(labels, classes if not several else 2, "labels")
    within(indices, 2**62, "indices")
    if not torch.isfinite(logits).all():
        raise ValueError("logits are not finite")
    names, seconds = tuple(map(text, card["classes"])), float(card["seconds"])
    return Scores(logits, labels, indices, names, unreadable(card), seconds)


def shape(x: Tensor, kind: torch.dtype, wanted: tuple[int, ...], name: str) -> None:
    """Raise ValueError for a tensor of another type or shape."""
    if x.dtype != kind or tuple(x.shape) != wanted:
        raise ValueError(f"{name}: {x.dtype} {tuple(x.shape)}, not {kind} {wanted}")


def within(x: Tensor, end: int, name: str) -> None:
    """Raise ValueError for numbers below 0, or of `end` and more."""
    if x.numel() and not 0 <= float(x.min()) <= float(x.max()) < end:
        raise ValueError(f"{name}: values beyond 0 to {end - 1}")


def text(value: Any) -> str:
    """The value. Raises ValueError for another than a text."""
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:50]} is no text")
    return value


def unreadable(card: Mapping[str, Any]) -> tuple[tuple[Path, str], ...]:
    """The unreadable files of a card. Raises ValueError, KeyError or TypeError."""
    return tuple((Path(text(name)), text(reason)) for name, reason in card["unreadable"])


_TENSORS = ("logits", "labels", "indices")
