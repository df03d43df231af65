"""Positions from per-axis coordinates: a sin-cos table added once, or a rotation of queries and keys.

B batch, L tokens, D width, A axes, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def sincos(pos: Tensor, width: int, axes: Sequence[int]) -> Tensor:
    """Fixed sin-cos embedding, an equal share of the width per axis, in the order of `axes`: (B, L, A) -> (B, L, D).

    DiT gives the first half to the column and the second to the row: `axes=(1, 0)`. Computed in float64, as there.
    """
    share = width // len(axes)
    exponent = torch.arange(share // 2, dtype=torch.float64, device=pos.device) / (share / 2)
    theta = [pos[..., a, None].double() * 10_000.0**-exponent for a in axes]  # (B, L, share / 2) each
    return torch.cat([f(th) for th in theta for f in (torch.sin, torch.cos)], -1).float()


class Rope(NamedTuple):
    """Rotary positions (Su et al. 2021) over neighbouring pairs, as Flux lays them out."""

    cos: Tensor  # (B, 1, L, d / 2)
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:  # (B, H, L, d)
        a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((a * self.cos - b * self.sin, b * self.cos + a * self.sin), -1).flatten(-2).to(x)


def rope(pos: Tensor, dims: Sequence[int], base: float = 10_000.0) -> Rope:
    """Angles for `dims[a]` channels of every head along axis a; the dims add up to the head width."""
    frequencies = [1 / base ** (torch.arange(0, d, 2, device=pos.device) / d) for d in dims]
    theta = torch.cat([pos[..., a, None] * f for a, f in enumerate(frequencies)], -1)[:, None]  # (B, 1, L, d / 2)
    return Rope(theta.cos(), theta.sin())
