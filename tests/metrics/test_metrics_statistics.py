"""Streamed statistics are those of all samples at once, however they are parted."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditwright.errors import UserError
from ditwright.metrics.score import inception_score
from ditwright.metrics.statistics import Gaussian, Moments, check_features, gaussian_of

PROCESSES = """
import os, sys
import numpy as np
import torch.distributed as dist
from ditwright.metrics.score import Score
from ditwright.metrics.statistics import Moments

def work(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    draw = np.random.default_rng(0)
    features, classes = draw.standard_normal((101, 5)) + 100, draw.dirichlet(np.ones(4), 101)
    moments, score = Moments(5, "name"), Score(4)
    if rank:  # the first process has no sample
        moments.update(features[rank - 1 :: world - 1])
        score.update(classes[rank - 1 :: world - 1])
    whole, scored = moments.over_processes(), score.over_processes()
    numbers = [whole.count, *whole.mean, *whole.covariance.ravel(), scored.count, scored.value]
    with open(f"{folder}/{rank}.bin", "wb") as file:
        file.write(np.array(numbers).tobytes())

children = []
for rank in range(3):
    if not (child := os.fork()):
        work(rank, 3, sys.argv[1])
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitpid(child, 0)[1] for child in children) > 0)
"""


def features_of(count: int = 700, size: int = 6, seed: int = 0) -> np.ndarray:
    """Correlated, far from the origin, of scales a thousand times apart."""
    draw = np.random.default_rng(seed)
    return draw.standard_normal((count, size)) @ draw.standard_normal((size, size)) * np.logspace(-3, 0, size) + 50


def parted(features: np.ndarray, cuts: list[int]) -> Moments:
    whole = Moments(features.shape[1])
    for part in np.split(features, cuts):
        moments = Moments(features.shape[1])
        for batch in np.array_split(part, 3):
            moments.update(batch)
        whole = whole.merge(moments)
    return whole


def assert_same(ours: Moments, features: np.ndarray) -> None:
    covariance = np.cov(features, rowvar=False)
    assert ours.count == len(features)
    np.testing.assert_allclose(ours.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(ours.covariance, covariance, rtol=1e-12, atol=1e-12 * np.abs(covariance).max())


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_parts_make_the_whole(parts):
    features = features_of()
    ours = parted(features, [len(features) * i // parts for i in range(1, parts)])
    assert_same(ours, features)
    one = parted(features, [])
    scale = np.abs(one.scatter).max()
    np.testing.assert_allclose(ours.scatter / scale, one.scatter / scale, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=6), st.integers(1, 5))
def test_any_cut_makes_the_whole_empty_parts_too(cuts, size):
    features = features_of(60, size)
    ours = parted(features, sorted(cuts))
    assert ours.count == 60
    np.testing.assert_allclose(ours.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        ours.covariance, np.cov(features, rowvar=False).reshape(size, size), rtol=1e-10, atol=1e-14
    )


def test_merging_changes_neither_part():
    one, other = Moments(6), Moments(6)
    one.update(features_of(20))
    other.update(features_of(30, seed=1))
    before = [(m.count, m.mean.copy(), m.scatter.copy()) for m in (one, other)]
    one.merge(other).update(features_of(5))
    for moments, (count, mean, scatter) in zip((one, other), before, strict=True):
        assert moments.count == count
        assert (moments.mean == mean).all()
        assert (moments.scatter == scatter).all()


def test_a_mean_far_away_costs_few_digits():
    """Sums of squares would lose all but four of them."""
    features = np.random.default_rng(0).standard_normal((400, 3)) + 1e6
    np.testing.assert_allclose(parted(features, [100]).covariance, np.cov(features, rowvar=False), rtol=1e-8)


def test_float32_and_float16_features_are_summed_in_float64():
    features = features_of().astype(np.float16)
    assert_same(parted(features, [300]), features.astype(np.float64))


def test_weights_are_copies():
    features, times = features_of(50), np.random.default_rng(1).integers(0, 4, 50)
    weighted, copied = gaussian_of(features, weights=times), gaussian_of(np.repeat(features, times, 0))
    assert weighted.count == copied.count == times.sum()
    np.testing.assert_allclose(weighted.mean, copied.mean, rtol=1e-13)
    np.testing.assert_allclose(weighted.covariance, copied.covariance, rtol=1e-12, atol=1e-15)


def test_processes_make_the_whole(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROCESSES, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    alike = {(tmp_path / f"{rank}.bin").read_bytes() for rank in range(3)}
    assert len(alike) == 1
    count, *numbers = np.frombuffer(alike.pop())
    draw = np.random.default_rng(0)
    features, classes = draw.standard_normal((101, 5)) + 100, draw.dirichlet(np.ones(4), 101)
    assert count == 101
    np.testing.assert_allclose(numbers[:5], features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(numbers[5:30], np.cov(features, rowvar=False).ravel(), rtol=1e-11, atol=1e-13)
    assert numbers[30:] == pytest.approx([101, inception_score(classes, 1).mean], rel=1e-12)


def test_alone_nothing_is_asked_of_others():
    ours = parted(features_of(), [300])
    alone = ours.over_processes()
    np.testing.assert_allclose(alone.covariance, ours.covariance, rtol=1e-14)
    assert (alone.count, alone.size) == (ours.count, ours.size)


def test_few_samples_are_told():
    assert gaussian_of(features_of(24)).cautions() == ()
    (few,) = gaussian_of(features_of(20)).cautions()
    assert few.startswith("20 samples are few for 6 features; ")
    (short,) = gaussian_of(features_of(5)).cautions()
    assert "the covariance has rank 4 at most" in short
    assert Gaussian(np.zeros(6), np.eye(6)).cautions() == ()


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (np.where(np.arange(9000)[:, None] == 5000, np.nan, np.zeros((9000, 6))), r"sample 5000 has NaN or infinite"),
        (np.full((3, 6), np.inf, np.float32), r"sample 0 has NaN or infinite"),
        (np.zeros((3, 7)), r"7 features a sample, where 6 are expected"),
        (np.zeros(6), r"need an array \(samples, features\) of numbers; got float64 \(6,\)"),
        (np.array([["a"] * 6]), r"of numbers; got <U1 \(1, 6\)"),
        ([[0.0] * 6], r"of numbers; got list"),
    ],
)
def test_features_that_are_none_are_refused(features, said):
    with pytest.raises(UserError, match=said):
        Moments(6).update(features)


def test_too_few_samples_are_refused():
    one = Moments(6)
    one.update(features_of(1))
    for covariance in (lambda: one.covariance, lambda: Moments(6).gaussian(), lambda: gaussian_of(features_of(1))):
        with pytest.raises(UserError, match="at least 2"):
            covariance()
    with pytest.raises(UserError, match=r"KID: 3 samples are too few; at least 5 are needed"):
        check_features(features_of(3), least=5, what="KID")


def test_features_of_another_extractor_are_not_merged():
    with pytest.raises(UserError, match=r"features of inception \(4\) cannot be merged with those of dino \(4\)"):
        Moments(4, "inception").merge(Moments(4, "dino"))
    with pytest.raises(UserError, match=r"\(4\) cannot be merged with those of another \(5\)"):
        Moments(4).merge(Moments(5))


@pytest.mark.parametrize(
    ("mean", "covariance", "count", "said"),
    [
        (np.zeros(3), np.eye(4), None, r"a mean \(3,\) and a covariance \(4, 4\) do not belong together"),
        (np.zeros((1, 3)), np.eye(3), None, "do not belong together"),
        (np.zeros(3), np.diag([1, np.nan, 1]), None, "NaN or infinite"),
        (np.zeros(3), np.triu(np.ones((3, 3))), None, "not symmetric"),
        (np.zeros(3), np.eye(3), 1, "at least 2 samples; got 1"),
    ],
)
def test_what_is_no_gaussian_is_refused(mean, covariance, count, said):
    with pytest.raises(UserError, match=said):
        Gaussian(mean, covariance, count)
