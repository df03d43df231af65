"""One reverse step as a Gaussian, and the bound that trains its variance."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ditwright.diffusion.grid import full, karras_rho, respaced, uniform
from ditwright.diffusion.path import DDPM, PATHS, coeffs_like
from ditwright.diffusion.posterior import (
    VariationalBound,
    discretised_nll,
    log_variance,
    mean,
    normal_kl,
    posterior,
)
from ditwright.diffusion.target import Prediction


def grid(name):
    return karras_rho(6) if name == "karras" else uniform(10)


@pytest.mark.parametrize("name", PATHS)
def test_a_reverse_step_is_bayes_rule(name):
    times = grid(name)
    q, c = posterior(PATHS[name], times), PATHS[name](times)
    ratio = c.alpha[:-1] / c.alpha[1:]
    beta = c.sigma[:-1] ** 2 - ratio**2 * c.sigma[1:] ** 2  # x_t = ratio x_s + sqrt(beta) noise
    prior, kept = 1 / c.sigma[1:-1] ** 2, slice(0, -1)  # but for the last step, whose variance is 0
    precision = prior + ratio[kept] ** 2 / beta[kept]
    torch.testing.assert_close(q.log_beta.exp(), beta, rtol=1e-9, atol=0)
    torch.testing.assert_close(q.log_var[kept].exp(), 1 / precision, rtol=1e-9, atol=0)
    torch.testing.assert_close(q.x0[kept], prior * c.alpha[1:-1] / precision, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(q.x_t[kept], ratio[kept] / beta[kept] / precision, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_the_last_step_is_the_clean_sample_and_takes_the_variance_before_it(name):
    q = posterior(PATHS[name], grid(name))
    assert q.x0[-1].item() == pytest.approx(1)
    assert q.x_t[-1] == 0
    assert q.log_var[-1] == q.log_var[-2]


@pytest.mark.parametrize("name", PATHS)
def test_the_mean_of_a_step_lands_on_the_path_it_came_from(name):
    times, x0 = grid(name), torch.randn(3, 4, dtype=torch.float64)
    q, c = posterior(PATHS[name], times), PATHS[name](times)
    for i in range(len(times) - 1):  # the mean is affine in eps, so without noise it is alpha_s x0
        landed = mean(q, torch.tensor([i]), x0, c.alpha[i] * x0)
        torch.testing.assert_close(landed, c.alpha[i + 1] * x0, rtol=1e-9, atol=1e-9)


def test_a_grid_of_one_step_has_finite_variance():
    q = posterior(DDPM(), respaced(1000, [999]))
    assert all(v.isfinite().all() for v in q)


@pytest.mark.parametrize(("var", "which"), [(0.0, "log_var"), (1.0, "log_beta"), (None, "log_var")])
def test_the_learned_fraction_runs_from_the_posterior_to_beta(var, which):
    q, x = posterior(DDPM(), full(1000)), torch.zeros(2, 3, 4, dtype=torch.float64)
    i = torch.tensor([3, 700])
    fraction = None if var is None else torch.full_like(x, var)
    got = log_variance(q, i, Prediction(x, x, fraction)).expand_as(x)
    torch.testing.assert_close(got, getattr(q, which)[i].reshape(2, 1, 1).expand_as(x))


def test_the_divergence_of_two_normals_is_the_known_one():
    m1, lv1, m2, lv2 = torch.randn(4, 20, dtype=torch.float64)
    want = kl_divergence(Normal(m1, (lv1 / 2).exp()), Normal(m2, (lv2 / 2).exp()))
    torch.testing.assert_close(normal_kl(m1, lv1, m2, lv2), want)
    assert normal_kl(m1, lv1, m1, lv1).abs().max() < 1e-12


@pytest.mark.parametrize("std", [0.001, 0.02, 0.5, 3.0])
def test_the_mass_of_all_bins_is_one(std):
    x = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    log_var = torch.tensor(2 * math.log(std), dtype=torch.float64)
    for center in (-1.2, -1.0, 0.013, 1.0):
        mass = (-discretised_nll(x, torch.tensor(center, dtype=torch.float64), log_var)).exp().sum()
        assert mass.item() == pytest.approx(1, abs=1e-6)


def test_narrow_bins_give_the_density():
    x, m, lv = torch.linspace(-0.9, 0.9, 9).double(), torch.tensor(0.1).double(), torch.tensor(-1.0).double()
    density = -discretised_nll(x, m, lv, bin_width=1e-4) - math.log(1e-4)
    torch.testing.assert_close(density, Normal(m, (lv / 2).exp()).log_prob(x), atol=0.01, rtol=0)


def bound_inputs(times):
    torch.manual_seed(1)
    x0, eps, guess = torch.rand(3, 4, 2, 3, dtype=torch.float64) * 2 - 1
    t = times[torch.tensor([0, 3, 7, len(times) - 2])]
    c = coeffs_like(DDPM(), t, x0)
    return x0, c.alpha * x0 + c.sigma * eps, t, guess


def test_the_bound_is_zero_where_the_prediction_is_right_but_for_the_last_step():
    times = respaced(1000, range(0, 1000, 100))
    x0, x_t, t, _ = bound_inputs(times)
    bits = VariationalBound(DDPM(), times)(Prediction(x0, x0, torch.zeros_like(x0)), x0, x_t, t)
    assert bits[:3].abs().max() < 1e-9
    assert bits[3] > 0.1  # the last step pays for the bins' width


def test_the_bound_trains_the_variance_alone():
    times = full(1000)
    x0, x_t, t, guess = bound_inputs(times)
    guess, var = guess.requires_grad_(), torch.full_like(x0, 0.5, requires_grad=True)
    VariationalBound(DDPM(), times)(Prediction(guess, guess, var), x0, x_t, t).sum().backward()
    assert guess.grad is None
    assert (var.grad[:3] != 0).all()  # in the last step a guess this wrong has no mass


def test_the_bound_measures_bits_of_the_divergence_of_the_step():
    times = full(1000)
    x0, x_t, t, guess = bound_inputs(times)
    q, i = posterior(DDPM(), times), torch.tensor([0, 3, 7])
    var = torch.full_like(x0, 0.3)
    bits = VariationalBound(DDPM(), times)(Prediction(guess, guess, var), x0, x_t, t)
    low, high = (v[i].reshape(-1, 1, 1) for v in (q.log_var, q.log_beta))
    true = Normal(mean(q, i, x0[:3], x_t[:3]), (low / 2).exp())
    model = Normal(mean(q, i, guess[:3], x_t[:3]), ((0.3 * high + 0.7 * low) / 2).exp())
    torch.testing.assert_close(bits[:3], kl_divergence(true, model).mean((1, 2)) / math.log(2), rtol=1e-6, atol=1e-9)
