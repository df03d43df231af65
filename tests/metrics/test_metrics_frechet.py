"""The Frechet distance: closed forms, the libraries that people use, and linear algebra that has gone wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditwright.errors import UserError
from ditwright.metrics import frechet as module
from ditwright.metrics.bootstrap import draws, interval, percentiles
from ditwright.metrics.frechet import SelfTestFailed, frechet, linearised, resampled, sampling_bias
from ditwright.metrics.statistics import Gaussian, gaussian_of


def features_of(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Rectified and correlated, as features are."""
    draw = np.random.default_rng(seed)
    return np.maximum(draw.standard_normal((count, size)) @ draw.standard_normal((size, size)) / size**0.5 + 0.3, 0)


def turn(size: int, seed: int = 0) -> np.ndarray:
    """A rotation."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


@pytest.mark.parametrize("size", [1, 2, 7, 64, 200])
def test_covariances_that_commute(size):
    draw = np.random.default_rng(size)
    a, b, apart, axes = *draw.uniform(0, 9, (2, size)), draw.standard_normal(size), turn(size)
    one, other = Gaussian(np.zeros(size), axes * a @ axes.T), Gaussian(apart, axes * b @ axes.T)
    known = (apart**2).sum() + ((a**0.5 - b**0.5) ** 2).sum()
    assert frechet(one, other) == pytest.approx(known, rel=1e-12)


def test_covariances_that_do_not_commute():
    """In two dimensions tr sqrt(M) = sqrt(tr M + 2 sqrt(det M))."""
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.9], [-0.9, 3.0]])
    root = (np.trace(a @ b) + 2 * (np.linalg.det(a) * np.linalg.det(b)) ** 0.5) ** 0.5
    known = np.trace(a) + np.trace(b) - 2 * root
    assert frechet(Gaussian(np.zeros(2), a), Gaussian(np.zeros(2), b)) == pytest.approx(known, rel=1e-12)


def test_identities():
    a, b = gaussian_of(features_of(300, 40)), gaussian_of(features_of(300, 40, 1))
    assert frechet(a, a) == pytest.approx(0, abs=1e-12 * np.trace(a.covariance))
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)
    axes, far = turn(40), np.random.default_rng(2).standard_normal(40)
    moved = [Gaussian(axes @ g.mean + far, axes @ g.covariance @ axes.T) for g in (a, b)]
    assert frechet(*moved) == pytest.approx(frechet(a, b), rel=1e-11)
    shifted = Gaussian(a.mean + 0.5, a.covariance)
    assert frechet(a, shifted) == pytest.approx(40 * 0.25, rel=1e-12)
    scaled = [Gaussian(g.mean * 3, g.covariance * 9) for g in (a, b)]
    assert frechet(*scaled) == pytest.approx(9 * frechet(a, b), rel=1e-12)


@pytest.mark.parametrize("counts", [(12, 15), (12, 400), (400, 9)])
def test_fewer_samples_than_features_lose_no_digits(counts):
    """Features that lie in a space of 24 dimensions have the distance that they have in that space."""
    one, other = (features_of(n, 24, seed) for seed, n in enumerate(counts))
    wide = np.zeros((24, 150))
    wide[:, :24] = np.eye(24)
    wide = wide @ turn(150)
    inside = frechet(gaussian_of(one), gaussian_of(other))
    assert frechet(gaussian_of(one @ wide), gaussian_of(other @ wide)) == pytest.approx(inside, rel=1e-10)


def test_collapsed_samples():
    """Samples that are all the same: only the means and the other's trace are left."""
    same, real = gaussian_of(np.ones((5, 8))), gaussian_of(features_of(50, 8))
    known = ((1 - real.mean) ** 2).sum() + np.trace(real.covariance)
    assert frechet(real, same) == pytest.approx(known, rel=1e-12)
    assert frechet(same, same) == 0


