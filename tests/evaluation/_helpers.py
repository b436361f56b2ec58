"""Scores for tests."""

import pytest
import torch

from resnets.evaluation.scores import Scores


def scores(logits, labels, **rest):
    logits = torch.as_tensor(logits, dtype=torch.float32)
    names = tuple(f"class{k}" for k in range(logits.shape[1]))
    rest = {"indices": torch.arange(len(logits)), "classes": names} | rest
    return Scores(logits, torch.as_tensor(labels), **rest)


def drawn(n=500, k=7, seed=0, multi_label=False, classes=None):
    """Of a classifier that is often right; `classes`: how many of the k occur."""
    g = torch.Generator().manual_seed(seed)
    if multi_label:
        labels = (torch.rand(n, k, generator=g) < 0.3).float()
        logits = 2 * torch.randn(n, k, generator=g) + 2 * labels - 1
        return scores(logits, labels)
    labels = torch.randint(classes or k, (n,), generator=g)
    logits = 2 * torch.randn(n, k, generator=g)
    logits[torch.arange(n), labels] += 2
    return scores(logits, labels)


def close(value):
    return pytest.approx(value, rel=1e-12, abs=1e-12)
