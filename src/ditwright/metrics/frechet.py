"""The Frechet distance between Gaussians (Dowson & Landau 1982; FID: Heusel et al. 2017), and whether to believe it.

    |mean_a - mean_b|^2 + tr A + tr B - 2 tr (sqrt(A) B sqrt(A))^(1/2)        A, B the covariances

Each covariance is decomposed as a symmetric matrix, A = R R^T, and the last trace is the sum of the singular values
of R_a^T R_b: the roots of the eigenvalues of sqrt(A) B sqrt(A), without squaring what is to be rooted again, so that
covariances of deficient rank lose no digits. General matrix square roots (scipy.linalg.sqrtm of A B) have given FIDs
of 20 to 40 for 5 with some builds of LAPACK. So every decomposition is checked against its matrix, by sums that use
neither LAPACK nor BLAS, and before the first distance of a size a pair of Gaussians of known distance is measured.

N samples, D features, r the rank of a covariance.
"""

from __future__ import annotations

import functools

import numpy as np

from ..errors import UserError
from ..rng import generator
from .bootstrap import weights
from .statistics import ROWS, Gaussian, check_features, gaussian_of

EPS = float(np.finfo(np.float64).eps)
TOLERANCE = 1e-10  # of checks, relative: LAPACK's own errors are below 1e-12 at thousands of features


class SelfTestFailed(UserError):
    """The linear algebra of this machine gives wrong results, and so no distance is reported."""

    def __init__(self, what: str):
        super().__init__(
            f"no Frechet distance is reported, for the linear algebra of this numpy is wrong ({what}); "
            "reinstall numpy, or compute on another machine"
        )


def frechet(a: Gaussian, b: Gaussian) -> float:
    """The distance, 0 or more. The first call for a number of features takes twice as long, for the self-test.

    UserError where the two are of other features; SelfTestFailed where a check of the result fails.
    """
    check_comparable(a, b)
    _known_answer(a.size)
    return _distance(a, b, _singular_values(a, b))


def check_comparable(a: Gaussian, b: Gaussian) -> None:
    """UserError where the numbers of features, or the extractors' names where both are known, are not the same."""
    if a.size != b.size:
        raise UserError(f"{a.size} features cannot be compared with {b.size}: the extractors are not the same")
    if a.extractor and b.extractor and a.extractor != b.extractor:
        raise UserError(
            f"features of {a.extractor!r} cannot be compared with those of {b.extractor!r}; use one extractor for both"
        )


def linearised(reference: Gaussian, features: np.ndarray, extractor: str = "") -> np.ndarray:
    """(N,) numbers with the distance of `features` (N, D) as their mean, that move it as each sample does.

    They are the distance plus its first derivative by a sample's weight (the infinitesimal jackknife, Efron 1982):
    with T the optimal transport map from the features' Gaussian to the reference, 2 (mean - mean_ref) . x' +
    x'^T (1 - T) x' less its mean, x' = x - mean. Resampled means of them give the interval of a Frechet distance
    at the cost of one, and around the number itself: resampling features makes distances larger by their bias once
    more. Too wide where samples are few for the features (by half for N = 1.5 D). The reference is taken as exact.
    """
    ours = gaussian_of(features, extractor)
    check_comparable(reference, ours)
    _known_answer(ours.size)
    root = _root(reference.covariance)
    left, values, _ = np.linalg.svd(root.T @ _root(ours.covariance), full_matrices=False)
    distance = _distance(reference, ours, values)
    kept = values > ours.size * EPS * values.max(initial=0)
    transport = root @ (left[:, kept] / np.sqrt(values[kept]))  # (D, r); T = transport transport^T
    shift, stretch = np.empty((2, len(features)))
    for start in range(0, len(features), ROWS):
        some = slice(start, start + ROWS)
        rows = features[some] - ours.mean  # (B, D)
        shift[some] = 2 * rows @ (ours.mean - reference.mean)
        stretch[some] = (rows**2).sum(1) - ((rows @ transport) ** 2).sum(1)
    spread = np.trace(ours.covariance)
    if not abs(stretch.sum() / (len(features) - 1) - (spread - values.sum())) <= 1e-7 * spread:
        raise SelfTestFailed("singular vectors that do not make up their matrix")
    return distance + shift - shift.mean() + stretch - stretch.mean()


def resampled(reference: Gaussian, features: np.ndarray, rounds: int, seed: int = 0) -> np.ndarray:
    """(rounds,) distances of `features` (N, D) drawn again with replacement: the bootstrap itself.

    Each round costs N D^2 multiply-adds and two decompositions: milliseconds for 64 features, half a minute for 2048,
    where `linearised` is the way. The numbers lie above the distance, each having its bias twice.
    """
    check_features(features, reference.size, least=2)
    _known_answer(reference.size)
    root = _root(reference.covariance)
    sets = (gaussian_of(features, weights=times) for times in weights(len(features), rounds, seed))
    return np.array([_distance(reference, ours, _singular_values(reference, ours, root)) for ours in sets])


