"""A power law with a floor: known ones are found again, with intervals that hold them."""

from __future__ import annotations

import numpy as np
import pytest

from ditwright.errors import UserError
from ditwright.scaling.law import fit_law, fit_many

X = np.geomspace(1e-4, 0.06, 15)
A, B, C = 0.05, 0.3, 0.2
Y = A * X**-B + C


def noisy(seed, *, scatter=0.02, seeds=2):
    draws = np.random.Generator(np.random.Philox(seed))
    return Y[:, None] * np.exp(scatter * draws.standard_normal((len(X), seeds)))


@pytest.mark.parametrize(("a", "b", "c"), [(A, B, C), (2.0, 1.0, 0.0), (0.01, 0.1, 1.0), (3.0, 2.0, 5.0)])
def test_an_exact_law_is_found(a, b, c):
    law = fit_law(X, (a * X**-b + c)[:, None], rounds=5)
    np.testing.assert_allclose(law.at(X), a * X**-b + c, rtol=1e-4)
    assert law.b == pytest.approx(b, rel=2e-3)
    np.testing.assert_allclose(law.errors, 0, atol=1e-4)


def test_a_noisy_law_lies_within_its_intervals_and_foretells_a_larger_network():
    hits = np.zeros(4)
    for seed in range(6):
        law = fit_law(X, noisy(seed), rounds=150, seed=seed)
        for place, (name, true) in enumerate(zip("abc", (A, B, C), strict=True)):
            low, high = law.interval(name)
            hits[place] += low <= true <= high
        low, high = law.predicted(0.18)
        hits[3] += low <= A * 0.18**-B + C <= high
        assert high / low < 1.3
    assert (hits >= 5).all()


def test_no_floor_and_no_fall_are_laws_too():
    flat = fit_law(X, np.full((len(X), 1), 0.7), rounds=5)
    np.testing.assert_allclose(flat.at(X), 0.7, rtol=1e-6)
    rising = fit_law(X, (X**0.1)[:, None], rounds=5)
    assert rising.a == 0  # nothing falls, so nothing is foretold to


def test_the_unit_of_cost_changes_the_factor_alone():
    one, other = (fit_law(scale * X, noisy(1), rounds=20) for scale in (1, 1e9))
    np.testing.assert_allclose((one.b, one.c), (other.b, other.c), rtol=1e-9)
    assert other.a == pytest.approx(one.a * 1e9**one.b, rel=1e-9)
    np.testing.assert_allclose(one.interval("b"), other.interval("b"), rtol=1e-9)


def test_one_run_that_went_wrong_hardly_moves_the_law():
    ys = noisy(2)
    ys[7] *= 2
    squares = fit_many(X[None], ys.mean(1)[None], np.inf).at(X)[0]
    robust, clean = fit_law(X, ys, rounds=5), fit_law(X, noisy(2), rounds=5)
    assert np.abs(robust.at(X) / clean.at(X) - 1).max() < 0.02
    assert np.abs(squares / clean.at(X) - 1).max() > 0.04
    assert robust.errors[7] == pytest.approx(1, abs=0.1)


def test_many_data_sets_at_once_are_each_fitted_alone():
    ys = np.stack([noisy(seed).mean(1) for seed in range(3)])
    together = fit_many(np.tile(X, (3, 1)), ys, 0.02)
    for i in range(3):
        alone = fit_many(X[None], ys[i : i + 1], 0.02)
        np.testing.assert_array_equal([part[i] for part in together], [part[0] for part in alone])


def test_the_same_seed_draws_the_same_intervals():
    laws = [fit_law(X, noisy(3), rounds=30, seed=seed) for seed in (0, 0, 1)]
    assert laws[0].interval("b") == laws[1].interval("b") != laws[2].interval("b")


@pytest.mark.parametrize("x", [[1.0, 2.0], [1.0, 2.0, 2.0, 1.0], []])
def test_fewer_than_three_costs_are_refused(x):
    with pytest.raises(UserError, match="at least 3 finished networks of different cost; there are"):
        fit_law(x, [[1.0]] * len(x))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_values_that_no_power_reaches_are_refused(bad):
    with pytest.raises(UserError, match="above 0"):
        fit_law([1.0, 2.0, 3.0], [[1.0], [bad], [1.0]], rounds=2)