def test_the_definition_by_a_square_root():
    """sqrt(A), then the roots of the eigenvalues of sqrt(A) B sqrt(A); and scipy, where it is stable."""
    a, b = gaussian_of(features_of(900, 30)), gaussian_of(features_of(900, 30, 1))
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(values) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root)).sum()
    rest = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance)
    assert frechet(a, b) == pytest.approx(rest - 2 * trace, rel=1e-11)
    linalg = pytest.importorskip("scipy.linalg")
    assert frechet(a, b) == pytest.approx(rest - 2 * np.trace(linalg.sqrtm(a.covariance @ b.covariance)).real, rel=1e-9)


@pytest.mark.parametrize("size", [16, 96])
def test_torchmetrics_agrees(size):
    image = pytest.importorskip("torchmetrics.image.fid")

    class Identity(torch.nn.Module):
        num_features = size

        def forward(self, x):
            return x

    theirs = image.FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    one, other = features_of(2000, size), features_of(1500, size, 1) * 1.1
    theirs.update(torch.from_numpy(one), real=True)
    theirs.update(torch.from_numpy(other), real=False)
    assert frechet(gaussian_of(one), gaussian_of(other)) == pytest.approx(theirs.compute().item(), rel=1e-6)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match="4 features cannot be compared with 5"):
        frechet(Gaussian(np.zeros(4), np.eye(4)), Gaussian(np.zeros(5), np.eye(5)))
    one, other = (Gaussian(np.zeros(4), np.eye(4), extractor=name) for name in ("inception-1", "dino-2"))
    with pytest.raises(UserError, match="features of 'inception-1' cannot be compared with those of 'dino-2'"):
        frechet(one, other)
    assert frechet(one, Gaussian(np.zeros(4), np.eye(4))) == pytest.approx(0, abs=1e-12)
    with pytest.raises(UserError, match="the covariance is none: it has an eigenvalue of -1"):
        frechet(one, Gaussian(np.zeros(4), np.diag([3.0, 1, 1, -1])))


def in_float32(function):
    return lambda matrix, **words: [
        np.asarray(part, np.float64) for part in function(matrix.astype(np.float32), **words)
    ]


def values_off(function):
    def eigh(matrix, **words):
        values, vectors = function(matrix, **words)
        return values * (1 + 1e-7), vectors

    return eigh


def vectors_off(function):
    def eigh(matrix, **words):
        values, vectors = function(matrix, **words)
        vectors[3, 5] += 1e-6
        return values, vectors

    return eigh


def largest_off(function):
    """By a part in a million."""
    return lambda matrix, **words: function(matrix, **words) * np.where(np.arange(len(matrix)), 1, 1 + 1e-6)


def smallest_off(function):
    """Those below a hundred-thousandth of the largest have not converged: the sum of squares cannot tell."""

    def svd(matrix, **words):
        values = function(matrix, **words)
        return values * np.where(values < 1e-5 * values[0], 1.01, 1)

    return svd


def lost(function):
    return lambda matrix, **words: function(matrix, **words) * np.nan


FAULTS = [
    ("eigh", in_float32, "eigenvectors"),
    ("eigh", values_off, "eigenvalues"),
    ("eigh", vectors_off, "eigenvectors"),
    ("svd", largest_off, "singular values"),
    ("svd", lost, "singular values"),
]


@pytest.mark.parametrize(
    ("routine", "fault", "said"), [*FAULTS, ("svd", smallest_off, r"a distance of 0\.\d+ comes out")]
)
def test_wrong_linear_algebra_is_noticed(routine, fault, said, monkeypatch):
    """Faults that move a distance by parts in a million, or by nothing yet, are reported instead of it."""
    a, b = gaussian_of(features_of(300, 30)), gaussian_of(features_of(300, 30, 1))
    module._known_answer.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(np.linalg, routine, fault(getattr(np.linalg, routine)))
        with pytest.raises(SelfTestFailed, match=f"no Frechet distance is reported, .*{said}"):
            frechet(a, b)
    assert frechet(a, b) > 0