def sampling_bias(population: Gaussian, count: int) -> float:
    """The distance that `count` samples of `population` itself are expected to have from it: FID's bias, about.

    Second order of the distance in the errors of mean and covariance (the Bures metric, with Wishart's variances),
    so the leading term in D / count: low by a tenth where that is 1, for normal features.
    """
    values = np.clip(np.linalg.eigvalsh(population.covariance), 0, None)
    sums = np.add.outer(values, values)
    pairs = np.multiply.outer(values, values) / np.where(sums > 0, sums, 1)
    return float(values.sum() / count + (pairs.sum() + values.sum() / 2) / (2 * (count - 1)))


def _distance(a: Gaussian, b: Gaussian, values: np.ndarray) -> float:
    """The formula at the top, from the singular values of R_a^T R_b, whose squares must make up tr A B."""
    expected = (a.covariance * b.covariance).sum()
    scale = np.sqrt((a.covariance**2).sum() * (b.covariance**2).sum())
    if not abs((values**2).sum() - expected) <= TOLERANCE * scale:
        raise SelfTestFailed("singular values that do not make up their matrix")
    apart, traces = a.mean - b.mean, np.trace(a.covariance) + np.trace(b.covariance)
    covariances = traces - 2 * values.sum()
    if not covariances >= -TOLERANCE * traces:
        raise SelfTestFailed("covariances of a negative distance")
    return float((apart * apart).sum() + max(covariances, 0.0))


def _singular_values(a: Gaussian, b: Gaussian, root_a: np.ndarray | None = None) -> np.ndarray:
    """Of R_a^T R_b; `root_a` where it is known already."""
    root_a = _root(a.covariance) if root_a is None else root_a
    return np.linalg.svd(root_a.T @ _root(b.covariance), compute_uv=False)


def _root(covariance: np.ndarray) -> np.ndarray:
    """R (D, r) with R R^T = covariance. UserError where that has negative eigenvalues."""
    values, vectors = np.linalg.eigh(covariance)
    scale = float(np.abs(values).max(initial=0))
    probe = generator(0, len(values), "frechet").standard_normal(len(values))
    for what, expected, came in (
        ("eigenvectors", probe, _times(vectors, _times(vectors.T, probe))),
        ("eigenvalues", _times(covariance, probe), _times(vectors, values * _times(vectors.T, probe))),
    ):
        allowed = TOLERANCE * np.sqrt((probe**2).sum()) * (scale if what == "eigenvalues" else 1)
        if not np.sqrt(((came - expected) ** 2).sum()) <= allowed:  # so written that NaN fails
            raise SelfTestFailed(f"{what} that do not make up their matrix")
    if values.min(initial=0) < -1e-5 * scale:
        raise UserError(f"the covariance is none: it has an eigenvalue of {values.min():.3g}, the largest {scale:.3g}")
    kept = values > len(values) * EPS * scale
    return vectors[:, kept] * np.sqrt(values[kept])


def _times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """The product, by numpy's own loops instead of BLAS."""
    return np.einsum("ij,j->i", matrix, vector, optimize=False)


@functools.cache
def _known_answer(size: int) -> None:
    """Measure two Gaussians of D features whose distance is known; SelfTestFailed where it comes out otherwise.

    A has eigenvalues over six decades and an eighth of them zero, turned by a reflection. B = M A M, the image of A
    under M = 1 + u u^T, which is the optimal transport between them: their distance is tr (M - 1) A (M - 1) = u^T A u.
    """
    values = np.geomspace(1, 1e-6, size) * (np.arange(size) < max(1, size - size // 8))
    u, v = (generator(1, i, "frechet").standard_normal(size) for i in range(2))
    u, v = u / np.sqrt((u**2).sum()), v / np.sqrt((v**2).sum())
    bent = values * v
    a = np.diag(values) - 2 * (np.multiply.outer(v, bent) + np.multiply.outer(bent, v))
    a += 4 * (v * bent).sum() * np.multiply.outer(v, v)  # (1 - 2 v v^T) diag(values) (1 - 2 v v^T)
    image = _times(a, u)
    known = float((u * image).sum())
    b = a + np.multiply.outer(u, image) + np.multiply.outer(image, u) + known * np.multiply.outer(u, u)
    one, other = Gaussian(np.zeros(size), a), Gaussian(np.zeros(size), b)
    came = _distance(one, other, _singular_values(one, other))
    if not abs(came - known) <= TOLERANCE * np.trace(a):
        raise SelfTestFailed(f"a distance of {known:.6g} comes out as {came:.6g} at {size} features")
