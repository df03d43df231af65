"""Kernel distance, KID (Binkowski et al. 2018): the squared maximum mean discrepancy under a cubic kernel, unbiased.

    k(x, y) = (x . y / D + 1)^3
    mmd = mean k(x, x') over x != x'  +  mean k(y, y') over y != y'  -  2 mean k(x, y)

Unlike a Frechet distance it is right on average for any number of samples; it may come out below 0. N and M samples,
D features, R rounds; matrices of N x M are made in blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..rng import generator
from .bootstrap import weights
from .statistics import check_features

BLOCK = 2048  # rows and columns of the kernel's matrix that are in memory together: 32 MB


class Kid(NamedTuple):
    """KID as papers report it."""

    mean: float
    std: float  # over the subsets: of one subset's value, not of the mean


def kid(x: np.ndarray, y: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> Kid:
    """Mean and standard deviation of `mmd` over subsets of x (N, D) and y (M, D), each drawn without replacement.

    As torchmetrics and torch-fidelity define it; which samples a subset holds follows from the seed alone. Times 1000
    in many papers. UserError where there are fewer samples than `subset_size`.
    """
    _check(x, y)
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise UserError(
            f"KID: subsets of {subset_size} cannot be drawn from {len(x)} and {len(y)} samples; "
            f"choose a subset_size from 2 to {min(len(x), len(y))}"
        )
    if subsets < 1:
        raise UserError(f"KID: needs at least 1 subset; got {subsets}")
    values = []
    for number in range(subsets):
        draw = generator(seed, number, "kid")
        values.append(mmd(*(f[draw.choice(len(f), subset_size, replace=False)] for f in (x, y))))
    return Kid(float(np.mean(values)), float(np.std(values)))


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate from all of x (N, D) and y (M, D): no subsets, no seed. N^2 + M^2 + N M kernels."""
    _check(x, y)
    return float(_discrepancy(x, y, np.ones((len(x), 1)), np.ones((len(y), 1)))[0])


def resampled(x: np.ndarray, y: np.ndarray, rounds: int, seed: int = 0) -> np.ndarray:
    """(R,) values of `mmd` with the samples of both sets drawn again with replacement, for `bootstrap.percentiles`.

    Pairs of a sample with itself, which such draws hold, are left out, so that the values scatter around `mmd`. All
    rounds share the kernels: a hundred of them cost little more than one where D is in the thousands.
    """
    _check(x, y)
    times = (np.stack(list(weights(len(f), rounds, seed + i)), 1).astype(np.float64) for i, f in enumerate((x, y)))
    return _discrepancy(x, y, *times)


def _check(x: np.ndarray, y: np.ndarray) -> None:
    """UserError where KID cannot be had of these."""
    check_features(x, least=2, what="KID")
    check_features(y, x.shape[1], least=2, what="KID")


def _discrepancy(x: np.ndarray, y: np.ndarray, times_x: np.ndarray, times_y: np.ndarray) -> np.ndarray:
    """(R,) values, where round r counts samples `times_x` (N, R) and `times_y` (M, R)."""
    across = _kernel_sums(x, y, times_x, times_y) / (times_x.sum(0) * times_y.sum(0))
    return _within(x, times_x) + _within(y, times_y) - 2 * across


def _within(x: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(R,) means of the kernel over pairs of different samples."""
    pairs = times.sum(0) ** 2 - (times**2).sum(0)
    norms = np.concatenate([(_float(x, i) ** 2).sum(1) for i in _starts(x)])
    selves = ((norms / x.shape[1] + 1) ** 3) @ times**2
    return (_kernel_sums(x, x, times, times) - selves) / pairs


def _kernel_sums(x: np.ndarray, y: np.ndarray, times_x: np.ndarray, times_y: np.ndarray) -> np.ndarray:
    """(R,) sums of k over all pairs; of a set with itself, blocks below the diagonal are those above it."""
    sums = np.zeros(times_x.shape[1])
    for i in _starts(x):
        rows = _float(x, i) / x.shape[1]
        for j in _starts(y):
            if x is y and j < i:
                continue
            kernel = rows @ _float(y, j).T + 1
            kernel *= kernel * kernel
            part = (times_x[i : i + BLOCK] * (kernel @ times_y[j : j + BLOCK])).sum(0)
            sums += part * (2 if x is y and j > i else 1)
    return sums


def _starts(x: np.ndarray) -> range:
    return range(0, len(x), BLOCK)


def _float(x: np.ndarray, start: int) -> np.ndarray:
    """A block of rows in float64."""
    return x[start : start + BLOCK].astype(np.float64)
