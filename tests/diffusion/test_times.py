"""Which times are trained: inverse distribution functions."""

import math
from functools import partial

import pytest
import torch

from ditwright.diffusion.times import Discrete, LogitNormal, LogNormal, Shifted, Uniform, shift_time

ALL = [
    Uniform(),
    Uniform((0.2, 0.7)),
    Discrete(7),
    LogitNormal(0.4, 1.3),
    LogNormal(),
    Shifted(Uniform(), 3.0),
    Shifted(LogitNormal(), 0.4),
]
every = partial(pytest.mark.parametrize, ids=repr)


def strata(n):
    """The middles of n equal parts of (0, 1)."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


@every("times", ALL)
def test_inverse_distribution_functions_grow(times):
    t = times(strata(1000))
    assert t.dtype == torch.float64
    assert (t.diff() >= 0).all()
    assert t[0] < t[-1]


@every("times", [t for t in ALL if not isinstance(t, LogNormal)])
def test_times_stay_in_the_span(times):
    t = times(torch.tensor([2.0**-54, 0.5, 1 - 2.0**-53], dtype=torch.float64))
    assert ((t > 0) & (t <= 1)).all()


def test_uniform_times_have_the_mean_of_their_span():
    t = Uniform((0.2, 0.7))(strata(1000))
    assert t.mean().item() == pytest.approx(0.45)
    assert (t.min().item(), t.max().item()) == pytest.approx((0.2, 0.7), abs=1e-3)


@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_discrete_times_cover_each_step_alike(steps):
    t = Discrete(steps)(strata(3 * steps))
    step, count = t.unique(return_counts=True)
    torch.testing.assert_close(step, (torch.arange(steps, dtype=torch.float64) + 1) / steps)
    assert (count == 3).all()


@pytest.mark.parametrize("u", [2.0**-54, 1 - 2.0**-53])
def test_discrete_times_are_steps_even_at_the_ends(u):
    index = Discrete(1000)(torch.tensor([u], dtype=torch.float64)) * 1000
    assert index.item() == (1 if u < 0.5 else 1000)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.2, 1.2), (0.5, 0.3)])
def test_the_normals_behind_times_have_their_mean_and_spread(mean, std):
    u = strata(20_000)
    for normal in (LogNormal(mean, std)(u).log(), torch.logit(LogitNormal(mean, std)(u))):
        assert normal.mean().item() == pytest.approx(mean, abs=1e-3)
        assert normal.std().item() == pytest.approx(std, rel=2e-3)
        assert normal.quantile(0.5).item() == pytest.approx(mean, abs=1e-3)
        assert normal.quantile(0.8413447).item() == pytest.approx(mean + std, abs=1e-2)


@every("times", [Uniform(), LogitNormal()])
def test_a_shift_above_1_moves_to_noise_and_below_1_to_data(times):
    u = strata(100)
    assert (Shifted(times, 3.0)(u) > times(u)).all()
    assert (Shifted(times, 1 / 3)(u) < times(u)).all()
    assert torch.equal(Shifted(times, 1.0)(u), times(u))


def test_shifts_keep_the_ends_and_multiply_when_composed():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert shift_time(t, 3.0)[[0, -1]].tolist() == [0, 1]
    torch.testing.assert_close(shift_time(shift_time(t, 3.0), 0.7), shift_time(t, 3.0 * 0.7))


def test_a_shift_divides_the_signal_to_noise_ratio_of_the_linear_path_by_its_square():
    t = strata(9)
    shifted = shift_time(t, 3.0)
    torch.testing.assert_close(((1 - shifted) / shifted) ** 2, ((1 - t) / t) ** 2 / 9)


def test_logit_normal_times_shifted_are_logit_normal():
    u = strata(100)
    torch.testing.assert_close(Shifted(LogitNormal(0.2, 0.9), 3.0)(u), LogitNormal(0.2 + math.log(3), 0.9)(u))
