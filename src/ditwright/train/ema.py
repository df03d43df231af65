"""An exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """Keeps `module`, a copy of the network whose weights trail it: ready to sample from at any time.

    The decay warms up as (1 + n) / (10 + n) over n updates, so that early averages forget the random start
    (the convention of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, net: nn.Module, decay: float, updates: int = 0):
        self.decay, self.updates, self._net = decay, updates, net
        self.module = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network's weights of now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours, theirs = list(self.module.parameters()), [p.detach() for p in self._net.parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - decay)
