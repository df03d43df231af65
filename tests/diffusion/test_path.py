"""Paths from data to noise."""

import pytest
import torch

from ditwright.diffusion.path import DDPM, PATHS, VP, betas, coeffs_like, karras

BOUNDED = sorted(PATHS.keys() - {"karras"})  # t = 1 is noise; on karras time is the noise level


def inside(name):
    """Times off the ends and off the steps of tables, increasing."""
    low, high = (0.002, 80.0) if name == "karras" else (0.0, 1.0)
    return low + (high - low) * torch.tensor([0.01237, 0.1003, 0.3456, 0.5001, 0.7654, 0.9888], dtype=torch.float64)


TABLES = ["ddpm", "ddpm-cosine"]


@pytest.mark.parametrize("name", [name for name in PATHS if name not in TABLES])
def test_stated_derivatives_are_those_of_autograd(name):
    t = inside(name).requires_grad_()
    c = PATHS[name](t)
    zero = torch.zeros_like(t)  # where a coefficient is constant
    for value, stated in ((c.alpha, c.d_alpha), (c.sigma, c.d_sigma)):
        (slope,) = torch.autograd.grad(value.sum(), t, retain_graph=True) if value.requires_grad else (zero,)
        torch.testing.assert_close(stated.detach(), slope, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", TABLES)
def test_derivatives_of_a_table_are_central_differences_at_its_steps(name):
    t, h = torch.tensor([5, 100, 346, 500, 765, 989], dtype=torch.float64) / 1000, 1 / 1000
    after, before, c = PATHS[name](t + h), PATHS[name](t - h), PATHS[name](t)
    slope = (after.alpha.log() - before.alpha.log()) / (2 * h)
    torch.testing.assert_close(c.d_alpha / c.alpha, slope)
    torch.testing.assert_close(c.alpha * c.d_alpha + c.sigma * c.d_sigma, torch.zeros_like(t))


@pytest.mark.parametrize("name", PATHS)
def test_time_0_is_data(name):
    c = PATHS[name](torch.zeros((), dtype=torch.float64))
    assert (c.alpha, c.sigma) == (1, 0)


@pytest.mark.parametrize("name", BOUNDED)
def test_time_1_is_noise(name):
    c = PATHS[name](torch.ones((), dtype=torch.float64))
    assert 0 <= c.alpha < 0.01
    assert c.sigma == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", PATHS)
def test_noise_only_grows(name):
    c = PATHS[name](inside(name))
    assert ((c.alpha / c.sigma).diff() < 0).all()
    assert (c.d_sigma > 0).all()
    assert (c.d_alpha <= 0).all()


@pytest.mark.parametrize("name", sorted(PATHS.keys() - {"karras", "linear"}))
def test_variance_preserving_paths_preserve_variance(name):
    c = PATHS[name](inside(name))
    torch.testing.assert_close(c.alpha**2 + c.sigma**2, torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(c.alpha * c.d_alpha + c.sigma * c.d_sigma, torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("name", PATHS)
def test_coefficients_keep_the_shape_and_precision_of_the_times(name):
    t = inside(name).reshape(2, 3)
    for times in (t, t.float(), t[0, 0]):
        assert {(v.shape, v.dtype) for v in PATHS[name](times)} == {(times.shape, times.dtype)}


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [100, 1000])
def test_a_ddpm_path_is_its_table_at_the_steps(schedule, steps):
    t = (torch.arange(steps, dtype=torch.float64) + 1) / steps
    abar = (1 - betas(schedule, steps)).cumprod(0)
    torch.testing.assert_close(DDPM(schedule, steps)(t).alpha ** 2, abar, rtol=1e-9, atol=0)


def test_the_published_betas():
    assert betas("linear", 1000)[[0, -1]].tolist() == pytest.approx([1e-4, 0.02])
    cosine = betas("cosine", 1000)
    assert cosine.max() == cosine[-1] == 0.999
    assert cosine[0].item() == pytest.approx(4.1e-5, rel=0.01)


def test_a_fine_ddpm_table_is_the_continuous_diffusion():
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    coarse, fine = ((DDPM("linear", n)(t).alpha - VP()(t).alpha).abs().max().item() for n in (1000, 10_000))
    assert fine < coarse / 8
    assert fine < 1e-4


def test_coefficients_come_shaped_and_typed_to_multiply_a_batch():
    x, t = torch.zeros(3, 4, 2, 2), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    for times, batch in ((t, 3), (t[0], 1)):
        c = coeffs_like(karras, times, x)
        assert {(v.shape, v.dtype) for v in c} == {((batch, 1, 1, 1), torch.float32)}
        assert torch.equal(c.sigma.flatten().double(), times.reshape(-1))
