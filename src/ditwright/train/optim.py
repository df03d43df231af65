"""The optimizer and its learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ..errors import UserError

Schedule = Callable[[int], float]  # step, 0 first -> factor on the learning rate


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, its schedule, and the average of its weights."""

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0  # steps of linear warm-up
    clip: float = 1.0  # largest gradient norm
    accumulate: int = 1  # batches per step
    ema: float = 0.9999

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.clip <= 0:
            raise UserError(f"optim.lr and optim.clip must be above 0; got {self.lr:g} and {self.clip:g}")
        if self.warmup < 0 or self.weight_decay < 0:
            raise UserError("optim.warmup and optim.weight_decay must be 0 or more")
        if self.accumulate < 1:
            raise UserError(f"optim.accumulate must be at least 1; got {self.accumulate}")
        if not 0 <= self.ema < 1 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optim.ema and optim.betas must be in [0, 1); got {self.ema:g} and {self.betas}")


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
