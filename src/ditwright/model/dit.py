"""The diffusion transformer: one class for every modality and every way to condition it.

B batch, C channels, L tokens, D width, A axes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ..diffusion.process import Cond
from ..errors import UserError, lookup
from ..nn.branch import FEEDS, AttentionLane, Block, Context, CrossAttention, Feed, JointAttention, Runner, run_all
from ..nn.embed import LabelEmbed, TimeEmbed
from ..nn.modulation import MODULATIONS, AdaLN, AdaLNZero, Plain
from ..nn.norm import NORMS
from ..nn.position import rope, sincos
from ..nn.tokens import Patchify, Tokens, unpatchify
from .config import DiTConfig, Stage


def make_block(config: DiTConfig, stage: Stage) -> Block:
    """Attention, cross-attention where the stage has it, MLP: each with its own modulated norm."""
    width, heads, mod = config.width, config.heads, lookup("modulation", stage.mod, MODULATIONS)
    norm, feed = lookup("norm", config.norm, NORMS), lookup("mlp", config.mlp, FEEDS)
    mlp_norm, hidden = partial(norm, eps=config.mlp_norm_eps), round(width * config.mlp_ratio)
    branches: dict[str, nn.Module] = {}
    branches["attn"] = JointAttention({"x": AttentionLane(width, heads, mod(width, norm), qk_norm=config.qk_norm)})
    if stage.cross:
        branches["cross"] = CrossAttention(width, heads, mod(width, norm))
    branches["mlp"] = Feed({"x": feed(width, hidden, mod(width, mlp_norm))})
    return Block(branches)


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
        self.config, width = config, config.width
        self.patchify = Patchify(config.patch, config.channels, width)
        self.time = TimeEmbed(width, config.time_shift)
        self.vectors = nn.ModuleDict({"label": LabelEmbed(config.num_classes, width)} if config.num_classes else {})
        self.blocks = nn.ModuleList(make_block(config, stage) for stage in config.stages for _ in range(stage.depth))
        head_mod = Plain if config.stages[-1].mod == "plain" else AdaLN
        self.head = Head(width, math.prod(config.patch) * config.out_channels, head_mod(width, NORMS[config.norm]))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None, run: Runner = run_all) -> Tensor:
        """x (B, C, *space), t (B,) the time as the network counts it, cond {"label": (B,)} -> (B, C_out, *space).

        Any space that the patch divides will do. `run` decides which blocks run, and how.
        """
        config, image = self.config, self.patchify(x)
        parts = [self.time(t)] + [embed(self._given(cond, name)) for name, embed in self.vectors.items()]
        condition = Tokens(torch.stack(parts, 1), image.pos.new_zeros(1, len(parts), len(config.patch)))
        if config.sincos:
            image = replace(image, x=image.x + sincos(image.pos, config.width, config.sincos).to(image.x))
        streams = [image, *([condition] if config.context == "stream" else [])]
        ctx = Context(
            vec=condition.x.sum(1),
            rope=tuple(rope(s.pos, config.rope) if config.rope else None for s in streams),
            cross=condition if config.context == "cross" else None,
            t=t,
        )
        xs = run(self.blocks, tuple(s.x for s in streams), ctx)
        return unpatchify(self.head(xs[0], ctx.vec), config.patch, x.shape[2:])

    def _given(self, cond: Cond | None, name: str) -> Tensor:
        if not cond or name not in cond:
            raise UserError(f"the network is conditioned on {list(self.vectors)}; pass cond={{{name!r}: tensor}}")
        return cond[name]


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
    for module in [m for m in net.modules() if isinstance(m, AdaLNZero)] + [net.head.mod]:
        if isinstance(module, (AdaLN, AdaLNZero)):
            nn.init.zeros_(module.lin.weight)
    nn.init.zeros_(net.head.proj.weight)
