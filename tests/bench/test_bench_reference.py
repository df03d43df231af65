"""The plain DiT is the same function as ours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ditwright.bench.reference import PlainDiT, plain_weights
from ditwright.bench.subject import as_the_paper, network
from ditwright.model.config import DiTConfig, Positions, Stage
from ditwright.model.presets import BASELINES, PRESETS

CPU = torch.device("cpu")
CONFIGS = {
    "learned variance": DiTConfig(width=32, heads=4, stages=(Stage(3),), out_channels=8, num_classes=10),
    "other sizes": DiTConfig(
        width=48, heads=3, stages=(Stage(2),), patch=(4, 2), channels=3, out_channels=3, num_classes=7, mlp_ratio=2.5
    ),
    "single cells": DiTConfig(width=16, heads=1, stages=(Stage(1),), patch=(1, 1), num_classes=2),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_it_computes_what_ours_does(config):
    ours, space = network(config, CPU), (8, 4)
    plain = PlainDiT(config, (8 // config.patch[0], 4 // config.patch[1]))
    plain.load_state_dict(plain_weights(ours.state_dict(), config))
    x = torch.randn(5, config.channels, *space, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([0, 1, 250, 900, 999]), torch.arange(5).remainder(config.num_classes + 1)
    with torch.no_grad():
        told, truth = plain(x, t, y), ours(x, t, {"label": y})
    assert truth.std() > 0.1
    torch.testing.assert_close(told, truth, rtol=0, atol=1e-5 * truth.abs().max().item())


def test_every_weight_counts():
    """A network with random weights, those that are zero at first too, so that a lost part is seen."""
    config = CONFIGS["learned variance"]
    net = network(config, CPU)
    x, t, cond = torch.ones(2, 4, 4, 4), torch.tensor([3, 700]), {"label": torch.tensor([1, 10])}
    net(x, t, cond).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_which_networks_are_the_papers():
    assert all((as_the_paper(config) is not None) == name.startswith("DiT-") for name, config in PRESETS.items())
    assert as_the_paper(BASELINES["ADM-256"]) is None
    plain = PRESETS["DiT-S/2"]
    for other in ({"num_classes": 0}, {"qk_norm": True}, {"time_shift": 1}, {"positions": Positions(2.0)}):
        assert as_the_paper(replace(plain, **other)) is None
