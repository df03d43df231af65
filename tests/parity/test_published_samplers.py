"""Samplers against their published algorithms, written out here in their own variables."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from ditwright.diffusion.config import ProcessConfig
from ditwright.diffusion.grid import karras_rho
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.diffusion.sampler import SAMPLERS

SIGMA_DATA = 0.5


class Raw(nn.Module):
    """A network F(c_in x, c_noise) without weights, curved in both."""

    def forward(self, x, c_noise, cond=None):
        return torch.sin(2 * x) + 0.3 * x * c_noise[:, None]


def published_denoiser(x, sigma):
    """D(x; sigma) from F (Karras et al. 2022, eq. 7 and Table 1)."""
    total = sigma**2 + SIGMA_DATA**2
    c_skip, c_out, c_in = SIGMA_DATA**2 / total, sigma * SIGMA_DATA / math.sqrt(total), 1 / math.sqrt(total)
    c_noise = torch.full((len(x),), math.log(sigma) / 4, dtype=x.dtype)
    return c_skip * x + c_out * Raw()(c_in * x, c_noise)


def published_levels(steps, low=0.002, high=80.0, rho=7):
    """Karras et al. 2022, eq. 5."""
    root = [high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho)) for i in range(steps)]
    return [r**rho for r in root] + [0.0]


def published_heun(x, levels):
    """Karras et al. 2022, Alg. 1 (deterministic, second order)."""
    walk = []
    for t, t_next in pairwise(levels):
        d = (x - published_denoiser(x, t)) / t
        x_next = x + (t_next - t) * d
        if t_next != 0:
            d_next = (x_next - published_denoiser(x_next, t_next)) / t_next
            x_next = x + (t_next - t) * (d / 2 + d_next / 2)
        x = x_next
        walk.append(x)
    return walk


def published_dpmpp_2m(x, levels):
    """DPM-Solver++(2M) (Lu et al. 2022, Alg. 2), in noise levels and lambda = -log sigma, as k-diffusion has it."""
    walk, old, old_h = [], None, None
    for sigma, sigma_next in pairwise(levels):
        denoised = guess = published_denoiser(x, sigma)
        h = math.log(sigma) - math.log(sigma_next) if sigma_next else math.inf
        if old is not None and sigma_next:
            r = old_h / h
            guess = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old
        x = sigma_next / sigma * x - math.expm1(-h) * guess
        old, old_h = denoised, h
        walk.append(x)
    return walk


@pytest.mark.parametrize("steps", [2, 5, 18])
@pytest.mark.parametrize(("name", "published"), [("heun", published_heun), ("dpmpp_2m", published_dpmpp_2m)])
def test_a_sampler_walks_as_published(name, published, steps):
    process = process_from(ProcessConfig("karras", "edm", sigma_data=SIGMA_DATA))
    x = 80 * torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = [step.x for step in SAMPLERS[name](Denoiser(Raw(), process), x, karras_rho(steps), process.path)]
    theirs = published(x, published_levels(steps))
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_the_noise_levels_are_as_published(steps):
    assert karras_rho(steps).tolist() == pytest.approx(published_levels(steps), rel=1e-12)
