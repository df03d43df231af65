"""A tiny network learns two pictures by heart, and every conditioning tells them apart."""

import pytest
import torch

from ditwright.diffusion.config import ProcessConfig
from ditwright.diffusion.grid import uniform
from ditwright.diffusion.guidance import guided
from ditwright.diffusion.objective import Objective
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.diffusion.sampler import SAMPLERS, last
from ditwright.diffusion.times import Uniform
from ditwright.model.build import build
from ditwright.model.config import CONDITIONINGS, DiTConfig, Stage, conditioned
from ditwright.rng import Draws


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_tiny_network_learns_two_pictures_by_heart(conditioning):
    config = DiTConfig(width=32, heads=2, stages=(Stage(1),), channels=1, out_channels=1, num_classes=2)
    process = process_from(ProcessConfig("linear", "data"))
    denoiser, objective = Denoiser(build(conditioned(config, conditioning)), process), Objective(process, Uniform())
    pictures = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels, adam = torch.arange(2).repeat(8), torch.optim.Adam(denoiser.parameters(), 3e-3)
    losses = []
    for step in range(120):
        loss = objective(denoiser, pictures[labels], {"label": labels}, Draws(step, range(16), "train")).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]

    cond, null = {"label": torch.tensor([0, 1])}, {"label": torch.tensor([2, 2])}
    start = Draws(0, range(2), "sample").normal(pictures)
    with torch.no_grad():
        drawn = last(SAMPLERS["ddim"](guided(denoiser, cond, null, 1.0), start, uniform(8), process.path))
    assert (drawn - pictures).square().mean() < 0.05 * (pictures[0] - pictures[1]).square().mean()
