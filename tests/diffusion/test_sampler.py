"""Samplers, on data whose denoiser is known: x0 ~ N(MEAN, STD^2)."""

import itertools
import math
from functools import partial

import pytest
import torch

from ditwright.diffusion.grid import karras_rho, respaced, spaced, uniform, with_last
from ditwright.diffusion.path import DDPM, PATHS, karras, linear
from ditwright.diffusion.sampler import DIFFUSIONS, SAMPLERS, ddim, ddpm, dpmpp_2m, euler, heun, last, sde
from ditwright.diffusion.target import Prediction
from ditwright.errors import UserError

MEAN, STD = 0.7, 0.5
FLOW = ["euler", "heun", "ddim", "dpmpp_2m"]  # samplers of the probability flow
Z = torch.linspace(-2, 2, 5, dtype=torch.float64)  # starting points, in standard deviations


def exact(path):
    """E[x0 | x_t] and the noise that goes with it."""

    def denoise(x, t):
        c = path(t)
        total = c.alpha**2 * STD**2 + c.sigma**2
        x0 = MEAN + c.alpha * STD**2 / total * (x - c.alpha * MEAN)
        return Prediction(x0, (x - c.alpha * x0) / c.sigma)

    return denoise


def marginal(path, t):
    """Mean and standard deviation of x_t."""
    c = path(t)
    return c.alpha * MEAN, (c.alpha**2 * STD**2 + c.sigma**2).sqrt()


def grid(path, steps):
    return karras_rho(steps) if path is karras else uniform(steps)


def flow_error(sampler, path, steps):
    """Distance to the exact end of the probability flow, which keeps every point at its number of deviations."""
    times = grid(path, steps)
    mean, std = marginal(path, times[0])
    x = last(sampler(exact(path), mean + std * Z, times, path))
    return (x - (MEAN + STD * Z)).abs().max().item()


def moments(sampler, path, times):
    """Exact mean and standard deviation of what a stochastic sampler gives.

    With an affine denoiser it is affine in its noises: row 0 of the batch has none of them, every other row has one.
    """
    mean, std = marginal(path, times[0])
    x = mean.repeat(len(times) + 1)
    x[1] += std
    rows = iter(range(2, len(x)))

    def noise(x):
        return torch.zeros_like(x).index_fill(0, torch.tensor([next(rows)]), 1.0)

    x = last(sampler(exact(path), x, times, path, noise=noise))
    return x[0].item(), (x[1:] - x[0]).norm().item()


def refuse(x):
    raise AssertionError("this sampler draws no noise")


@pytest.mark.parametrize(("sampler", "path"), list(itertools.product(FLOW, PATHS)))
def test_samplers_of_the_flow_converge_to_its_exact_end(sampler, path):
    coarse, fine = (flow_error(SAMPLERS[sampler], PATHS[path], n) for n in (100, 400))
    assert fine < 0.01
    assert fine < coarse / 1.8 or fine < 1e-4


@pytest.mark.parametrize("path", ["linear", "cosine", "karras"])
@pytest.mark.parametrize(
    ("sampler", "low", "high"),
    [("euler", 0.95, 1.05), ("ddim", 0.95, 1.05), ("heun", 1.9, 2.2), ("dpmpp_2m", 1.6, 2.2)],
)
def test_halving_the_step_gains_what_the_order_promises(sampler, low, high, path):
    coarse, fine = (flow_error(SAMPLERS[sampler], PATHS[path], n) for n in (200, 400))
    assert low < math.log2(coarse / fine) < high


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sampler", [ddpm, partial(ddim, eta=1.0), partial(ddim, eta=0.5)], ids=["ddpm", "1", "0.5"])
def test_ancestral_samplers_have_the_mean_and_spread_of_the_data(sampler, path):
    mean, std = moments(sampler, PATHS[path], grid(PATHS[path], 400))
    assert mean == pytest.approx(MEAN, abs=1e-3)
    assert std == pytest.approx(STD, abs=0.01)


@pytest.mark.parametrize("path", ["linear", "vp"])
@pytest.mark.parametrize("last_step", ["mean", "euler", "tweedie"])
@pytest.mark.parametrize("form", DIFFUSIONS)
def test_the_sde_has_the_mean_and_spread_of_the_data_with_any_diffusion(form, last_step, path):
    path = PATHS[path]
    mean, std = moments(partial(sde, diffusion=form, last=last_step), path, uniform(300, 0.99))
    assert mean == pytest.approx(MEAN, abs=2e-3)
    assert std == pytest.approx(STD, abs=0.01)


@pytest.mark.parametrize("form", sorted(DIFFUSIONS.keys() - {"decreasing"}))  # which is not in proportion to its norm
def test_the_sde_without_diffusion_is_the_flow(form):
    times, x = uniform(20, 0.99), Z
    still = last(sde(exact(linear), x, times, linear, noise=torch.randn_like, diffusion=form, norm=1e-12))
    flow = last(euler(exact(linear), x, times, linear))
    torch.testing.assert_close(still, flow, atol=1e-4, rtol=0)


def test_every_diffusion_form_is_its_published_formula():
    t = torch.tensor(0.3, dtype=torch.float64)
    published = {  # Ma et al. 2024; here time runs from data to noise
        "constant": 2.0,
        "sbdm": 2.0 * (0.3 + 0.3**2 / 0.7),
        "sigma": 2.0 * 0.3,
        "linear": 2.0 * 0.3,
        "decreasing": 0.25 * (2.0 * math.cos(math.pi * 0.7) + 1) ** 2,
        "increasing-decreasing": 2.0 * math.sin(math.pi * 0.3) ** 2,
    }
    assert {name: w(t, linear(t), 2.0).item() for name, w in DIFFUSIONS.items()} == pytest.approx(published)


