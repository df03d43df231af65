"""Positions from per-axis coordinates: a sin-cos table added once, or a rotation of queries and keys.

B batch, L tokens, D width, A axes, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError


def sincos(pos: Tensor, width: int, axes: Sequence[int]) -> Tensor:
    """Fixed sin-cos embedding, an equal share of the width per axis, in the order of `axes`: (B, L, A) -> (B, L, D).

    DiT gives the first half to the column and the second to the row: `axes=(1, 0)`. Computed in float64, as there.
    """
    share = width // len(axes)
    exponent = torch.arange(share // 2, dtype=torch.float64, device=pos.device) / (share / 2)
    theta = [pos[..., a, None].double() * 10_000.0**-exponent for a in axes]  # (B, L, share / 2) each
    return torch.cat([f(th) for th in theta for f in (torch.sin, torch.cos)], -1).float()


def placed(
    pos: Tensor, grid: Sequence[int], *, scale: float = 1.0, base: int = 0, largest: int = 0, origin: float = 0.0
) -> Tensor:
    """Where a network looks its positions up: (1, L, A) of a grid -> (1, L, A).

    `scale`: factor on them. `base`: grids of any size are stretched to that of so many cells along a side (PixArt).
    `largest`: grids lie in the middle of one of so many cells along a side, which is stretched in their place;
    `origin`: its cell that is at 0 (Esser et al. 2024, Sec. 5.3.2). UserError for a larger one.
    """
    sides = pos.new_tensor(grid)
    if largest:
        if max(grid) > largest:
            raise UserError(f"the network's positions reach {largest} patches along a side; this input has {max(grid)}")
        pos = pos + (largest - sides).div(2, rounding_mode="floor") - origin
        sides = torch.full_like(sides, largest)
    if base:
        pos = pos / (sides / base)
    return pos * scale


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
