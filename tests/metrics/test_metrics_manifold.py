"""Precision, recall, density and coverage are what all distances, each by itself, give: flag by flag."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ditwright.errors import UserError
from ditwright.metrics import manifold
from ditwright.metrics.manifold import crowding, density_coverage, precision_recall, shared


@pytest.fixture(params=[(3, 4), (1024, 4096)], ids=["small blocks", "one block"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(manifold, "ROWS", request.param[0])
    monkeypatch.setattr(manifold, "COLUMNS", request.param[1])


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """All of them, squared, by differences."""
    return ((a.astype(np.float64)[:, None] - b.astype(np.float64)) ** 2).sum(-1)


def radii(points: np.ndarray, k: int) -> np.ndarray:
    """By sorting all distances; the first of them is that of a point to itself."""
    return np.sort(distances(points, points), 1)[:, k]


def by_definition(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, np.ndarray]:
    between = distances(real, fake)
    real_radii, fake_radii = radii(real, k), radii(fake, k)
    return {
        "precision": (between <= real_radii[:, None]).any(0),
        "recall": (between <= fake_radii).any(1),
        "density": (between < real_radii[:, None]).sum(0),
        "coverage": (between < real_radii[:, None]).any(1),
    }


def assert_by_definition(real: np.ndarray, fake: np.ndarray, k: int) -> None:
    known = by_definition(real, fake, k)
    flags = dict(zip(known, (*shared(real, fake, k), *crowding(real, fake, k)), strict=True))
    for name, ours in flags.items():
        assert (ours == known[name]).all(), name
    assert precision_recall(real, fake, k) == (known["precision"].mean(), known["recall"].mean())
    assert density_coverage(real, fake, k) == (known["density"].mean() / k, known["coverage"].mean())


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_features(k, dtype):
    draw = np.random.default_rng(k)
    real, fake = draw.standard_normal((41, 9)).astype(dtype), (draw.standard_normal((30, 9)) * 0.9).astype(dtype)
    assert_by_definition(real, fake, k)


@pytest.mark.usefixtures("_blocks")
def test_ties_everywhere():
    """On a grid far from the origin, where products lose the digits that decide."""
    draw = np.random.default_rng(0)
    real, fake = (draw.integers(0, 4, (n, 3)) + 1e7 for n in (40, 50))
    assert_by_definition(real, fake, 3)
    assert_by_definition(real + 1 / 3, fake + 1 / 3, 3)


@pytest.mark.usefixtures("_blocks")
def test_sets_that_share_samples():
    draw = np.random.default_rng(0)
    real = draw.standard_normal((40, 6)).astype(np.float32)
    assert_by_definition(real, real, 3)
    assert precision_recall(real, real) == (1, 1)
    assert_by_definition(real, np.concatenate([real[:20], real[:20], real[5:6].repeat(9, 0) + 1]), 3)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("fakes", [1, 2])
def test_collapsed_samples(fakes):
    """All alike: balls without size, which only copies touch."""
    draw = np.random.default_rng(0)
    real = draw.standard_normal((30, 6))
    fake = real[3 : 3 + fakes].repeat(15, 0)
    assert_by_definition(real, fake, 3)
    assert_by_definition(fake, real, 3)
    assert precision_recall(real, fake) == (1, fakes / 30)
    assert density_coverage(fake, fake) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(5, 12), st.just(2)), elements=st.sampled_from([0, 0.1, 1, 3, 1e4])),
    arrays(np.float32, st.tuples(st.integers(5, 12), st.just(2)), elements=st.sampled_from([0, 0.1, 1, 3, 1e4])),
    st.integers(1, 4),
)
def test_any_small_sets(real, fake, k):
    assert_by_definition(real, fake, k)


def test_scales_a_million_apart():
    """Products of large features hide small distances altogether."""
    draw = np.random.default_rng(0)
    real, fake = draw.standard_normal((2, 40, 5)) * 1e-6 + draw.integers(0, 2, (2, 40, 1)) * 1e6
    assert_by_definition(real, fake, 3)


def test_columns_of_an_array_are_features_as_any():
    draw = np.random.default_rng(0)
    real, fake = np.asfortranarray(draw.standard_normal((40, 6))), draw.standard_normal((6, 40)).T
    assert_by_definition(real, fake, 3)


def test_well_separated_and_equal_sets():
    draw = np.random.default_rng(0)
    real, near, far = draw.standard_normal((3, 400, 4))
    assert precision_recall(real, far + 100) == (0, 0)
    assert density_coverage(real, far + 100) == (0, 0)
    density, coverage = density_coverage(real, near)
    assert density == pytest.approx(1, abs=0.1)  # Naeem et al., Sec. 3.2
    assert coverage == pytest.approx(1 - 0.5**5, abs=0.03)  # 1 - 2^-k for equal counts (their Lemma 2)
    narrow = precision_recall(real, near * 0.3)
    assert narrow.precision > 0.95
    assert narrow.recall < 0.2


def test_memory_does_not_grow_with_pairs(monkeypatch):
    """Pairs that tie are subtracted in pieces too."""
    monkeypatch.setattr(manifold, "PAIRS", 10)
    draw = np.random.default_rng(0)
    assert_by_definition(draw.integers(0, 3, (30, 4)), draw.integers(0, 3, (30, 4)), 3)


@pytest.mark.parametrize("measure", [precision_recall, density_coverage])
def test_what_has_no_neighbours_is_refused(measure):
    points = np.random.default_rng(0).standard_normal((9, 4))
    with pytest.raises(UserError, match="real features: 4 samples are too few; at least 5 are needed"):
        measure(points[:4], points, 4)
    with pytest.raises(UserError, match="3 features a sample, where 4 are expected"):
        measure(points, points[:, :3], 4)
    with pytest.raises(UserError, match="real features: sample 2 has NaN"):
        measure(np.where(np.arange(9)[:, None] == 2, np.nan, points), points, 4)
    with pytest.raises(UserError, match="is at least 1; got 0"):
        measure(points, points, 0)
