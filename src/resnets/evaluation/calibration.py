"""Whether probabilities say how often predictions are right: Guo et al. 2017 (1706.04599)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from resnets.evaluation.scores import Scores, confidences, losses

BINS = 15  # of equal width in confidence


def reliability(scores: Scores) -> list[tuple[int, float, float]]:
    """(predictions, mean confidence, accuracy) of 15 equal bins of confidence."""
    confidence, correct = confidences(scores)
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=BINS - 1)
    counts = torch.bincount(bins, minlength=BINS)
    totals = (torch.bincount(bins, x, BINS) for x in (confidence, correct.double()))
    mean_confidence, accuracy = (total / counts.clamp(min=1) for total in totals)
    return list(zip(counts.tolist(), mean_confidence.tolist(), accuracy.tolist(), strict=True))


def calibration_error(scores: Scores) -> float:
    """Expected calibration error: mean |accuracy - confidence| (eq. 3)."""
    count, confidence, accuracy = np.array(reliability(scores)).T
    return float(count @ abs(confidence - accuracy) / max(1, count.sum()))


def fit_temperature(scores: Scores) -> float:
    """What to divide the logits by for the lowest loss on these images (section 4.2).

    It multiplies the temperature that the scores have already. A log-normal prior of deviation 1
    counts as much as one image, since of easy images alone no temperature is low enough; without
    images it gives 1.
    """
    from scipy.optimize import minimize_scalar

    def objective(log_t: float) -> float:
        loss = losses(replace(scores, logits=scores.logits / math.exp(log_t)))
        return (float(loss.sum()) + log_t**2 / 2) / max(1, len(loss))

    best = minimize_scalar(objective, bounds=(-4, 4), method="bounded", options={"xatol": 1e-3})
    return math.exp(best.x)


def selective_accuracy(scores: Scores, precision: float) -> tuple[float, float]:
    """(threshold, coverage): the lowest confidence from which on predictions reach that precision.

    Coverage is the fraction of the predictions that are given; (inf, 0) where no threshold will do.
    """
    confidence, correct = confidences(scores)
    confidence, order = confidence.sort(descending=True)
    counts = torch.arange(1, len(order) + 1)
    reached = correct[order].double().cumsum(0) / counts >= precision
    reached[:-1] &= confidence[:-1] > confidence[1:]  # equal ones are given together
    if not reached.any():
        return math.inf, 0.0
    last = int(reached.nonzero()[-1])
    return float(confidence[last]), (last + 1) / len(order)
