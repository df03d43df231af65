"""Percentile bootstrap (Efron 1979): how far a number would move, had other samples of the same source been drawn.

Round r draws the same samples whatever the number of rounds. N samples, R rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..rng import generator


class Interval(NamedTuple):
    """Between what numbers the bootstrapped ones lie."""

    low: float
    high: float


def draws(count: int, rounds: int, seed: int = 0) -> Iterator[np.ndarray]:
    """(N,) numbers of samples, drawn with replacement, for each round."""
    if count < 2 or rounds < 1:
        raise UserError(f"a bootstrap needs at least 2 samples and 1 round; got {count} and {rounds}")
    for number in range(rounds):
        yield generator(seed, number, "bootstrap").integers(count, size=count)


def weights(count: int, rounds: int, seed: int = 0) -> Iterator[np.ndarray]:
    """(N,) int64: how often each sample was drawn, of the same `draws`. They sum up to N (multinomial)."""
    for drawn in draws(count, rounds, seed):
        yield np.bincount(drawn, minlength=count)


def percentiles(values: np.ndarray, level: float = 0.95) -> Interval:
    """The interval that holds the share `level` of the numbers (R,), as much left out below as above."""
    values = np.asarray(values, np.float64)
    if not 0 < level < 1:
        raise UserError(f"the level of an interval lies between 0 and 1; got {level}")
    if not np.isfinite(values).all():
        raise UserError(f"{int((~np.isfinite(values)).sum())} of {len(values)} bootstrapped numbers are not finite")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def interval(
    estimate: Callable[[np.ndarray], float], count: int, *, rounds: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The interval of `estimate(indices)` over resampled `indices` (N,) of `count` samples.

    Costs `rounds` estimates. For a mean over samples (precision, coverage, `frechet.linearised`) that is next to
    nothing: `interval(lambda drawn: flags[drawn].mean(), len(flags))`.
    """
    return percentiles(np.array([estimate(drawn) for drawn in draws(count, rounds, seed)]), level)
