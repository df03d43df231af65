"""KID is the unbiased cubic discrepancy, in blocks as at once, and torchmetrics' number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditwright.errors import UserError
from ditwright.metrics import kernel
from ditwright.metrics.bootstrap import draws
from ditwright.metrics.kernel import kid, mmd, resampled


def features_of(count: int, size: int = 12, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.maximum(draw.standard_normal((count, size)) + 0.3 * seed, 0).astype(np.float32)


def by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, pair by pair."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a.astype(np.float64) @ b.astype(np.float64)) / len(a) + 1) ** 3

    def within(f: np.ndarray) -> float:
        return np.mean([k(f[i], f[j]) for i in range(len(f)) for j in range(len(f)) if i != j])

    return within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])


@pytest.mark.parametrize("block", [1, 7, 2048])
def test_blocks_give_the_definition(block, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", block)
    x, y = features_of(23), features_of(17, seed=1)
    assert mmd(x, y) == pytest.approx(by_pairs(x, y), rel=1e-10)
    assert mmd(y, x) == pytest.approx(mmd(x, y), rel=1e-10)


def test_a_set_and_itself_are_below_0():
    """Pairs of a sample with itself count across only: the estimate is right on average, not at every draw."""
    assert mmd(features_of(30), features_of(30)) < 0


def test_it_is_0_on_average_for_equal_distributions():
    """However few samples."""
    draw = np.random.default_rng(0)
    values = [mmd(*draw.standard_normal((2, 10, 4))) for _ in range(3000)]
    assert abs(np.mean(values)) < 3 * np.std(values) / len(values) ** 0.5


@pytest.mark.parametrize("size", [12, 64])
def test_torchmetrics_agrees(size):
    """Subsets of all samples are the same subsets; and theirs, drawn as they draw, have their values here."""
    image = pytest.importorskip("torchmetrics.image.kid")

    class Identity(torch.nn.Module):
        num_features = size

        def forward(self, x):
            return x

    x, y = (features_of(300, size, seed).astype(np.float64) for seed in (0, 1))
    for subsets, subset_size in ((1, 300), (4, 100)):
        with pytest.warns(UserWarning, match="Metric `Kernel Inception Distance` will save"):
            theirs = image.KernelInceptionDistance(feature=Identity(), subsets=subsets, subset_size=subset_size)
        theirs.update(torch.from_numpy(x), real=True)
        theirs.update(torch.from_numpy(y), real=False)
        torch.manual_seed(0)
        mean, std = (float(number) for number in theirs.compute())
        torch.manual_seed(0)
        ours = []
        for _ in range(subsets):
            some = [torch.randperm(300)[:subset_size].numpy() for _ in range(2)]
            ours.append(mmd(x[some[0]], y[some[1]]))
        assert np.mean(ours) == pytest.approx(mean, rel=1e-6)
        assert np.std(ours) == pytest.approx(std, rel=1e-6, abs=1e-12)
    assert kid(x, y, subsets=3, subset_size=300).mean == pytest.approx(mmd(x, y), rel=1e-10)


def test_subsets_follow_from_the_seed():
    x, y = features_of(60), features_of(50, seed=1)
    one = kid(x, y, subsets=5, subset_size=20, seed=3)
    assert kid(x, y, subsets=5, subset_size=20, seed=3) == one
    assert kid(x, y, subsets=5, subset_size=20, seed=4) != one
    many = kid(x, y, subsets=400, subset_size=20)
    assert many.mean == pytest.approx(mmd(x, y), abs=4 * many.std / 20)


def test_resampling_leaves_out_pairs_of_a_sample_with_itself(monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", 11)
    x, y = features_of(30), features_of(25, seed=1)
    values = resampled(x, y, 3, seed=5)
    assert resampled(x, y, 2, seed=5) == pytest.approx(values[:2], rel=1e-13)
    drawn_x, drawn_y = next(draws(30, 1, seed=5)), next(draws(25, 1, seed=6))

    def within(f, drawn):
        gram = (f[drawn].astype(np.float64) @ f[drawn].astype(np.float64).T / 12 + 1) ** 3
        return gram[drawn[:, None] != drawn].mean()

    across = (x[drawn_x].astype(np.float64) @ y[drawn_y].astype(np.float64).T / 12 + 1) ** 3
    assert values[0] == pytest.approx(within(x, drawn_x) + within(y, drawn_y) - 2 * across.mean(), rel=1e-10)


def test_resampled_values_spread_around_the_number_as_new_samples_do():
    draw = np.random.default_rng(0)

    def new(count: int) -> tuple[np.ndarray, np.ndarray]:
        return draw.standard_normal((count, 6)), draw.standard_normal((count, 6)) + 0.5

    x, y = new(400)
    values, fresh = resampled(x, y, 400), [mmd(*new(400)) for _ in range(200)]
    assert values.mean() == pytest.approx(mmd(x, y), abs=0.2 * values.std())
    assert values.std() == pytest.approx(np.std(fresh), rel=0.3)


@pytest.mark.parametrize(
    ("x", "y", "words", "said"),
    [
        (features_of(9), features_of(9, 11), {}, "11 features a sample, where 12 are expected"),
        (features_of(9), features_of(1), {}, "KID: 1 samples are too few; at least 2"),
        (features_of(9), features_of(9) * np.nan, {}, "KID: sample 0 has NaN"),
        (features_of(9), features_of(7), {}, "subsets of 1000 cannot be drawn from 9 and 7 .* from 2 to 7"),
        (features_of(9), features_of(7), {"subset_size": 1}, "subsets of 1 cannot be drawn"),
        (features_of(9), features_of(7), {"subset_size": 5, "subsets": 0}, "at least 1 subset; got 0"),
    ],
)
def test_what_has_no_kid_is_refused(x, y, words, said):
    with pytest.raises(UserError, match=said):
        kid(x, y, **words)
