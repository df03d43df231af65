"""muP: a parameterisation in which the best learning rate does not move with the width (Yang et al. 2022, Table 3).

A matrix whose inputs grow with the width gets smaller steps and smaller initial weights; all else stays as it is at a
base width. Attention's scale needs no change: heads keep their width and grow in number.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..errors import UserError
from .baseline import NetConfig
from .config import DiTConfig
from .dit import DiT


def growth(config: NetConfig, base: int) -> dict[str, float]:
    """How often the inputs of every matrix are those at the base width, by the name of its weight.

    Weights that are not named (embeddings, biases, norms) have no inputs that grow. UserError where the base width
    does not hold whole heads, and for other networks.
    """
    return {f"{name}.weight": ours.in_features / theirs.in_features for name, ours, theirs in _pairs(config, base)}


@torch.no_grad()
def rescale(net: DiT, base: int) -> None:
    """Turn DiT's initial weights into those of muP: as the base network's, but for the growth of the inputs."""
    own = dict(net.named_modules())
    for name, ours, theirs in _pairs(net.config, base):
        factor = (theirs.in_features / ours.in_features) ** 0.5
        if not name.startswith("time."):  # drawn with one deviation at any width; all others by Xavier's rule
            factor *= ((ours.in_features + ours.out_features) / (theirs.in_features + theirs.out_features)) ** 0.5
        own[name].weight.mul_(factor)


def _pairs(config: NetConfig, base: int) -> list[tuple[str, nn.Linear, nn.Linear]]:
    """Every matrix by its module's name, in this network and in that of the base width; without their weights."""
    if not isinstance(config, DiTConfig):
        raise UserError("muP is for transformers; a U-Net takes optim.mup_width 0")
    head = config.width // config.heads
    if base < 1 or base % head:
        raise UserError(f"optim.mup_width must be a multiple of the {head} channels of a head; got {base}")
    with torch.device("meta"):
        ours, theirs = DiT(config), dict(DiT(replace(config, width=base, heads=base // head)).named_modules())
    return [(name, m, theirs[name]) for name, m in ours.named_modules() if isinstance(m, nn.Linear)]
