"""Is a sample among the real ones, and are the real ones among the samples? Balls around nearest neighbours tell.

Every point of a set has a ball that reaches to its k-th nearest neighbour in its own set, itself not counted.

    precision (Kynkaanniemi et al. 2019): share of fakes in some real point's ball
    recall: share of real points in some fake's ball
    density (Naeem et al. 2020): real balls that a fake is in, over k, on average
    coverage: share of real balls that some fake is in

A ball has its surface in precision and recall, as in ADM's evaluator and torch-fidelity, and has not in density and
coverage, as in the authors' package prdc.

The matrix of distances is made in blocks, by products; where rounding could decide a comparison, the distance is made
anew from differences, and so every flag is as if all distances had been. Copies of a point are measured once.
N real, M fake samples, D features; U different points, P pairs; distances are squared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from .statistics import check_features

ROWS, COLUMNS = 1024, 4096  # of the matrix of distances that are in memory together: 32 MB
PAIRS = 2**22  # numbers that are subtracted together


class PrecisionRecall(NamedTuple):
    """Both between 0 and 1."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density is about 1 for samples like the real ones, and may be more; coverage lies between 0 and 1."""

    density: float
    coverage: float


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Of features (N, D) and (M, D). Costs (N^2 + M^2 + N M) D multiply-adds. UserError for k samples or fewer."""
    return PrecisionRecall(*(float(flags.mean()) for flags in shared(real, fake, k)))


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> DensityCoverage:
    """Of features (N, D) and (M, D). Costs (N^2 + N M) D multiply-adds. UserError for k real samples or fewer."""
    counts, covered = crowding(real, fake, k)
    return DensityCoverage(float(counts.mean()) / k, float(covered.mean()))


def shared(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Which fakes (M,) are among the real points, and which real points (N,) among the fakes: their means are
    precision and recall, and resampled means their intervals, the manifolds taken as given."""
    check_features(real, least=k + 1, what="precision and recall: real features")
    check_features(fake, real.shape[1], least=k + 1, what="precision and recall: features")
    reals, fakes = _cloud(real), _cloud(fake)
    real_reach, fake_reach = _reach(reals, k), _reach(fakes, k)
    among_real, among_fake = np.zeros(len(fakes.points), bool), np.zeros(len(reals.points), bool)
    for rows, columns, block in _blocks(reals.points, fakes.points):
        among_real[columns] |= block.within(real_reach[rows, None], closed=True).any(0)
        among_fake[rows] |= block.within(fake_reach[None, columns], closed=True).any(1)
    return among_real[fakes.place], among_fake[reals.place]


