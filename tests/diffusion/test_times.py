"""Which times are trained: inverse distribution functions."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from ditwright.diffusion.config import ObjectiveConfig, ProcessConfig
from ditwright.diffusion.objective import objective_from
from ditwright.diffusion.process import process_from
from ditwright.diffusion.target import Prediction
from ditwright.diffusion.times import (
    Discrete,
    LogitNormal,
    LogNormal,
    Mode,
    Shifted,
    Uniform,
    flux_shift,
    resolution_shift,
    shift_time,
)
from ditwright.diffusion.validation import binned_loss
from ditwright.errors import UserError
from ditwright.rng import Draws

ALL = [
    Uniform(),
    Uniform((0.2, 0.7)),
    Discrete(7),
    LogitNormal(0.4, 1.3),
    LogNormal(),
    Mode(),
    Mode(-1.0),
    Mode(1.75),
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


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.29])
def test_mode_times_are_the_papers(scale):
    """Esser et al. 2024: f(u) = 1 - u - s (cos^2(pi u / 2) - 1 + u), which falls; ours is the same density rising."""
    u = strata(1000)
    theirs = 1 - u - scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)
    torch.testing.assert_close(Mode(scale)(u), theirs.flip(0))
    middle = ((theirs > 0.4) & (theirs < 0.6)).double().mean().item()
    assert (middle > 0.2) == (scale > 0) or scale == 0


def test_modes_without_an_inverse_are_refused():
    with pytest.raises(UserError, match=r"from -1 to 2 / \(pi - 2\) = 1.75; got 1.8"):
        Mode(1.8)


def test_more_tokens_are_moved_to_noise():
    """The direction that is so often taken for the other: at 4 times the tokens, SD3 trains and samples noisier."""
    assert resolution_shift(4096, 1024) == 2.0
    assert resolution_shift(256, 1024) == 0.5
    t = torch.tensor([0.25, 0.5, 0.75])
    assert (shift_time(t, resolution_shift(4096, 1024)) > t).all()
    torch.testing.assert_close(shift_time(t, 3.0), 3 * t / (1 + 2 * t))  # SD3's release


@pytest.mark.parametrize(
    ("space", "shift"),
    [((4, 4), 3.0), ((8, 8), 6.0), ((2, 2), 1.5), ((2, 8), 3.0), ((4, 8), 3 * 2**0.5), ((64,), 6.0)],
)
def test_a_shift_with_a_base_goes_by_the_positions_of_what_comes(space, shift):
    """SD3's: more positions, more noise. At the base it is as it is set, and the bins of held-out data have it too."""
    asked = []

    def denoiser(x_t, t, cond):
        asked.append(t)
        return Prediction(x_t, x_t)

    process, x0 = process_from(ProcessConfig()), torch.randn(6, 2, *space, dtype=torch.float64)
    config = ObjectiveConfig(times="logit-normal", shift=3.0, shift_base=16)
    fixed = replace(config, shift=shift, shift_base=0)
    for made in (config, fixed):
        loss = objective_from(made, process)
        asked.append(loss(denoiser, x0, {}, Draws(0, range(6), "train")))
        asked.append(binned_loss(loss, denoiser, x0, {}, Draws(0, range(6), "validation"), bins=3))
    by_size, alike = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    for one, other in zip(by_size, alike, strict=True):
        torch.testing.assert_close(one, other)
    assert by_size[0].unique().numel() == 6


def test_flux_shifts_by_its_line():
    """sigma = exp(mu) / (exp(mu) + 1 / t - 1), as its schedule is written."""
    assert (math.log(flux_shift(256)), math.log(flux_shift(4096))) == pytest.approx((0.5, 1.15))
    t, factor = torch.tensor([0.1, 0.5, 0.9]), flux_shift(1024)
    torch.testing.assert_close(shift_time(t, factor), factor / (factor + 1 / t - 1))
