"""Logits of models for the images of a split, from which every figure is computed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.data.loader import Batch
from resnets.data.splits import class_presence
from resnets.errors import CheckpointError, UsageError
from resnets.files import resume_command
from resnets.tensor_files import check_range, check_tensor, check_text, load_tensors, save_tensors

_TENSORS = ("logits", "labels", "indices")
Forward = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> logits (N, K)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Logits and labels of each readable image of a split, in the split's order."""

    logits: Tensor  # float32 (N, K), on the CPU, divided by the temperature
    labels: Tensor  # int64 (N,), or float32 (N, K) of 0 and 1 where images have multiple labels
    indices: Tensor  # int64 (N,): which images of the split the rows are
    classes: tuple[str, ...]
    unreadable: tuple[tuple[Path, str], ...] = ()
    seconds: float = 0.0  # of reading and computing

    @property
    def multi_label(self) -> bool:
        """Whether an image may have multiple labels, or none."""
        return self.labels.ndim == 2

    @property
    def probabilities(self) -> Tensor:
        """Softmax of the logits, or sigmoid with multiple labels: float64 (N, K)."""
        logits = self.logits.double()
        return logits.sigmoid() if self.multi_label else logits.softmax(1)

    def take(self, rows: Tensor) -> Scores:
        """The rows at int64 (n,) `rows`, or where bool (N,) `rows` is true."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _TENSORS})


@torch.inference_mode()
def predict_batch(network: Forward, images: Tensor, *, bfloat16: bool = False) -> Tensor:
    """Logits in float32: (N, C, H, W) -> (N, classes). The network must be in evaluation mode."""
    images = images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        logits = network(images)
    return logits.float()


def predict_scores(
    network: Forward,
    batches: Iterable[Batch],
    classes: tuple[str, ...],
    *,
    mirrored: bool = False,
    temperature: float = 1.0,
    bfloat16: bool = False,
) -> Scores:
    """Logits of each image: the mean over the rows that it has in a batch, as of its crops.

    With `mirrored` each row counts as it is and as its mirror image. The network must be in
    evaluation mode.
    """
    start, unreadable = time.monotonic(), list[tuple[Path, str]]()
    empty = torch.empty(0, dtype=torch.int64)
    logits, labels, indices = [torch.empty(0, len(classes))], [empty], [empty]
    for batch in batches:
        unreadable += batch.unreadable
        if not len(batch.labels):
            continue
        crops = len(batch.indices) // len(set(batch.indices.tolist()))
        sides = (batch.images, batch.images.flip(-1)) if mirrored else (batch.images,)
        outputs = [predict_batch(network, images, bfloat16=bfloat16) for images in sides]
        views = torch.stack(outputs).view(len(sides), -1, crops, len(classes))
        views = views.transpose(1, 2).flatten(0, 1) / temperature  # (V, N, K)
        logits.append(mean_logits(views, multi_label=batch.labels.ndim == 2).cpu())
        labels.append(batch.labels[::crops].cpu())
        indices.append(batch.indices[::crops])
    return Scores(
        logits=torch.cat(logits),
        labels=torch.cat(labels),
        indices=torch.cat(indices),
        classes=classes,
        unreadable=tuple(unreadable),
        seconds=time.monotonic() - start,
    )


def mean_logits(logits: Tensor, multi_label: bool) -> Tensor:
    """Logits whose probabilities are the mean of V views' or models': (V, N, K) -> (N, K).

    Their logsumexp is the mean too, so that one view keeps its logits.
    """
    x = logits.double()
    if multi_label:  # log p - log (1 - p)
        present, absent = (F.logsigmoid(sign * x).logsumexp(0) for sign in (1, -1))
        return (present - absent).float()
    log_p = x.log_softmax(2).logsumexp(0) - math.log(len(x))
    return (log_p + x.logsumexp(2).mean(0)[:, None]).float()


def intersect(scores: Sequence[Scores]) -> list[Scores]:
    """The rows of each for the images that all have.

    Raises CheckpointError where the classes differ, UsageError for none or for other images.
    """
    if not scores:
        raise UsageError("no scores to average or compare: give at least one")
    first, *others = scores
    shared = first.indices
    for other in others:
        if other.classes != first.classes:
            pairs = zip_longest(first.classes, other.classes)
            left, right = next(pair for pair in pairs if pair[0] != pair[1])
            raise CheckpointError(f"the models' classes differ: {left} in one, {right} in another")
        shared = shared[torch.isin(shared, other.indices)]
    aligned = [member.take(torch.isin(member.indices, shared)) for member in scores]
    for member in aligned:
        same_images = torch.equal(member.indices, shared)
        if not same_images or not torch.equal(member.labels, aligned[0].labels):
            raise UsageError("the scores are of different images: evaluate all on the same split")
    return aligned


def ensemble(scores: Sequence[Scores]) -> Scores:
    """The mean of the probabilities, of the images that all could read. Raises as `intersect`."""
    if len(scores) == 1:
        return scores[0]
    members = intersect(scores)
    # A few rows at a time, since they are averaged in double precision.
    chunks = zip(*(torch.split(member.logits, 4096) for member in members), strict=True)
    multi_label = members[0].multi_label
    return replace(
        members[0],
        logits=torch.cat([mean_logits(torch.stack(chunk), multi_label) for chunk in chunks]),
        unreadable=tuple(dict.fromkeys(file for member in members for file in member.unreadable)),
        seconds=sum(member.seconds for member in members),
    )


def predicted_classes(scores: Scores) -> Tensor:
    """The most probable class, or with multiple labels those above 0.5: bool (N, K)."""
    x = scores.logits
    return x > 0 if scores.multi_label else class_presence(x.argmax(1), x.shape[1])


def agreement(scores: Scores) -> Tensor:
    """Whether a class is predicted exactly where the image has it: bool (N, K)."""
    return predicted_classes(scores) == class_presence(scores.labels, len(scores.classes))


def is_correct(scores: Scores) -> Tensor:
    """Whether exactly the labels of an image are predicted: bool (N,)."""
    return agreement(scores).all(1)


def error_rate(scores: Scores) -> float:
    """Fraction of the images that are predicted wrong; nan of none."""
    return 1 - float(is_correct(scores).double().mean())


def confidences(scores: Scores) -> tuple[Tensor, Tensor]:
    """Each prediction's probability, float64 (M,), and whether it is right, bool (M,).

    M is N, and N * K with multiple labels, where each class is a yes-or-no question of its own.
    """
    p = scores.probabilities
    if scores.multi_label:
        return torch.maximum(p, 1 - p).flatten(), agreement(scores).flatten()
    return p.amax(1), is_correct(scores)


def losses(scores: Scores) -> Tensor:
    """Cross-entropy of each image, nats; of multiple labels the classes' mean: float64 (N,)."""
    x, labels = scores.logits.double(), scores.labels
    if scores.multi_label:
        return F.binary_cross_entropy_with_logits(x, labels.double(), reduction="none").mean(1)
    return F.cross_entropy(x, labels, reduction="none")


