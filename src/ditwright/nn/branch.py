"""Blocks: lists of residual branches. A branch maps (streams, context) to what is added to each stream.

B batch, L tokens, D width, H heads, d head width, M context tokens.
Streams come image first. Lanes (weights per stream) broadcast over streams, as in NumPy: one lane serves them all,
or every stream has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import attend
from .norm import RMSNorm
from .position import Rope
from .tokens import Tokens

Streams = tuple[Tensor, ...]  # (B, L, D) each


@dataclass(frozen=True)
class Context:
    """What stays the same through all blocks of one forward pass."""

    vec: Tensor  # (B, D) the condition, pooled
    rope: tuple[Rope | None, ...]  # one per stream
    mask: Tensor | None = None  # (B, sum of L) keys that exist, over all streams
    cross: Tokens | None = None  # what cross-attention reads
    t: Tensor | None = None  # (B,) what the network was told of the time; for runners
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = attend  # how queries read keys; for runners


Branch = Callable[[Streams, Context], Sequence[Tensor | None]]  # one delta per stream
Modulation = Callable[[Tensor, Tensor], tuple[Tensor, "Tensor | float"]]  # (x, vec) -> (h, gate)


def add(xs: Streams, deltas: Sequence[Tensor | None]) -> Streams:
    """x + delta for every stream; a stream without a delta stays as it is."""
    return tuple(x if d is None else x + d for x, d in zip_longest(xs, deltas))


def lanes_for(lanes: Iterable[nn.Module], streams: int) -> list[Any]:
    """Broadcast lanes over streams."""
    lanes = list(lanes)
    assert len(lanes) in (1, streams), f"{len(lanes)} lanes cannot serve {streams} streams"
    return lanes * streams if len(lanes) == 1 else lanes


class AttentionLane(nn.Module):
    """One stream's way into and out of joint attention: its norm, projections and gate.

    `qk_norm`: an RMS norm of queries and of keys, per head (Dehghani et al. 2023).
    """

    def __init__(self, width: int, heads: int, mod: nn.Module, *, qk_norm: bool = False):
        super().__init__()
        self.heads, self.mod = heads, mod
        self.qkv = nn.Linear(width, 3 * width)
        self.proj: nn.Module = nn.Linear(width, width)
        self.q_norm = RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads, eps=1e-6) if qk_norm else nn.Identity()

    def read(self, x: Tensor, vec: Tensor, rope: Rope | None) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | float]:
        h, gate = self.mod(x, vec)
        q, k, v = rearrange(self.qkv(h), "b l (three h d) -> three b h l d", three=3, h=self.heads)
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rope is None else (rope(q), rope(k), v), gate

    def write(self, o: Tensor, gate: Tensor | float) -> Tensor | None:
        return gate * self.proj(rearrange(o, "b h l d -> b l (h d)"))


class JointAttention(nn.ModuleDict):
    """All streams attend to the concatenation of all streams (Peebles & Xie in-context; Esser et al. 2024, Sec. 4)."""

    def forward(self, xs: Streams, ctx: Context) -> list[Tensor | None]:
        lanes = lanes_for(self.values(), len(xs))
        reads = [lane.read(x, ctx.vec, rope) for lane, x, rope in zip(lanes, xs, ctx.rope, strict=True)]
        q, k, v = (torch.cat(parts, 2) for parts in zip(*(qkv for qkv, _ in reads), strict=True))
        outs = ctx.attend(q, k, v, ctx.mask).split([x.shape[1] for x in xs], 2)
        return [lane.write(o, gate) for lane, o, (_, gate) in zip(lanes, outs, reads, strict=True)]


class CrossAttention(nn.Module):
    """The image stream reads the context tokens (Vaswani et al. 2017; Peebles & Xie, Sec. 3.2)."""

    def __init__(self, width: int, heads: int, mod: nn.Module):
        super().__init__()
        self.heads, self.mod = heads, mod
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, xs: Streams, ctx: Context) -> list[Tensor]:
        assert ctx.cross is not None, "a cross-attention branch needs context tokens"
        h, gate = self.mod(xs[0], ctx.vec)
        q = rearrange(self.q(h), "b l (h d) -> b h l d", h=self.heads)
        k, v = rearrange(self.kv(ctx.cross.x), "b m (two h d) -> two b h m d", two=2, h=self.heads)
        return [gate * self.proj(rearrange(ctx.attend(q, k, v, ctx.cross.mask), "b h l d -> b l (h d)"))]


class FeedLane(nn.Module):
    """One stream's MLP (Vaswani et al. 2017)."""

    products = 2  # matrix products of width times hidden

    def __init__(self, width: int, hidden: int, mod: nn.Module):
        super().__init__()
        self.mod, self.fc1, self.fc2 = mod, nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        h, gate = self.mod(x, vec)
        return gate * self.fc2(F.gelu(self.fc1(h), approximate="tanh"))


class SwiGLULane(nn.Module):
    """One stream's gated MLP: the first half of `w12` opens the second (Shazeer 2020; LightningDiT)."""

    products = 3

    def __init__(self, width: int, hidden: int, mod: nn.Module):
        super().__init__()
        self.mod, self.w12, self.w3 = mod, nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        h, gate = self.mod(x, vec)
        opened, value = self.w12(h).chunk(2, -1)
        return gate * self.w3(F.silu(opened) * value)


FEEDS: dict[str, Any] = {"gelu": FeedLane, "swiglu": SwiGLULane}


class Feed(nn.ModuleDict):
    """The pointwise feed-forward branch, a lane per stream or one for all."""

    def forward(self, xs: Streams, ctx: Context) -> list[Tensor | None]:
        return [lane(x, ctx.vec) for lane, x in zip(lanes_for(self.values(), len(xs)), xs, strict=True)]


class Block(nn.ModuleDict):
    """x = x + branch(x), for every branch in order; branches are named ("attn", "cross", "mlp")."""

    def forward(self, xs: Streams, ctx: Context) -> Streams:
        for branch in self.values():
            xs = add(xs, branch(xs, ctx))
        return xs


Runner = Callable[[Iterable[nn.Module], Streams, Context], Streams]  # of Blocks


def run_all(blocks: Iterable[nn.Module], xs: Streams, ctx: Context) -> Streams:
    """The plain runner: every block, once, in order."""
    for block in blocks:
        xs = block(xs, ctx)
    return xs
