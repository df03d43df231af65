"""Targets: everything a network may predict is decoded by one 2 x 2 solve."""

import itertools

import pytest
import torch

from ditwright.diffusion.path import PATHS, coeffs_like, karras
from ditwright.diffusion.target import EDM, TARGETS, decode, determinant

PAIRS = list(itertools.product(PATHS, TARGETS))


def batch(path_name):
    """Coefficients at six times inside the span, with data and noise to go with them; float64."""
    share = torch.tensor([0.02, 0.1, 0.35, 0.5, 0.75, 0.95], dtype=torch.float64)
    x0, eps = torch.randn(2, 6, 3, 2, dtype=torch.float64)
    return coeffs_like(PATHS[path_name], share * (80 if path_name == "karras" else 1), x0), x0, eps


@pytest.mark.parametrize(("path", "target"), PAIRS)
def test_decoding_gives_back_the_data_and_the_noise(path, target):
    c, x0, eps = batch(path)
    a, b = TARGETS[target](c)
    found = decode(a * x0 + b * eps, c.alpha * x0 + c.sigma * eps, c, TARGETS[target])
    torch.testing.assert_close(found.x0, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.eps, eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("path", "target"), PAIRS)
def test_any_decoded_output_agrees_with_its_input(path, target):
    c, x_t, out = batch(path)
    found = decode(out, x_t, c, TARGETS[target])
    torch.testing.assert_close(c.alpha * found.x0 + c.sigma * found.eps, x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("path", "target"), PAIRS)
def test_the_determinant_says_how_an_output_moves_the_data_and_the_noise(path, target):
    c, x_t, out = batch(path)
    det = determinant(c, TARGETS[target])
    before, after = decode(out, x_t, c, TARGETS[target]), decode(out + 1, x_t, c, TARGETS[target])
    torch.testing.assert_close(after.x0 - before.x0, (-c.sigma / det).expand_as(out), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(after.eps - before.eps, (c.alpha / det).expand_as(out), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_targets_mean_what_their_papers_say(path):
    c, x0, eps = batch(path)
    said = {"data": x0, "noise": eps, "v": c.alpha * eps - c.sigma * x0, "score": -eps / c.sigma}
    for name, want in said.items():
        a, b = TARGETS[name](c)
        torch.testing.assert_close(a * x0 + b * eps, want)


@pytest.mark.parametrize("path", ["linear", "cosine", "vp", "karras"])  # a table has no slope at its steps
def test_velocity_is_the_slope_of_the_path(path):
    c, x0, eps = batch(path)
    t = torch.tensor([0.02, 0.1, 0.35, 0.5, 0.75, 0.95], dtype=torch.float64) * (80 if path == "karras" else 1)
    x_t, slope = torch.autograd.functional.jvp(
        lambda t: (lambda c: c.alpha * x0 + c.sigma * eps)(coeffs_like(PATHS[path], t, x0)), t, torch.ones_like(t)
    )
    a, b = TARGETS["velocity"](c)
    torch.testing.assert_close(a * x0 + b * eps, slope)
    assert x_t.shape == slope.shape


@pytest.mark.parametrize("path", PATHS)
def test_the_score_target_is_the_gradient_of_the_log_density(path):
    mean, std = 0.7, 0.5  # x0 ~ N(mean, std^2), so that both E[x0 | x_t] and the density are known
    c, x_t, _ = batch(path)
    x_t.requires_grad_()
    total = c.alpha**2 * std**2 + c.sigma**2
    log_density = -((x_t - c.alpha * mean) ** 2) / (2 * total)
    (gradient,) = torch.autograd.grad(log_density.sum(), x_t)
    x0 = mean + c.alpha * std**2 / total * (x_t - c.alpha * mean)
    a, b = TARGETS["score"](c)
    torch.testing.assert_close(a * x0 + b * (x_t - c.alpha * x0) / c.sigma, gradient)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_the_edm_target_is_its_published_closed_form(sigma_data):
    x_t, out = torch.randn(2, 5, 4, dtype=torch.float64)
    sigma = torch.tensor([0.002, 0.1, 1.0, 10.0, 80.0], dtype=torch.float64)
    total = (sigma**2 + sigma_data**2)[:, None]
    skip, scale = sigma_data**2 / total, sigma[:, None] * sigma_data / total.sqrt()
    found = decode(out, x_t, coeffs_like(karras, sigma, x_t), EDM(sigma_data))
    torch.testing.assert_close(found.x0, skip * x_t + scale * out, rtol=1e-9, atol=1e-9)


def test_edm_scales_input_and_output_to_unit_variance():
    edm, sigma = EDM(0.5), torch.tensor([0.002, 0.1, 1.0, 10.0, 80.0], dtype=torch.float64)
    c = karras(sigma)
    a, b = edm(c)  # data of variance sigma_data^2, noise of variance 1
    torch.testing.assert_close(a**2 * 0.5**2 + b**2, torch.ones_like(sigma))
    torch.testing.assert_close(edm.scale_in(c) ** 2 * (0.5**2 + sigma**2), torch.ones_like(sigma))
