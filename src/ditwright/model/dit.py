"""The diffusion transformer: one class for every modality and every way to condition it.

B batch, C channels, L tokens, D width, A axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.process import Cond
from ..errors import UserError
from ..nn.branch import Context, CrossAttention, Runner, run_all
from ..nn.embed import TimeEmbed
from ..nn.modulation import AdaLN, AdaLNZero
from ..nn.norm import NORMS
from ..nn.position import Rope, placed, rope, sincos
from ..nn.single import AdaLNSingle, Bare, SharedVectors, Table
from ..nn.tokens import Patchify, Tokens, patch_grid, unpatchify
from .blocks import HEADS, make_block, text_of, vectors_of
from .config import DiTConfig


class Head(nn.Module):
    """Final norm and projection to patches (Peebles & Xie, Sec. 3.2)."""

    def __init__(self, width: int, out: int, mod: nn.Module):
        super().__init__()
        self.mod, self.proj = mod, nn.Linear(width, out)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        h, _ = self.mod(x, vec)
        return self.proj(h)  # (B, L, prod(patch) * C)


class DiT(nn.Module):
    """A transformer over patches of a noisy input, told the time and the condition (Peebles & Xie, Sec. 3)."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config, width, last = config, config.width, config.stages[-1]
        self.patchify = Patchify(config.patch, config.channels, width)
        self.time = TimeEmbed(width, config.time_shift)
        self.vectors = nn.ModuleDict(vectors_of(config))
        self.text = text_of(config)
        self.wants = [*self.vectors, *(["text"] if config.text_width else [])]
        self.shared = SharedVectors(width) if last.mod == "adaln_single" else nn.Identity()
        self.blocks = nn.ModuleList(make_block(config, stage) for stage in config.stages for _ in range(stage.depth))
        head_mod = HEADS[last.mod](width, NORMS[config.norm])
        self.head = Head(width, math.prod(config.patch) * config.out_channels, head_mod)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None, run: Runner = run_all) -> Tensor:
        """x (B, C, *space), t (B,) the time as the network counts it -> (B, C_out, *space).

        `cond`, as the configuration asks: "label" (B,); "text", (B, M, E) states or (B, M) ids, with "text_mask" (B, M)
        where some of it is padding (false); "pooled" (B, P); "guidance" (B,); "size" (B, 3): height, width, ratio.
        Any space that the patch divides will do. `run` decides which blocks run, and how.
        """
        config, image, cond = self.config, self.patchify(x), cond or {}
        if missing := [name for name in self.wants if name not in cond]:
            raise UserError(f"the network is conditioned on {self.wants}; pass cond={{{missing[0]!r}: tensor}}")
        vectors = torch.stack([self.time(t)] + [embed(cond[name]) for name, embed in self.vectors.items()], 1)
        states, mask = self.text(vectors, cond)
        condition = Tokens(states, image.pos.new_zeros(1, states.shape[1], len(config.patch)), mask)
        vec = vectors.sum(1)
        if config.sincos:
            pos = placed(image.pos, patch_grid(x.shape[2:], config.patch), **vars(config.positions))
            image = replace(image, x=image.x + sincos(pos, config.width, config.sincos).to(image.x))
        streams = [image, *([condition] if config.context == "stream" else [])]
        ctx = Context(
            vec=self.shared(vec),
            rope=tuple(self._rope(s) for s in streams),
            mask=joined_mask(streams),
            cross=condition if config.context == "cross" else None,
            t=t,
        )
        xs = run(self.blocks, tuple(s.x for s in streams), ctx)
        return unpatchify(self.head(xs[0], vec), config.patch, x.shape[2:])

    def _rope(self, tokens: Tokens) -> Rope | None:
        """Rotations by position; axes that the grid has not come first and are 0, as Flux's first one is."""
        dims = self.config.rope
        return rope(F.pad(tokens.pos, (len(dims) - tokens.pos.shape[-1], 0)), dims) if dims else None


def joined_mask(streams: Sequence[Tokens]) -> Tensor | None:
    """Which keys exist over all streams, (B, sum of L); None where all do, which costs nothing."""
    masks = [s.mask for s in streams if s.mask is not None]
    if not masks:
        return None
    here = [masks[0].new_ones(len(masks[0]), s.x.shape[1]) if s.mask is None else s.mask for s in streams]
    return torch.cat(here, 1).bool()


def initialise(net: DiT) -> None:
    """DiT's initial weights (Peebles & Xie, Sec. 3.2 and their released code): zero gates and a zero head."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for module in net.time.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
    for module in net.modules():
        if isinstance(module, AdaLNZero) or (module is net.head.mod and isinstance(module, AdaLN)):
            nn.init.zeros_(module.lin.weight)
        elif isinstance(module, (AdaLNSingle, Table)):
            nn.init.normal_(module.table, std=net.config.width**-0.5)
        elif isinstance(module, CrossAttention) and isinstance(module.mod, Bare):
            nn.init.zeros_(module.proj.weight)  # it has no gate to be silent by
    nn.init.zeros_(net.head.proj.weight)
