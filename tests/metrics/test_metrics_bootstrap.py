"""Intervals by resampling: reproducible, and as wide as theory has it where there is one."""

from __future__ import annotations

import numpy as np
import pytest

from ditwright.errors import UserError
from ditwright.metrics.bootstrap import draws, interval, percentiles, weights


def test_a_round_draws_the_same_whatever_the_number_of_rounds():
    few, many = list(draws(50, 3, seed=1)), list(draws(50, 9, seed=1))
    assert all((a == b).all() for a, b in zip(few, many[:3], strict=True))
    assert not (many[0] == many[1]).all()
    assert not (few[0] == next(draws(50, 1, seed=2))).all()


def test_weights_are_the_draws_counted():
    for drawn, times in zip(draws(20, 5), weights(20, 5), strict=True):
        assert (np.repeat(np.arange(20), times) == np.sort(drawn)).all()


def test_the_interval_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(0).standard_normal(2000) * 3 + 10
    low, high = interval(lambda drawn: values[drawn].mean(), len(values), rounds=2000)
    error = values.std() / len(values) ** 0.5
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert interval(lambda drawn: values[drawn].mean(), len(values), rounds=2000) == (low, high)
    narrow = interval(lambda drawn: values[drawn].mean(), len(values), rounds=2000, level=0.5)
    assert (narrow.high - narrow.low) / error == pytest.approx(2 * 0.674, rel=0.1)


def test_percentiles_leave_out_as_much_on_either_side():
    assert percentiles(np.arange(101), 0.9) == pytest.approx((5, 95))


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: interval(lambda drawn: 0.0, 1, rounds=5), "at least 2 samples and 1 round; got 1 and 5"),
        (lambda: interval(lambda drawn: 0.0, 5, rounds=0), "at least 2 samples and 1 round; got 5 and 0"),
        (lambda: interval(lambda drawn: 0.0, 5, rounds=3, level=95), "lies between 0 and 1; got 95"),
        (lambda: interval(lambda drawn: np.nan, 5, rounds=3), "3 of 3 bootstrapped numbers are not finite"),
    ],
)
def test_what_has_no_interval_is_refused(ask, said):
    with pytest.raises(UserError, match=said):
        ask()
