"""From numbers to vectors: the time and the class label.

B batch, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 256  # sines and cosines of the time, together


def timestep_embedding(t: Tensor, dim: int = FREQUENCIES, max_period: float = 10_000.0, shift: int = 0) -> Tensor:
    """Sinusoidal features of (B,) times, cosines first: (B, dim) (Vaswani et al. 2017; the layout of ADM and DiT).

    `shift`: 1 lets the lowest frequency reach 1 / max_period, as diffusers' DiT does; the original stops short of it.
    """
    half = dim // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - shift)
    )
    angles = t[:, None].float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), -1)


class TimeEmbed(nn.Module):
    """Time features through a two-layer MLP: (B,) -> (B, D) (Peebles & Xie, Sec. 3.2)."""

    def __init__(self, width: int, shift: int = 0):
        super().__init__()
        self.shift = shift
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(t, shift=self.shift).to(next(self.parameters()).dtype))


class LabelEmbed(nn.Module):
    """A table of class vectors: (B,) -> (B, D). The last row, `num_classes`, is the null class, for guidance."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.table = nn.Embedding(num_classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.table(label)
