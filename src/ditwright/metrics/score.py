"""Inception Score (Salimans et al. 2016): exp of the mean divergence of a sample's classes from all samples' classes.

    exp( mean over x of  KL( p(y|x) || p(y) ) ) = exp( H(y) - H(y|x) )

As entropies it needs two sums and no sample, so it streams and merges. N samples, B of a batch, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..errors import UserError
from .statistics import check_features, total_over_processes


class InceptionScore(NamedTuple):
    """From 1, for samples that all have the same classes, to K."""

    mean: float
    std: float  # over the splits, 0 for one


class Score:
    """The score of the samples seen so far, as one split. Keep one for each split to have several."""

    def __init__(self, classes: int):
        self.count = 0
        self.classes = np.zeros(classes)  # (K,) sum of the probabilities
        self.certainty = 0.0  # sum of p log p over samples and classes

    def update(self, probabilities: np.ndarray) -> None:
        """Take in (B, K) probabilities. UserError where they are none."""
        check_features(probabilities, len(self.classes), what="class probabilities")
        rows = probabilities.astype(np.float64)
        if len(rows) and (rows.min() < 0 or np.abs(rows.sum(1) - 1).max() > 1e-3):
            raise UserError("class probabilities: need rows that sum up to 1, after a softmax; got others")
        self.count += len(rows)
        self.classes += rows.sum(0)
        self.certainty += _p_log_p(rows)

    def merge(self, other: Score) -> Score:
        """The score of both sets of samples. UserError where the numbers of classes differ."""
        if len(self.classes) != len(other.classes):
            raise UserError(f"scores of {len(self.classes)} and {len(other.classes)} classes cannot be merged")
        both = Score(len(self.classes))
        both.count, both.certainty = self.count + other.count, self.certainty + other.certainty
        both.classes = self.classes + other.classes
        return both

    def over_processes(self, device: torch.device | str = "cpu") -> Score:
        """The score of every process's samples, the same on each; see `statistics.total_over_processes`."""
        whole = Score(len(self.classes))
        *classes, count, certainty = total_over_processes(
            np.array([*self.classes, self.count, self.certainty], np.float64), device
        )
        whole.classes, whole.count, whole.certainty = np.array(classes), round(count), float(certainty)
        return whole

    @property
    def value(self) -> float:
        """The score. UserError without samples."""
        if not self.count:
            raise UserError("an Inception Score needs samples; got none")
        return float(np.exp(self.certainty / self.count - _p_log_p(self.classes / self.count)))


def inception_score(probabilities: np.ndarray, splits: int = 10) -> InceptionScore:
    """Mean and standard deviation of the score over `splits` parts of probabilities (N, K), in their order.

    Parts are equal within one sample, as in Salimans et al.'s code and torch-fidelity; so are torchmetrics' (on
    shuffled samples) where N is divisible. ADM's evaluator cuts parts of 5000: splits = N / 5000. UserError for fewer
    samples than splits.
    """
    check_features(probabilities, what="class probabilities")
    count = len(probabilities)
    if not 1 <= splits <= count:
        raise UserError(
            f"an Inception Score in {splits} splits needs 1 split at least and a sample in each; got {count}"
        )
    values = []
    for i in range(splits):
        part = Score(probabilities.shape[1])
        part.update(probabilities[i * count // splits : (i + 1) * count // splits])
        values.append(part.value)
    return InceptionScore(float(np.mean(values)), float(np.std(values)))


def _p_log_p(p: np.ndarray) -> float:
    """The sum of p log p, where 0 log 0 = 0."""
    return float((p * np.log(np.where(p > 0, p, 1))).sum())