def crowding(real: np.ndarray, fake: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """In how many real balls each fake is (M,), and which real balls (N,) have a fake: the means are k times density,
    and coverage."""
    check_features(real, least=k + 1, what="density and coverage: real features")
    check_features(fake, real.shape[1], least=1, what="density and coverage: features")
    reals, fakes = _cloud(real), _cloud(fake)
    reach = _reach(reals, k)
    counts, covered = np.zeros(len(fakes.points), np.int64), np.zeros(len(reals.points), bool)
    for rows, columns, block in _blocks(reals.points, fakes.points):
        inside = block.within(reach[rows, None], closed=False)
        counts[columns] += reals.copies[rows] @ inside
        covered[rows] |= inside.any(1)
    return counts[fakes.place], covered[reals.place]


@dataclass(frozen=True, eq=False)
class _Cloud:
    """A set of points, each of them once."""

    points: np.ndarray  # (U, D)
    place: np.ndarray  # (N,) which of them a sample is
    copies: np.ndarray  # (U,) how many samples it is


def _cloud(features: np.ndarray) -> _Cloud:
    """A generator that has collapsed makes thousands of equal points, every one at a distance that ties."""
    rows = np.ascontiguousarray(features)
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    _, first, place, copies = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    return _Cloud(rows[first], place.reshape(-1), copies)


def _reach(cloud: _Cloud, k: int) -> np.ndarray:
    """(U,) distance of every point's k-th nearest neighbour, its own copies included, itself not."""
    if k < 1:
        raise UserError(f"k, the number of the neighbour, is at least 1; got {k}")
    count, reach = len(cloud.points), np.empty(len(cloud.points))
    for begin in range(0, count, ROWS):
        rows = cloud.points[begin : begin + ROWS]
        near = _Nearest(len(rows), k + 1)
        for start in range(0, count, COLUMNS):
            near.look(_Block(rows, cloud.points[start : start + COLUMNS]), start)
        order = np.argsort(near.distances, 1)
        distances, which = (np.take_along_axis(a, order, 1) for a in (near.distances, near.which))
        seen = np.where(np.isfinite(distances), cloud.copies[which], 0).cumsum(1)  # itself among them
        reach[begin : begin + ROWS] = distances[np.arange(len(rows)), (seen > k).argmax(1)]
    return reach


class _Nearest:
    """The `keep` nearest points of each of some rows, by distances from differences."""

    def __init__(self, rows: int, keep: int):
        self.distances, self.which = np.full((rows, keep), np.inf), np.zeros((rows, keep), np.int64)

    def look(self, block: _Block, start: int) -> None:
        """See whether a block, whose columns are the points from `start` on, has nearer ones."""
        keep = min(self.distances.shape[1], block.rough.shape[1])
        likely = np.argpartition(block.rough, keep - 1, 1)[:, :keep]
        rows = np.repeat(np.arange(len(likely)), keep)
        measured = block.exact(rows, likely.ravel()).reshape(likely.shape)
        self._take(measured, likely + start)
        possible = block.rough - block.slack < self.distances.max(1)[:, None]  # what rounding may have hidden
        np.put_along_axis(possible, likely, False, 1)
        rows, columns = possible.nonzero()
        if len(rows):
            others = np.full(possible.shape, np.inf)
            others[rows, columns] = block.exact(rows, columns)
            self._take(others, np.broadcast_to(np.arange(start, start + others.shape[1]), others.shape))

    def _take(self, distances: np.ndarray, which: np.ndarray) -> None:
        """Keep the nearest of these and of what was kept."""
        keep = self.distances.shape[1]
        distances, which = np.hstack([self.distances, distances]), np.hstack([self.which, which])
        best = np.argpartition(distances, keep - 1, 1)[:, :keep]
        self.distances, self.which = (np.take_along_axis(a, best, 1) for a in (distances, which))


def _blocks(points: np.ndarray, others: np.ndarray) -> Iterator[tuple[slice, slice, _Block]]:
    """The matrix of distances between two sets, piece by piece."""
    for begin in range(0, len(points), ROWS):
        for start in range(0, len(others), COLUMNS):
            rows, columns = slice(begin, begin + ROWS), slice(start, start + COLUMNS)
            yield rows, columns, _Block(points[rows], others[columns])


class _Block:
    """Distances between few enough points to hold them all: roughly, with a bound of the error, and exactly."""

    def __init__(self, points: np.ndarray, others: np.ndarray):
        self.points, self.others = points.astype(np.float64), others.astype(np.float64)
        norms = np.add.outer(*((f**2).sum(1) for f in (self.points, self.others)))
        self.rough = norms - 2 * self.points @ self.others.T
        # a sum of D products is off by D eps of its terms (Higham 2002, Sec. 3.1): norms, product and differences
        norms *= (6 * points.shape[1] + 16) * np.finfo(np.float64).eps
        self.slack = norms

    def exact(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(P,) distances of pairs, as sums of squared differences."""
        distances, step = np.empty(len(rows)), max(1, PAIRS // self.points.shape[1])
        for i in range(0, len(rows), step):
            some = slice(i, i + step)
            distances[some] = ((self.points[rows[some]] - self.others[columns[some]]) ** 2).sum(1)
        return distances

    def within(self, reach: np.ndarray, *, closed: bool) -> np.ndarray:
        """Which distances are less than `reach`, (rows, 1) or (1, columns); or equal to it, where `closed`."""
        inside = self.rough < reach
        rows, columns = (np.abs(self.rough - reach) <= self.slack).nonzero()
        bound = np.broadcast_to(reach, inside.shape)[rows, columns]
        distances = self.exact(rows, columns)
        inside[rows, columns] = distances <= bound if closed else distances < bound
        return inside