def test_the_closing_step_of_the_sde_is_what_its_name_says():
    times, x = torch.tensor([0.04, 0.0], dtype=torch.float64), Z
    c, (x0, eps) = linear(times[0]), exact(linear)(x, times[0])[:2]
    end = {
        how: last(sde(exact(linear), x, times, linear, last=how, noise=refuse)) for how in ("mean", "euler", "tweedie")
    }
    score = -(x - c.alpha * MEAN) / marginal(linear, times[0])[1] ** 2
    torch.testing.assert_close(end["tweedie"], x0)
    torch.testing.assert_close(end["euler"], x - 0.04 * (eps - x0))
    torch.testing.assert_close(end["mean"], x - 0.04 * (eps - x0 - c.sigma * score))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_ddim_is_euler_on_the_linear_path(steps):
    x, times = torch.randn(3, 4, dtype=torch.float64), uniform(steps)
    for a, b in zip(ddim(exact(linear), x, times, linear), euler(exact(linear), x, times, linear), strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a.x0, b.x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_ddim_with_eta_1_is_ddpm_with_the_posterior_variance(path):
    path = PATHS[path]
    table = isinstance(path, DDPM)
    times, x = respaced(1000, spaced(1000, 20)) if table else grid(path, 20), torch.randn(3, 4, dtype=torch.float64)
    draws = torch.randn(20, 3, 4, dtype=torch.float64)
    runs = []
    for sampler in (partial(ddim, eta=1.0), ddpm):
        drawn = iter(draws)
        runs.append(torch.stack([s.x for s in sampler(exact(path), x, times, path, noise=lambda x, d=drawn: next(d))]))
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("sampler", [ddim, dpmpp_2m])
def test_exponential_samplers_are_exact_where_the_data_is_one_point(sampler, path):
    path = PATHS[path]
    times, eps = grid(path, 5), torch.randn(4, dtype=torch.float64)

    def point(x, t):
        return Prediction(torch.full_like(x, MEAN), (x - path(t).alpha * MEAN) / path(t).sigma)

    start = path(times[0])
    for step in sampler(point, start.alpha * MEAN + start.sigma * eps, times, path):
        c = path(step.t)
        torch.testing.assert_close(step.x, c.alpha * MEAN + c.sigma * eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", [euler, heun])
def test_straight_lines_are_walked_exactly(sampler):
    x0, eps = torch.randn(2, 3, 4, dtype=torch.float64)
    (step,) = sampler(lambda x, t: Prediction(x0, eps), eps, uniform(1), linear)
    torch.testing.assert_close(step.x, x0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_yield_every_step_and_ask_only_when_asked(name):
    times, asked = uniform(6, 0.99), []

    def denoise(x, t):
        asked.append(t.item())
        return exact(linear)(x, t)

    steps = SAMPLERS[name](denoise, Z, times, linear, noise=torch.randn_like)
    assert asked == []
    first = next(steps)
    torch.testing.assert_close(first.x0, exact(linear)(Z, times[0]).x0)
    assert len(asked) == (2 if name == "heun" else 1)
    rest = list(steps)
    assert [first.t, *(step.t for step in rest)] == times[1:].tolist()
    assert len(asked) == (11 if name == "heun" else 6)
    assert 0 not in asked


@pytest.mark.parametrize("name", ["ddpm", "sde", "ddim"])
def test_stochastic_samplers_draw_once_a_step_but_for_the_last(name):
    drawn = []
    options = {"eta": 1.0} if name == "ddim" else {}
    last(SAMPLERS[name](exact(linear), Z, uniform(6, 0.99), linear, noise=lambda x: drawn.append(0) or x, **options))
    assert len(drawn) == 5
    with pytest.raises(UserError, match=f"{name}.* is stochastic: pass noise="):
        last(SAMPLERS[name](exact(linear), Z, uniform(6, 0.99), linear, **options))


@pytest.mark.parametrize("name", FLOW)
def test_samplers_of_the_flow_draw_no_noise(name):
    last(SAMPLERS[name](exact(linear), Z, uniform(6), linear, noise=refuse))


def test_learned_variance_widens_the_steps_of_ddpm():
    def learned(fraction):
        return lambda x, t: exact(linear)(x, t)._replace(var=torch.full_like(x, fraction))

    times, unit = uniform(6), torch.ones_like
    fixed, low, high = (
        next(ddpm(denoise, Z, times, linear, noise=unit)).x for denoise in (exact(linear), learned(0.0), learned(1.0))
    )
    torch.testing.assert_close(low, fixed)
    assert (high > low + 0.01).all()


def test_the_closing_step_of_a_stochastic_grid_may_be_short():
    mean, std = moments(sde, linear, with_last(uniform(300), 0.01))
    assert (mean, std) == pytest.approx((MEAN, STD), abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diffusion": "sigm"}, "unknown diffusion form 'sigm'.*did you mean 'sigma'"),
        ({"last": "heun"}, "unknown last step 'heun'"),
        ({"diffusion": "sbdm"}, "diffusion form 'sbdm' is infinite at t = 1"),
    ],
)
def test_sdes_that_cannot_be_walked_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        last(sde(exact(linear), Z, uniform(6), linear, noise=torch.randn_like, **options))
