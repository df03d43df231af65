"""How the condition vector is heard: interchangeable maps (x, vec) -> (normalised and modulated x, gate).

B batch, L tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .norm import Norm, layer_norm
from .single import AdaLNSingle


class Plain(nn.Module):
    """A learned norm that does not hear the condition (ViT; DiT in-context and cross-attention)."""

    vectors = 0  # regressed from the condition

    def __init__(self, width: int, norm: Norm = layer_norm):
        super().__init__()
        self.norm = norm(width, affine=True)

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, float]:
        return self.norm(x), 1.0


class AdaLN(nn.Module):
    """Shift and scale of the norm regressed from the condition (Perez et al. 2018; Peebles & Xie, Sec. 3.2)."""

    vectors = 2  # regressed from the condition

    def __init__(self, width: int, norm: Norm = layer_norm):
        super().__init__()
        self.norm, self.lin = norm(width), nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, float]:
        shift, scale = self.lin(F.silu(vec))[:, None].chunk(2, -1)  # (B, 1, D) each
        return self.norm(x) * (1 + scale) + shift, 1.0


class AdaLNZero(nn.Module):
    """adaLN with a gate; `lin` starts at zero, so every branch starts silent (Peebles & Xie, Sec. 3.2)."""

    vectors = 3  # regressed from the condition

    def __init__(self, width: int, norm: Norm = layer_norm):
        super().__init__()
        self.norm, self.lin = norm(width), nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale, gate = self.lin(F.silu(vec))[:, None].chunk(3, -1)  # (B, 1, D) each
        return self.norm(x) * (1 + scale) + shift, gate


MODULATIONS: dict[str, Any] = {"plain": Plain, "adaln": AdaLN, "adaln_zero": AdaLNZero, "adaln_single": AdaLNSingle}
