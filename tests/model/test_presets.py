"""Presets that read text: what each of them is, beside the networks that were published."""

import pytest
import torch

from ditwright.diffusion.config import ObjectiveConfig, ProcessConfig
from ditwright.diffusion.objective import objective_from
from ditwright.diffusion.process import Denoiser, process_from
from ditwright.model.build import build, parameters
from ditwright.model.flops import macs
from ditwright.model.presets import FLUX, PRESETS, rope_of
from ditwright.rng import Draws


@pytest.mark.parametrize(
    ("head", "axes"), [(128, (16, 56, 56)), (64, (8, 28, 28)), (32, (4, 14, 14)), (16, (4, 6, 6)), (6, (2, 2, 2))]
)
def test_axes_of_rotation_are_in_the_proportion_of_flux(head, axes):
    assert rope_of(head) == axes
    assert sum(axes) == head


def test_schnell_is_dev_without_guidance():
    dev, schnell = PRESETS["FLUX.1-dev"], PRESETS["FLUX.1-schnell"]
    width = dev.width
    assert parameters(dev) - parameters(schnell) == 256 * width + width + width * width + width
    assert (dev.rope, dev.depth, dev.heads) == ((16, 56, 56), 57, 24)


def test_the_small_flux_is_the_large_one_in_everything_but_size():
    small, large = PRESETS["FLUX-S"], PRESETS["FLUX.1-schnell"]
    sizes = ("width", "heads", "stages", "channels", "out_channels", "text_width", "pooled_width", "rope")
    assert {k: v for k, v in vars(small).items() if k not in sizes} == {
        k: v for k, v in vars(large).items() if k not in sizes
    }
    assert [(s.lanes, s.parallel) for s in small.stages] == [(s.lanes, s.parallel) for s in large.stages]
    assert parameters(small) < 6e6
    assert set(FLUX) <= set(PRESETS)


def test_the_small_flux_learns_two_captions_on_a_cpu():
    """The pictures are told apart by their text and pooled vectors alone."""
    torch.manual_seed(0)
    config = PRESETS["FLUX-S"]
    net = Denoiser(build(config), process_from(ProcessConfig()))
    loss = objective_from(ObjectiveConfig(), net.process)
    optim = torch.optim.AdamW(net.parameters(), lr=1e-3)
    x0 = torch.randn(2, config.channels, 4, 4).repeat(4, 1, 1, 1)
    cond = {"text": torch.randn(2, 3, config.text_width), "pooled": torch.randn(2, config.pooled_width)}
    cond = {name: value.repeat(4, *[1] * (value.ndim - 1)) for name, value in cond.items()}
    for step in range(25):
        optim.zero_grad()
        loss(net, x0, cond, Draws(0, range(8), f"step {step}")).mean().backward()
        optim.step()
    draws = [Draws(1, range(8), "the same times and noise") for _ in range(2)]
    with torch.no_grad():
        right = loss(net, x0, cond, draws[0]).mean().item()
        wrong = loss(net, x0, {name: value.flip(0) for name, value in cond.items()}, draws[1]).mean().item()
    assert right < 0.5 * wrong


def test_a_projected_dit_is_dit_with_a_vector_for_its_class():
    """The projection takes the place of the table of classes; all else is as large and costs as much."""
    told, dit = PRESETS["ProjectedDiT-XL/2"], PRESETS["DiT-XL/2"]
    width, pooled = dit.width, told.pooled_width
    mlp = pooled * width + width + width * width + width
    assert parameters(told) - parameters(dit) == mlp - 1001 * width
    cost = {name: part - macs(dit, (32, 32))[name] for name, part in macs(told, (32, 32)).items()}
    assert {name: part for name, part in cost.items() if part} == {"text": pooled * width + width * width}
    with torch.device("meta"):
        assert list(build(told).vectors) == ["pooled"]
