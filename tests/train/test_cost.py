"""The worked-out memory is what autograd keeps."""

from __future__ import annotations

import pytest
import torch

from ditwright.model.build import build
from ditwright.model.config import DiTConfig, Stage
from ditwright.train.cost import memory, training_flops


def kept(config, side):
    """Bytes that one forward pass with bf16 products keeps for the backward pass, weights and their copies not."""
    net, storages = build(config), {}
    weights = {p.numel() for p in net.parameters() if p.ndim == 2}

    def pack(tensor):
        if tensor.numel() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(1, 4, side, side), torch.zeros(1), {"label": torch.zeros(1, dtype=torch.long)})
    return sum(size for size, _ in storages.values())


@pytest.mark.parametrize("width", [96, 192])
def test_activations_are_what_autograd_keeps(width):
    side = 36  # 324 tokens: past the length up to which a CPU computes attention by plain products
    shallow, deep = (DiTConfig(width=width, heads=4, stages=(Stage(n),)) for n in (1, 3))
    of_two_blocks = kept(deep, side) - kept(shallow, side)
    said = memory(deep, (side, side), 1, 0)["activations"] - memory(shallow, (side, side), 1, 0)["activations"]
    assert said == pytest.approx(of_two_blocks, rel=0.15)


def test_training_is_three_forward_passes():
    config = DiTConfig(width=96, heads=4, stages=(Stage(2),))
    assert training_flops(config, (32, 32), 10) == 10 * training_flops(config, (32, 32), 1)
