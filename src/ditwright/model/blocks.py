"""Blocks by what a stage says: the one place where a new way to hear a condition is added.

Every maker takes the configuration and the stage and returns a Block; `make_block` puts its branches together.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from ..errors import lookup
from ..nn.branch import FEEDS, AttentionLane, Block, CrossAttention, Feed, JointAttention
from ..nn.embed import LabelEmbed
from ..nn.modulation import MODULATIONS, AdaLN, Plain
from ..nn.norm import NORMS
from ..nn.single import AdaLNSingle, Bare, Table
from ..nn.streams import Beside, ImageAttention, Parallel, ReadOnlyLane, Silent
from ..nn.text import GuidanceEmbed, PooledEmbed, SizeEmbed, TextTokens, TextTower, VectorTokens
from .config import DiTConfig, Stage


def make_block(config: DiTConfig, stage: Stage) -> Block:
    """Attention, cross-attention where the stage has it, MLP: each with its own modulated norm; or both in one."""
    if stage.parallel:
        hidden = round(config.width * config.mlp_ratio)
        mod = modulation(config, stage)
        return Block({"both": Parallel(config.width, config.heads, hidden, mod, qk_norm=config.qk_norm)})
    branches: dict[str, nn.Module] = {"attn": attention(config, stage)}
    if stage.cross:
        mod = modulation(config, stage) if stage.cross_norm else Bare()
        branches["cross"] = CrossAttention(config.width, config.heads, mod)
    branches["mlp"] = mlp(config, stage)
    return Block(branches)


def attention(config: DiTConfig, stage: Stage) -> nn.Module:
    """All streams attend to each other; where the stage says so, the image to itself beside that."""
    lane = partial(AttentionLane, config.width, config.heads, qk_norm=config.qk_norm)
    lanes: dict[str, nn.Module] = {"x": lane(modulation(config, stage))}
    if stage.lanes == "own":
        lanes["text"] = lane(modulation(config, stage))
    if stage.read_only:
        norm = AdaLN(config.width, NORMS[config.norm])
        lanes["text"] = ReadOnlyLane(config.width, config.heads, norm, qk_norm=config.qk_norm)
    joint = JointAttention(lanes)
    if not stage.dual:
        return joint
    return Beside({"joint": joint, "image": ImageAttention({"x": lane(modulation(config, stage))})})


def mlp(config: DiTConfig, stage: Stage) -> Feed:
    """A lane for every stream that has one of its own."""
    feed, hidden = lookup("mlp", config.mlp, FEEDS), round(config.width * config.mlp_ratio)
    eps = config.mlp_norm_eps
    lanes: dict[str, nn.Module] = {"x": feed(config.width, hidden, modulation(config, stage, slot=1, eps=eps))}
    if stage.lanes == "own":
        lanes["text"] = Silent()
        if not stage.read_only:
            lanes["text"] = feed(config.width, hidden, modulation(config, stage, slot=1, eps=eps))
    return Feed(lanes)


def modulation(config: DiTConfig, stage: Stage, *, slot: int = 0, eps: float = 1e-6) -> nn.Module:
    """How a norm of a stage hears the condition; `slot`: which of the block's it is."""
    make: Any = lookup("modulation", stage.mod, MODULATIONS)
    norm = partial(lookup("norm", config.norm, NORMS), eps=eps)
    return make(config.width, norm, slot) if make is AdaLNSingle else make(config.width, norm)


HEADS: dict[str, Any] = {"plain": Plain, "adaln": AdaLN, "adaln_zero": AdaLN, "adaln_single": Table}


def text_of(config: DiTConfig) -> nn.Module:
    """What makes tokens of the condition: of a text, through a tower of the network's own where it has one; or of the
    vectors themselves."""
    if not config.text_width:
        return VectorTokens()
    tower = None
    if config.text_vocab:
        tower = TextTower(config.text_vocab, config.text_width, config.text_depth, config.text_heads)
    return TextTokens(config.text_width, config.width, hidden=config.text_mlp, tower=tower)


def vectors_of(config: DiTConfig) -> dict[str, nn.Module]:
    """What makes vectors of conditions beside the time, by the condition's name; their sum is what norms hear."""
    found: dict[str, nn.Module] = {}
    if config.num_classes:
        found["label"] = LabelEmbed(config.num_classes, config.width)
    if config.pooled_width:
        found["pooled"] = PooledEmbed(config.pooled_width, config.width)
    if config.guidance:
        found["guidance"] = GuidanceEmbed(config.width)
    if config.sizes:
        found["size"] = SizeEmbed(config.width)
    return found
