"""Which images of a split are worth inspecting: rows of its `Scores`, worst first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from resnets.data.splits import Split
from resnets.evaluation.classification import confusion_matrix
from resnets.evaluation.scores import Scores, is_correct, losses

DOUBTFUL = 0.05  # share of the labels from which on it is the network that is in doubt


def most_wrong(scores: Scores, count: int) -> Tensor:
    """The wrong predictions of largest loss: int64 (n,), n <= count."""
    return _largest(losses(scores), ~is_correct(scores))[:count]


def most_uncertain(scores: Scores, count: int) -> Tensor:
    """The predictions of largest entropy: int64 (n,), n <= count."""
    p = scores.probabilities
    entropy = torch.special.entr(p) + (torch.special.entr(1 - p) if scores.multi_label else 0)
    return _largest(entropy.sum(1), torch.ones(len(p), dtype=torch.bool))[:count]


def label_errors(scores: Scores) -> Tensor:
    """The images whose label is likely wrong, by confident learning: int64 (n,).

    Northcutt et al. 2021 (1911.00068), eq. 1 and 2: an image counts for a class from the mean
    probability of the images that are labelled so. Given are those that count for another class
    than their label's, which is not the model's prediction either, by their normalised margin. Of
    multiple labels each is a yes-or-no question. The model must not be trained on these images.
    """
    p = scores.probabilities
    if scores.multi_label:
        questions = zip(p.T, scores.labels.long().T, strict=True)
        margins = [_margin(torch.stack([1 - yes, yes], 1), label) for yes, label in questions]
        margin = torch.stack(margins).amin(0)
    else:
        margin = _margin(p, scores.labels)
    return _largest(-margin, margin < 0)


def _margin(p: Tensor, labels: Tensor) -> Tensor:
    """p of the label less the largest other one, or 0 where the label stands: (N, K) -> (N,)."""
    labelled = F.one_hot(labels, p.shape[1]).bool()
    # nan where a class has no image: none counts for it
    threshold = (p * labelled).sum(0) / labelled.sum(0)
    counts = p >= threshold - 1e-6  # as cleanlab does: a mean of equal numbers may be above them
    other = torch.where(counts, p, -1).argmax(1) != labels
    margin = p[labelled] - p.masked_fill(labelled, -1).amax(1)
    return torch.where(counts.any(1) & other, margin, 0).clamp_max(0)


def confusions(scores: Scores) -> list[tuple[str, str, int]]:
    """Pairs of classes and how often one was taken for the other, most often first.

    The first is taken for the second at least as often as the other way round. There are none
    with multiple labels.
    """
    if scores.multi_label:
        return []
    counts = confusion_matrix(scores.labels, scores.logits.argmax(1), len(scores.classes))
    kept = (counts > counts.T) | (counts == counts.T).triu()
    totals = ((counts + counts.T) * kept).fill_diagonal_(0)
    pairs = sorted(totals.nonzero().tolist(), key=lambda pair: -int(totals[*pair]))
    return [(scores.classes[i], scores.classes[j], int(totals[i, j])) for i, j in pairs]


def class_names(has: Tensor, names: Sequence[str]) -> str:
    """The classes of one image in words, given bool (K,) and K names."""
    return " and ".join(names[k] for k in has.nonzero()[:, 0]) or "no class"


def image_name(split: Split | None, index: int) -> str:
    """The file of an image, or its number where there is none or the data is not at hand."""
    if split is None or isinstance(split.images, Tensor):
        return f"image {index}"
    return str(split.images[index])


def _largest(values: Tensor, among: Tensor) -> Tensor:
    rows = among.nonzero()[:, 0]
    return rows[values[rows].argsort(descending=True, stable=True)]
