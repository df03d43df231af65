"""The law that quality follows: y = a x^-b + c, a power of the cost x over a floor c.

Fitted by Huber's loss of the relative residuals (a x^-b + c) / y - 1: a run that went wrong pulls no harder than its
residual's sign, and small losses count as much as large ones. For a given b the rest is linear in a >= 0 and c >= 0,
so b is searched for along a line and no start can be wrong. Many data sets are fitted at once, for the bootstrap.

R data sets, P points of each, G values of b on trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from ..metrics.bootstrap import percentiles
from ..rng import generator

EXPONENTS = np.geomspace(0.02, 4, 33)  # the first b on trial
REFINEMENTS, FINER = 7, 9  # the neighbourhood of the best one is searched again, with so many
ROUNDS = 10  # of reweighting for Huber's loss
HUBER = 1.345  # standard deviations of the residuals within which they count by their square (Huber 1964)
CHUNK = 100  # data sets fitted at once, for memory's sake
FEWEST = 3  # networks of different cost: as many as the law has parameters


class Fits(NamedTuple):
    """Parameters of R laws, each (R,)."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """Every law at x (P,): (R, P)."""
        return self.a[:, None] * np.asarray(x, np.float64).reshape(1, -1) ** -self.b[:, None] + self.c[:, None]


@dataclass(frozen=True, eq=False)
class Law:
    """A fitted law, and those of the bootstrap's samples."""

    a: float  # above the floor at x = 1
    b: float
    c: float  # the floor
    resampled: Fits
    errors: np.ndarray  # (N,) relative residuals of the networks: y / law - 1
    span: tuple[float, float]  # least and largest x that it was fitted to

    def at(self, x: np.ndarray | float) -> np.ndarray:
        """y at x (P,)."""
        return self.a * np.asarray(x, np.float64) ** -self.b + self.c

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Of a parameter."""
        return percentiles(getattr(self.resampled, name), level)

    def band(self, x: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Where the law itself lies: low and high at x (P,)."""
        low, high = np.quantile(self.resampled.at(x), [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def predicted(self, x: float, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
        """Where a new network of cost x is expected: the law's own spread, and what networks scatter around it."""
        laws = self.resampled.at(x)[:, 0]
        drawn = generator(seed, 0, "scaling-scatter").integers(len(self.errors), size=len(laws))
        return percentiles(laws * (1 + self.errors[drawn]), level)


def fit_law(
    x: Sequence[float], ys: Sequence[Sequence[float]], *, rounds: int = 1000, seed: int = 0, what: str = "the law"
) -> Law:
    """The law of networks that cost x (N,) and reach ys: for each of them its seeds' values, as many as there are.

    The bootstrap draws networks anew, and among each one's seeds: so its intervals know both what seeds scatter and
    what networks leave the law by. UserError for fewer than three networks of different cost, and for values that are
    not above 0.
    """
    cost, means = np.asarray(x, np.float64), np.array([np.mean(values) for values in ys])
    if len(distinct := set(cost.tolist())) < FEWEST:
        raise UserError(
            f"{what} has three parameters and needs at least {FEWEST} finished networks of different cost; "
            f"there are {len(distinct)}"
        )
    return fit_points(cost, means, [_resample(ys, cost, generator(seed, i, "scaling")) for i in range(rounds)])


def fit_points(x: np.ndarray, y: np.ndarray, samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> Law:
    """The law of points (P,), with those of the bootstrap's `samples` of them, of equal length."""
    if not (np.isfinite(x).all() and np.isfinite(y).all() and x.min() > 0 and y.min() > 0):
        raise UserError(f"a power law needs costs and values above 0; got {x.tolist()} and {y.tolist()}")
    middle = float(np.exp(np.log(x).mean()))  # so that a and c are told apart at any scale of x
    rough = fit_many(x[None] / middle, y[None], np.inf)
    delta = HUBER * _spread(rough.at(x / middle)[0] / y - 1)
    best = fit_many(x[None] / middle, y[None], delta)
    many = fit_many(np.stack([s[0] for s in samples]) / middle, np.stack([s[1] for s in samples]), delta)
    best, many = (Fits(f.a * middle**f.b, f.b, f.c) for f in (best, many))
    a, b, c = (float(value[0]) for value in best)
    return Law(a, b, c, many, y / best.at(x)[0] - 1, (float(x.min()), float(x.max())))


def fit_many(x: np.ndarray, y: np.ndarray, delta: float) -> Fits:
    """The laws of R data sets x, y (R, P). `delta`: relative residual from which Huber's loss is linear."""
    parts = [_fit(x[i : i + CHUNK], y[i : i + CHUNK], delta) for i in range(0, len(x), CHUNK)]
    return Fits(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _fit(x: np.ndarray, y: np.ndarray, delta: float) -> Fits:
    rows = np.arange(len(x))
    b = np.broadcast_to(EXPONENTS, (len(x), len(EXPONENTS)))  # (R, G)
    for turn in range(1 + REFINEMENTS):
        a, c, loss = _linear(x, y, b, delta)
        best = loss.argmin(1)
        if turn < REFINEMENTS:
            low = b[rows, np.maximum(best - 1, 0)]
            high = b[rows, np.minimum(best + 1, b.shape[1] - 1)]
            b = np.geomspace(low, high, FINER, axis=1)
    return Fits(a[rows, best], b[rows, best], c[rows, best])


def _linear(x: np.ndarray, y: np.ndarray, b: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best a, c >= 0 for each b, and Huber's loss there: (R, G) each, by iterated reweighting."""
    u = x[:, None] ** -b[..., None] / y[:, None]  # (R, G, P): a u + c v is 1 where the law meets the point
    v = 1 / y[:, None]  # (R, 1, P)
    weight = np.ones_like(u)
    for _ in range(ROUNDS if np.isfinite(delta) else 1):
        a, c = _nonnegative(u, v, weight)
        distance = np.abs(a[..., None] * u + c[..., None] * v - 1)
        weight = np.minimum(1, delta / np.maximum(distance, 1e-300))
    inside = np.minimum(distance, delta)
    return a, c, (inside * (distance - inside / 2)).sum(-1)


def _nonnegative(u: np.ndarray, v: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a and c, neither below 0, that minimise the weighted sum of (a u + c v - 1)^2."""
    uu, uv, vv = (weight * u * u).sum(-1), (weight * u * v).sum(-1), (weight * v * v).sum(-1)
    u1, v1 = (weight * u).sum(-1), (weight * v).sum(-1)
    det = uu * vv - uv * uv
    safe = np.where(det > 1e-12 * uu * vv, det, np.inf)  # one point, or as good as one: no slope
    a, c = (vv * u1 - uv * v1) / safe, (uu * v1 - uv * u1) / safe
    only_a, only_c = u1 / uu, v1 / vv
    flat = (a < 0) | np.isinf(safe)
    return np.where(flat, 0, np.where(c < 0, only_a, a)), np.where(flat, only_c, np.where(c < 0, 0, c))


def _spread(residuals: np.ndarray) -> float:
    """A standard deviation that a few bad points do not move: from the median of the absolute residuals."""
    return max(1.4826 * float(np.median(np.abs(residuals))), 1e-9)


def _resample(
    ys: Sequence[Sequence[float]], cost: np.ndarray, draws: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Networks drawn again, until three of different cost are among them, and for each as many of its seeds."""
    while True:
        chosen = draws.integers(len(cost), size=len(cost))
        if len(set(cost[chosen].tolist())) >= FEWEST:
            break
    means = [np.mean([ys[i][j] for j in draws.integers(len(ys[i]), size=len(ys[i]))]) for i in chosen]
    return cost[chosen], np.array(means)