@pytest.mark.parametrize(("routine", "fault", "said"), FAULTS)
def test_faults_after_the_first_distance_are_noticed_too(routine, fault, said, monkeypatch):
    """The known answer is asked for once per size; the checks of a result are made each time."""
    a, b = gaussian_of(features_of(300, 30)), gaussian_of(features_of(300, 30, 1))
    frechet(a, b)
    monkeypatch.setattr(np.linalg, routine, fault(getattr(np.linalg, routine)))
    with pytest.raises(SelfTestFailed, match=said):
        frechet(a, b)


def test_wrong_singular_vectors_are_noticed(monkeypatch):
    reference, features = gaussian_of(features_of(300, 12)), features_of(200, 12, 1)
    linearised(reference, features)
    svd = np.linalg.svd

    def swapped(matrix, **words):
        found = svd(matrix, **words)
        return (found[0][:, ::-1], *found[1:]) if isinstance(found, tuple) else found

    monkeypatch.setattr(np.linalg, "svd", swapped)
    with pytest.raises(SelfTestFailed, match="singular vectors"):
        linearised(reference, features)


@pytest.mark.parametrize("count", [6, 300])
def test_the_linearised_distance_has_the_distance_as_its_mean(count):
    reference, features = gaussian_of(features_of(400, 10)), features_of(count, 10, 1)
    distance = frechet(reference, gaussian_of(features))
    assert linearised(reference, features).mean() == pytest.approx(distance, rel=1e-11)


def test_the_linearised_distance_moves_as_the_distance_does():
    """Under weights that differ by parts in 10,000."""
    reference, features = gaussian_of(features_of(400, 10)), features_of(9000, 10, 1)
    equal = np.full(9000, 10_000)
    times = equal + np.random.default_rng(0).integers(-3, 4, 9000)
    values = linearised(reference, features)
    one, other = (frechet(reference, gaussian_of(features, weights=w)) for w in (equal, times))
    assert other - one == pytest.approx(np.average(values, weights=times) - values.mean(), rel=1e-3)


def test_the_linearised_distance_spreads_as_that_of_new_samples_does():
    """So does the bootstrap itself."""
    reference, count, draw = gaussian_of(features_of(4000, 8)), 500, np.random.default_rng(3)
    pool = features_of(60_000, 8) * 1.2
    fresh = np.array([frechet(reference, gaussian_of(pool[draw.integers(0, len(pool), count)])) for _ in range(300)])
    values = linearised(reference, pool[:count])
    low, high = interval(lambda drawn: values[drawn].mean(), count, rounds=500)
    assert low < values.mean() < high
    assert (high - low) / 3.92 == pytest.approx(fresh.std(), rel=0.25)
    assert values.std() / count**0.5 == pytest.approx(fresh.std(), rel=0.2)
    assert resampled(reference, pool[:count], 200).std() == pytest.approx(fresh.std(), rel=0.25)


def test_resampling_is_as_copying_the_drawn_samples():
    reference, features = gaussian_of(features_of(100, 5)), features_of(30, 5, 1)
    ours = resampled(reference, features, 4, seed=7)
    assert (resampled(reference, features, 2, seed=7) == ours[:2]).all()
    copied = [frechet(reference, gaussian_of(features[drawn])) for drawn in draws(30, 4, seed=7)]
    np.testing.assert_allclose(ours, copied, rtol=1e-11)
    assert percentiles(ours).low < percentiles(ours).high


def test_the_bias_of_few_samples():
    """What the distance of 400 samples from what they were drawn of comes to, on average."""
    size, count, draw = 12, 400, np.random.default_rng(0)
    scales = np.geomspace(1, 0.05, size)
    population = Gaussian(np.zeros(size), np.diag(scales**2))
    seen = [frechet(population, gaussian_of(draw.standard_normal((count, size)) * scales)) for _ in range(1000)]
    assert np.mean(seen) == pytest.approx(sampling_bias(population, count), rel=0.05)
    ball = Gaussian(np.zeros(3), np.eye(3))
    assert sampling_bias(ball, 101) == pytest.approx(3 / 101 + 3 * 4 / 400)
