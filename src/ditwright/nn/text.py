"""From text, and what is told beside it, to vectors and tokens.

B batch, D width, M text tokens, E width of the encoder's states.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .branch import AttentionLane, Block, Context, Feed, FeedLane, JointAttention, run_all
from .embed import TimeEmbed
from .modulation import Plain
from .norm import layer_norm
from .position import rope
from .tokens import grid_positions


class PooledEmbed(nn.Module):
    """A pooled text vector through a two-layer MLP: (B, E) -> (B, D) (Esser et al. 2024)."""

    def __init__(self, pooled: int, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(pooled, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, pooled: Tensor) -> Tensor:
        return self.mlp(pooled.to(next(self.parameters()).dtype))


class GuidanceEmbed(TimeEmbed):
    """The guidance scale that a distilled network imitates: (B,) -> (B, D) (FLUX.1 dev; Meng et al. 2023)."""

    def forward(self, scale: Tensor) -> Tensor:
        return super().forward(1000 * scale)


class SizeEmbed(nn.Module):
    """Height and width in pixels and their ratio, (B, 3), a third of the width each: (B, D) (PixArt-alpha at 1024)."""

    def __init__(self, width: int):
        super().__init__()
        self.side, self.ratio = TimeEmbed(width // 3), TimeEmbed(width // 3)

    def forward(self, size: Tensor) -> Tensor:
        sides = self.side(size[:, :2].flatten()).unflatten(0, (-1, 2)).flatten(1)  # (B, 2 D / 3)
        return torch.cat((sides, self.ratio(size[:, 2])), -1)


class VectorTokens(nn.Module):
    """The vectors of the condition as tokens: (B, M, D), all of them real (Peebles & Xie, Sec. 3.2)."""

    def forward(self, vectors: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, None]:
        return vectors, None


class TextTokens(nn.Module):
    """A text as tokens (B, M, D) and which of them are real, by one matrix (SD3, Flux) or two (PixArt).

    `tower`: what makes states of token ids; None where the states of an encoder come, (B, M, E).
    """

    def __init__(self, text: int, width: int, *, hidden: bool = False, tower: nn.Module | None = None):
        super().__init__()
        first = nn.Linear(text, width)
        self.mlp = nn.Sequential(first, nn.GELU(approximate="tanh"), nn.Linear(width, width)) if hidden else first
        self.tower = tower

    def forward(self, vectors: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        states, mask = cond["text"], cond.get("text_mask")
        if mask is not None:
            mask = mask.bool()  # tokenizers give numbers, which a kernel would add to the scores
        if self.tower is not None:
            states = self.tower(states, mask)
        return self.mlp(states.to(next(self.mlp.parameters()).dtype)), mask


class TextTower(nn.Module):
    """A small transformer over token ids in which every token hears every other (Vaswani et al. 2017; Su et al. 2021).

    Its blocks are the network's own with plain norms; order is told by rotary positions.
    """

    def __init__(self, vocab: int, width: int, depth: int, heads: int):
        super().__init__()
        self.table, self.head = nn.Embedding(vocab, width), width // heads
        self.blocks = nn.ModuleList(text_block(width, heads) for _ in range(depth))
        self.norm = layer_norm(width, affine=True)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, M) int64, (B, M) true where there is text -> (B, M, E)."""
        x = self.table(ids)
        turn = rope(grid_positions(ids.shape[1:], ids.device), (self.head,))
        ctx = Context(vec=torch.zeros_like(x[:, 0]), rope=(turn,), mask=mask)
        (x,) = run_all(self.blocks, (x,), ctx)
        return self.norm(x)


def text_block(width: int, heads: int) -> Block:
    """Attention and MLP with norms that hear nothing."""
    attention = JointAttention({"x": AttentionLane(width, heads, Plain(width))})
    return Block({"attn": attention, "mlp": Feed({"x": FeedLane(width, 4 * width, Plain(width))})})
