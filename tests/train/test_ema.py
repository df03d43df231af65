"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ditwright.train.ema import EMA


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999])
def test_the_average_is_the_recursion_of_its_docstring(decay):
    net = nn.Linear(1, 1, bias=False)
    ema, values = EMA(net, decay), torch.randn(20, generator=torch.Generator().manual_seed(0)).tolist()
    expected = net.weight.item()
    for n, value in enumerate(values, 1):
        nn.init.constant_(net.weight, value)
        ema.update()
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * value
        assert ema.module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert ema.updates == 20
    assert net.weight.item() == pytest.approx(values[-1])


def test_the_average_of_what_does_not_move_is_itself():
    net = nn.Linear(4, 4)
    ema = EMA(net, 0.9)
    for _ in range(10):
        ema.update()
    assert torch.equal(ema.module.weight, net.weight)


def test_a_resumed_average_keeps_its_warm_up():
    net = nn.Linear(1, 1, bias=False)
    straight = EMA(net, 0.9999)
    nn.init.constant_(net.weight, 3.0)
    for _ in range(5):
        straight.update()
    resumed = EMA(net, 0.9999, updates=straight.updates)
    resumed.module.load_state_dict(straight.module.state_dict())
    for ema in (straight, resumed):
        nn.init.constant_(net.weight, -1.0)
        ema.update()
    assert torch.equal(resumed.module.weight, straight.module.weight)


def test_the_average_is_apart_from_the_network_and_from_its_gradients():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    ema = EMA(net.train(), 0.5)
    assert net.training
    assert not any(module.training for module in ema.module.modules())
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert {p.data_ptr() for p in net.parameters()}.isdisjoint(p.data_ptr() for p in ema.module.parameters())
