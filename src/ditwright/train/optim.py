"""The optimizer and its learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .config import OptimConfig

Schedule = Callable[[int], float]  # step, 0 first -> factor on the learning rate


@dataclass(frozen=True)
class Constant:
    """A linear warm-up, then 1."""

    warmup: int = 0

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / (self.warmup + 1))


@dataclass(frozen=True)
class Cosine:
    """A linear warm-up, then half a cosine down to 0 at step `total`."""

    total: int
    warmup: int = 0

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def schedule_from(config: OptimConfig, steps: int) -> Schedule:
    """The schedule that a configuration names, for a run of `steps`."""
    return Cosine(steps, config.warmup) if config.schedule == "cosine" else Constant(config.warmup)


def adamw(net: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW; weights of products decay, biases, norms and embeddings do not."""
    embeddings = {id(p) for m in net.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    params = [p for p in net.parameters() if p.requires_grad]
    decays = [p for p in params if p.ndim >= 2 and id(p) not in embeddings]
    stays = [p for p in params if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decays}, {"params": stays, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
