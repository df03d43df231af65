"""PixArt's modulation: one regression for all blocks, a table in each (Chen et al. 2023, Sec. 2.3).

B batch, L tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norm import Norm, layer_norm


class AdaLNSingle(nn.Module):
    """adaLN-Zero by vectors that all blocks share, to which each adds a table (Chen et al. 2023, Sec. 2.3).

    `slot`: which of a block's norms it is; the condition comes as (B, slots, 3, D), from `SharedVectors`.
    """

    vectors = 0  # regressed once for all blocks

    def __init__(self, width: int, norm: Norm = layer_norm, slot: int = 0):
        super().__init__()
        self.slot, self.norm = slot, norm(width)
        self.table = nn.Parameter(torch.zeros(3, width))

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale, gate = (self.table + vec[:, self.slot])[:, :, None].unbind(1)  # (B, 1, D) each
        return self.norm(x) * (1 + scale) + shift, gate


class SharedVectors(nn.Module):
    """What adaLN-single regresses from the condition, once for all blocks: (B, D) -> (B, slots, 3, D)."""

    def __init__(self, width: int, slots: int = 2):
        super().__init__()
        self.slots, self.lin = slots, nn.Linear(width, slots * 3 * width)

    def forward(self, vec: Tensor) -> Tensor:
        return self.lin(F.silu(vec)).unflatten(-1, (self.slots, 3, vec.shape[-1]))


class Table(nn.Module):
    """Shift and scale of the head's norm: the condition itself, and a table (Chen et al. 2023)."""

    def __init__(self, width: int, norm: Norm = layer_norm):
        super().__init__()
        self.norm = norm(width)
        self.table = nn.Parameter(torch.zeros(2, width))

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, float]:
        shift, scale = (self.table + vec[:, None])[:, :, None].unbind(1)  # (B, 1, D) each
        return self.norm(x) * (1 + scale) + shift, 1.0


class Bare(nn.Module):
    """No norm at all, as before PixArt's cross-attention."""

    vectors = 0

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, float]:
        return x, 1.0
