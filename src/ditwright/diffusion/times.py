"""Which times are trained: inverse distribution functions, from uniform numbers in (0, 1) to times.

Being inverses they can be plotted, stratified and composed; randomness stays with the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError

Times = Callable[[Tensor], Tensor]  # u in (0, 1) -> t, both (B,)


@dataclass(frozen=True)
class Uniform:
    """All times of the span alike."""

    span: tuple[float, float] = (0.0, 1.0)

    def __call__(self, u: Tensor) -> Tensor:
        low, high = self.span
        return low + (high - low) * u


@dataclass(frozen=True)
class Discrete:
    """All steps of a grid alike, such as the 1000 of a DDPM table: t = (i + 1) / steps."""

    steps: int = 1000

    def __call__(self, u: Tensor) -> Tensor:
        return ((u * self.steps).floor() + 1) / self.steps


@dataclass(frozen=True)
class LogitNormal:
    """sigmoid of a normal variable (Esser et al. 2024, Sec. 3.1). A mean above 0 leans to noise."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class Mode:
    """u - scale (sin^2(pi u / 2) - u), the mode sampling of Esser et al. 2024, Sec. 3.1: above 0 leans to the middle.

    Theirs runs from 1 to 0; its density is symmetric. It has an inverse for -1 <= scale <= 2 / (pi - 2).
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise UserError(f"mode sampling takes a scale from -1 to 2 / (pi - 2) = 1.75; got {self.scale:g}")

    def __call__(self, u: Tensor) -> Tensor:
        return u - self.scale * (torch.sin(math.pi / 2 * u).square() - u)


@dataclass(frozen=True)
class LogNormal:
    """exp of a normal variable: noise levels of the karras path (Karras et al. 2022, Table 1)."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, u: Tensor) -> Tensor:
        return torch.exp(self.mean + self.std * torch.special.ndtri(u))


@dataclass(frozen=True)
class Shifted:
    """Another distribution, moved to noise for shift > 1 (Esser et al. 2024, resolution-dependent shift)."""

    times: Times
    shift: float

    def __call__(self, u: Tensor) -> Tensor:
        return shift_time(self.times(u), self.shift)


def shift_time(t: Tensor, shift: float) -> Tensor:
    """shift t / (1 + (shift - 1) t): keeps 0 and 1, moves all between towards noise where shift > 1."""
    return shift * t / (1 + (shift - 1) * t)


def resolution_shift(tokens: int, base: int) -> float:
    """sqrt(tokens / base): noise of equal harm where there are more tokens than `base` (Esser et al. 2024, eq. 23)."""
    return math.sqrt(tokens / base)


def flux_shift(tokens: int, low: float = 0.5, high: float = 1.15, base: int = 256, most: int = 4096) -> float:
    """exp(mu), mu from `low` at `base` tokens to `high` at `most` along a line, and beyond (FLUX.1's own schedule).

    diffusers' `use_dynamic_shifting`, with its base_shift, max_shift, base_image_seq_len and max_image_seq_len.
    """
    return math.exp(low + (high - low) * (tokens - base) / (most - base))
