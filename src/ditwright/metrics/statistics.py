"""Means and covariances of features, streamed: what a Frechet distance needs of a set of samples, and no more.

Parts are merged by the formula of Chan, Golub & LeVeque (1983), within a process and over processes, so that the
memory is that of one matrix whatever the number of samples. N samples, B of a batch, D features; all is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from ..errors import UserError

ROWS = 4096  # that are looked at together


def check_features(features: np.ndarray, size: int | None = None, *, least: int = 0, what: str = "features") -> None:
    """UserError unless `features` is (N, D) of finite numbers, with `least` samples or more and D = `size` if given."""
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype.kind not in "fiu":
        came = f"{features.dtype} {features.shape}" if isinstance(features, np.ndarray) else type(features).__name__
        raise UserError(f"{what}: need an array (samples, features) of numbers; got {came}")
    if size is not None and features.shape[1] != size:
        raise UserError(f"{what}: {features.shape[1]} features a sample, where {size} are expected")
    if len(features) < least:
        raise UserError(f"{what}: {len(features)} samples are too few; at least {least} are needed")
    for start in range(0, len(features), ROWS):
        finite = np.isfinite(features[start : start + ROWS]).all(1)
        if not finite.all():
            raise UserError(f"{what}: sample {start + int(finite.argmin())} has NaN or infinite features")


def total_over_processes(array: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """The sum of every process's array of this shape, float64; the array itself where this process is alone.

    `device` is where the processes' backend sends from: "cpu" for gloo, the process's GPU for NCCL.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return np.asarray(array, np.float64)
    tensor = torch.tensor(array, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.cpu().numpy()


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution of features: what a reference file holds. UserError where it is none."""

    mean: np.ndarray  # (D,)
    covariance: np.ndarray  # (D, D)
    count: int | None = None  # samples that it was made from, where known
    extractor: str = ""  # the name of what made the features, where known

    def __post_init__(self) -> None:
        mean, covariance = np.asarray(self.mean), np.asarray(self.covariance)
        if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
            raise UserError(f"a mean of {mean.dtype} and a covariance of {covariance.dtype} are not real numbers")
        mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise UserError(
                f"a mean {mean.shape} and a covariance {covariance.shape} do not belong together; need (D,) and (D, D)"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise UserError("the mean or the covariance has NaN or infinite entries")
        if np.abs(covariance - covariance.T).max(initial=0) > 1e-6 * np.abs(covariance).max(initial=0):
            raise UserError("the covariance is not symmetric")
        if self.count is not None and self.count < 2:
            raise UserError(f"a covariance needs at least 2 samples; got {self.count}")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "covariance", covariance)

    @property
    def size(self) -> int:
        """D, the number of features."""
        return len(self.mean)

    def cautions(self) -> tuple[str, ...]:
        """What a person should know before trusting a distance from it, a line each."""
        if self.count is None or self.count >= 4 * self.size:
            return ()
        few = f"{self.count} samples are few for {self.size} features"
        if self.count <= self.size:
            few += f": the covariance has rank {self.count - 1} at most"
        return (f"{few}; Frechet distances come out too large, comparable only at equal sample counts",)


class Moments:
    """Count, mean and scatter of the features seen so far; the scatter is the sum of (x - mean)(x - mean)^T."""

    def __init__(self, size: int, extractor: str = ""):
        self.size, self.extractor, self.count = size, extractor, 0
        self.mean = np.zeros(size)  # (D,)
        self.scatter = np.zeros((size, size))  # (D, D)

    def update(self, features: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Take in features (B, D); `weights` (B,), whole numbers, say how often each counts, as bootstraps draw them.

        UserError where they are of another size, or not finite.
        """
        check_features(features, self.size)
        rows = features.astype(np.float64)
        assert weights is None or (weights.dtype.kind in "iu" and weights.min(initial=0) >= 0), "weights are counts"
        count = len(rows) if weights is None else int(weights.sum())
        if not count:
            return
        mean = rows.mean(0) if weights is None else weights @ rows / count
        rows -= mean
        if weights is not None:
            rows *= np.sqrt(weights)[:, None]
        self._join(count, mean, rows)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of samples. UserError where they are of other features."""
        if (self.size, self.extractor) != (other.size, other.extractor):
            raise UserError(
                f"features of {self.extractor or 'one extractor'} ({self.size}) "
                f"cannot be merged with those of {other.extractor or 'another'} ({other.size})"
            )
        both = Moments(self.size, self.extractor)
        both.count, both.mean, both.scatter = self.count, self.mean.copy(), self.scatter + other.scatter
        if other.count:
            both._join(other.count, other.mean, np.zeros((0, self.size)))
        return both

    def over_processes(self, device: torch.device | str = "cpu") -> Moments:
        """The moments of every process's samples, the same on each of them; see `total_over_processes`."""
        whole = Moments(self.size, self.extractor)
        whole.count = round(float(total_over_processes(np.array([self.count], np.float64), device)[0]))
        whole.mean = total_over_processes(self.count * self.mean, device) / max(whole.count, 1)
        apart = self.mean - whole.mean
        whole.scatter = total_over_processes(self.scatter + self.count * np.multiply.outer(apart, apart), device)
        return whole

    def _join(self, count: int, mean: np.ndarray, centred: np.ndarray) -> None:
        """Add samples, given less their mean: their scatter, and that of the two means around the common one."""
        together = self.count + count
        between = np.sqrt(self.count * count / together) * (mean - self.mean)
        rows = np.concatenate([centred, between[None]])  # one product makes both scatters
        self.scatter += rows.T @ rows
        self.mean = self.mean + (mean - self.mean) * (count / together)
        self.count = together

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), unbiased: over N - 1, as numpy.cov. UserError for fewer than 2 samples."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 samples; got {self.count}")
        return self.scatter / (self.count - 1)

    def gaussian(self) -> Gaussian:
        """The normal distribution of these moments."""
        return Gaussian(self.mean, self.covariance, self.count, self.extractor)


def gaussian_of(features: np.ndarray, extractor: str = "", weights: np.ndarray | None = None) -> Gaussian:
    """The normal distribution of features (N, D) that are all at hand; `weights` (N,) as in `Moments.update`."""
    check_features(features, least=2)
    moments = Moments(features.shape[1], extractor)
    for start in range(0, len(features), ROWS):
        some = slice(start, start + ROWS)
        moments.update(features[some], None if weights is None else weights[some])
    return moments.gaussian()
