"""The best size for a compute: slices through the training curves at equal compute (Hoffmann et al. 2022, approach 2).

With a constant learning rate a point of a curve is the end of a shorter run, so that one run per network serves every
slice; otherwise only runs that were planned to end at an equal compute do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .results import Network

FEWEST = 3  # networks of a slice: a parabola has three parameters
EQUAL = 0.05  # steps are whole numbers: computes that differ by less are equal


@dataclass(frozen=True)
class Slice:
    """Networks of one patch at one compute."""

    compute: float  # floating-point operations of training
    patch: int
    networks: tuple[str, ...]
    gflops: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def best(self) -> str:
        """The network with the least loss."""
        return self.networks[int(np.argmin(self.losses))]

    @property
    def parabola(self) -> tuple[float, ...]:
        """log loss = p0 z^2 + p1 z + p2 for z = log Gflops."""
        return tuple(np.polyfit(np.log(self.gflops), np.log(self.losses), 2).tolist())

    @property
    def minimum(self) -> float | None:
        """Gflops at the lowest point of the parabola; None where that is not among the networks."""
        square, slope, _ = self.parabola
        if square <= 0:
            return None
        lowest = math.exp(-slope / (2 * square))
        return lowest if min(self.gflops) < lowest < max(self.gflops) else None


def slices(found: Sequence[Network], budgets: Sequence[float] = ()) -> list[Slice]:
    """Every slice with networks enough. `budgets`: computes at which runs were planned to end."""
    by_patch: dict[int, dict[str, list[Network]]] = {}
    for network in found:
        by_patch.setdefault(network.patch, {}).setdefault(network.name, []).append(network)
    made = []
    for patch, named in sorted(by_patch.items()):
        for compute in budgets or halves(found):
            points = [
                (name, runs[0].gflops, loss)
                for name, runs in named.items()
                if (loss := loss_at(runs, compute)) is not None
            ]
            if len({gflops for _, gflops, _ in points}) >= FEWEST:
                names, gflops, losses = zip(*sorted(points, key=lambda point: point[1]), strict=True)
                made.append(Slice(compute, patch, names, gflops, losses))
    return made


def halves(found: Sequence[Network]) -> list[float]:
    """Half decades of compute within the span of the curves."""
    least, most = min(n.curve()[0][0] for n in found), max(n.compute for n in found)
    return [10 ** (k / 2) for k in range(math.ceil(2 * math.log10(least)), math.floor(2 * math.log10(most)) + 1)]


def loss_at(runs: Sequence[Network], compute: float) -> float | None:
    """The loss of a network after so much training, between two points of its curve by powers; None beyond it."""
    longest = max(runs, key=lambda network: network.compute)
    computes, losses = longest.curve()
    if longest.runs[0].constant and computes[0] <= compute <= computes[-1]:
        return float(np.exp(np.interp(np.log(compute), np.log(computes), np.log(losses))))
    ended = (network for network in runs if abs(network.compute / compute - 1) < EQUAL)
    return next((network.mean("loss") for network in ended), None)


def frontier(curves: Sequence[tuple[np.ndarray, np.ndarray]], count: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """The least loss that any network reaches with no more than so much compute, at `count` computes: (count,) each.

    From where the first curve ends: before that the cheapest network alone is learning its first things.
    """
    ends = np.log([computes[-1] for computes, _ in curves])
    grid = np.linspace(ends.min(), ends.max(), 16 * count)
    least = np.full(len(grid), np.inf)
    for computes, losses in curves:
        here = np.interp(grid, np.log(computes), np.log(losses), left=np.inf)  # a run that has ended keeps its loss
        least = np.minimum(least, here)
    chosen = np.linspace(0, len(grid) - 1, count).round().astype(int)
    return np.exp(grid[chosen]), np.exp(np.minimum.accumulate(least)[chosen])


def growth(found: Sequence[Slice]) -> float | None:
    """The power of compute with which the best size grows, over slices of all patches; None for fewer than two minima.

    Slices of a patch share a power and differ in their factor.
    """
    left, right = [], []
    for patch in {part.patch for part in found}:
        ends = [(math.log(s.compute), math.log(s.minimum)) for s in found if s.patch == patch and s.minimum]
        if len(ends) > 1:
            x, y = np.array(ends).T
            left += list(x - x.mean())
            right += list(y - y.mean())
    return float(np.dot(left, right) / np.dot(left, left)) if left else None
