"""Tokens: (value, position per axis, mask). All that the core knows of a modality.

B batch, C channels, L tokens, D width, A position axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError


@dataclass(frozen=True)
class Tokens:
    """A sequence with coordinates."""

    x: Tensor  # (B, L, D)
    pos: Tensor  # (B, L, A), or (1, L, A) where every sample has the same coordinates
    mask: Tensor | None = None  # (B, L), True where a token is real


def grid_positions(grid: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Integer coordinates of every cell of a regular grid, last axis fastest: (1, L, A)."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)[None]


def patch_grid(space: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """How many patches fit along each axis. UserError where the patch does not divide the space."""
    if len(space) != len(patch):
        raise UserError(f"an input with {len(space)} space axes came to a patch of {len(patch)} axes {tuple(patch)}")
    if any(s % p or s == 0 for s, p in zip(space, patch, strict=True)):
        size, cut = "x".join(map(str, space)), "x".join(map(str, patch))
        raise UserError(f"input size {size} is not divisible by the patch {cut}; every side must be a multiple of it")
    return tuple(s // p for s, p in zip(space, patch, strict=True))


class Patchify(nn.Module):
    """Cuts a regular grid into patches and projects each to a token (Peebles & Xie, Sec. 3.2).

    The number of axes is `len(patch)`: 1 audio, 2 images, 3 video or voxels.
    """

    def __init__(self, patch: tuple[int, ...], channels: int, width: int):
        super().__init__()
        self.patch, self.channels = patch, channels
        self.proj = nn.Linear(channels * math.prod(patch), width)

    def forward(self, x: Tensor) -> Tokens:  # (B, C, *space)
        if x.ndim != 2 + len(self.patch) or x.shape[1] != self.channels:
            want = ", ".join(["batch", str(self.channels), *["size"] * len(self.patch)])
            raise UserError(f"the network takes input of shape ({want}); this one has {tuple(x.shape)}")
        n, grid = len(self.patch), patch_grid(x.shape[2:], self.patch)
        x = x.reshape(*x.shape[:2], *(i for gp in zip(grid, self.patch, strict=True) for i in gp))
        x = x.permute(0, *range(2, 2 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2))  # (B, *grid, C, *patch)
        x = x.reshape(x.shape[0], math.prod(grid), -1)  # (B, L, C * prod(patch))
        return Tokens(self.proj(x).to(self.proj.weight), grid_positions(grid, x.device))  # the stream: not autocast's


def unpatchify(x: Tensor, patch: Sequence[int], space: Sequence[int]) -> Tensor:
    """(B, L, prod(patch) * C) -> (B, C, *space). Channels are fastest inside a patch, as in DiT's last layer."""
    n, grid = len(patch), patch_grid(space, patch)
    x = x.reshape(x.shape[0], *grid, *patch, -1)
    order = [0, 2 * n + 1] + [i for a in range(n) for i in (1 + a, 1 + n + a)]  # (B, C, g1, p1, g2, p2, ...)
    return x.permute(*order).reshape(x.shape[0], -1, *space)