def save(path: str | Path, scores: Scores) -> None:
    """One safetensors file, replaced in one step. Raises DiskError."""
    tensors = {name: getattr(scores, name) for name in _TENSORS}
    reading = reading_metadata(scores.unreadable, scores.seconds)
    save_tensors(path, tensors, "scores", {"classes": scores.classes} | reading)


def load(path: str | Path) -> Scores:
    """What `save` wrote. Raises as `load_tensors`."""
    return load_tensors(path, "scores", _from_tensors, advice(path))


def advice(path: str | Path) -> str:
    """What to do about a file of test results that cannot be used."""
    return f"Delete it: {resume_command(Path(path).parent)} writes it anew."


def _from_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Scores:
    logits, labels, indices = (tensors[name] for name in _TENSORS)
    (count, classes), multi_label = logits.shape, labels.ndim == 2
    check_tensor(logits, torch.float32, (count, len(metadata["classes"])), "logits")
    dtype = torch.float32 if multi_label else torch.int64
    check_tensor(labels, dtype, (count, classes) if multi_label else (count,), "labels")
    check_tensor(indices, torch.int64, (count,), "indices")
    check_range(labels, 2 if multi_label else classes, "labels")
    check_range(indices, 2**62, "indices")
    if not torch.isfinite(logits).all():
        raise ValueError("logits are not finite")
    names = tuple(map(check_text, metadata["classes"]))
    return Scores(logits, labels, indices, names, **read_metadata(metadata))


def reading_metadata(unreadable: Sequence[tuple[Path, str]], seconds: float) -> dict[str, Any]:
    """What a file says of the reading of a split."""
    return {"unreadable": [(str(file), reason) for file, reason in unreadable], "seconds": seconds}


def read_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Fields from `reading_metadata`. Raises ValueError, KeyError or TypeError."""
    files = [(Path(check_text(name)), check_text(why)) for name, why in metadata["unreadable"]]
    return {"unreadable": tuple(files), "seconds": float(metadata["seconds"])}
