"""Branches and lanes for several streams: text that is joined to the image, read by it, or changed together with it.

B batch, L tokens, D width, H heads, d head width.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .branch import AttentionLane, Context, JointAttention, Streams
from .norm import RMSNorm
from .position import Rope


class ReadOnlyLane(AttentionLane):
    """A stream that others attend to and that stays as it is: text in the last block of SD3 (Esser et al. 2024)."""

    def __init__(self, width: int, heads: int, mod: nn.Module, *, qk_norm: bool = False):
        super().__init__(width, heads, mod, qk_norm=qk_norm)
        self.proj = nn.Identity()

    def write(self, o: Tensor, gate: Tensor | float) -> None:
        return None


class Silent(nn.Module):
    """A stream's place in a branch that leaves it as it is."""

    def forward(self, x: Tensor, vec: Tensor) -> None:
        return None


class ImageAttention(JointAttention):
    """The image attends to itself alone, whatever streams there are (SD3.5-medium's second attention)."""

    def forward(self, xs: Streams, ctx: Context) -> list[Tensor | None]:
        mask = None if ctx.mask is None else ctx.mask[:, : xs[0].shape[1]]
        return super().forward(xs[:1], replace(ctx, rope=ctx.rope[:1], mask=mask))


class Beside(nn.ModuleDict):
    """Branches that all read the same streams; what they would add is added up."""

    def forward(self, xs: Streams, ctx: Context) -> list[Any]:
        found = zip_longest(*(branch(xs, ctx) for branch in self.values()))
        return [sum(delta for delta in deltas if delta is not None) for deltas in found]


class Parallel(nn.Module):
    """Attention and MLP from one norm, through one matrix in and one out (Dehghani et al. 2023; Flux's single block).

    One lane for all streams. `qk_norm`: an RMS norm of queries and of keys, per head.
    """

    def __init__(self, width: int, heads: int, hidden: int, mod: nn.Module, *, qk_norm: bool = False):
        super().__init__()
        self.heads, self.sizes, self.mod = heads, (3 * width, hidden), mod
        self.lin1, self.lin2 = nn.Linear(width, 3 * width + hidden), nn.Linear(width + hidden, width)
        self.q_norm = RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()

    def forward(self, xs: Streams, ctx: Context) -> Streams:
        h, gate = self.mod(torch.cat(xs, 1), ctx.vec)
        qkv, hidden = self.lin1(h).split(self.sizes, -1)
        q, k, v = rearrange(qkv, "b l (three h d) -> three b h l d", three=3, h=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if (rope := joined(ctx.rope)) is not None:
            q, k = rope(q), rope(k)
        o = rearrange(ctx.attend(q, k, v, ctx.mask), "b h l d -> b l (h d)")
        out = gate * self.lin2(torch.cat((o, F.gelu(hidden, approximate="tanh")), -1))
        return out.split([x.shape[1] for x in xs], 1)


def joined(ropes: tuple[Rope | None, ...]) -> Rope | None:
    """The rotations of all streams, one after the other."""
    given = [rope for rope in ropes if rope is not None]
    return Rope(torch.cat([r.cos for r in given], 2), torch.cat([r.sin for r in given], 2)) if given else None
