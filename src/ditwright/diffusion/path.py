"""Paths from data to noise: x_t = alpha(t) x0 + sigma(t) eps (docs/maths.md, eq. 1). t = 0 is data, t = 1 is noise.

A path maps times of any shape to coefficients of that shape, in float64 where the times are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError


class Coeffs(NamedTuple):
    """alpha, sigma and their derivatives in t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


Path = Callable[[Tensor], Coeffs]


def coeffs_like(path: Path, t: Tensor, x: Tensor) -> Coeffs:
    """The coefficients at times t, () or (B,), shaped and typed to multiply x (B, ...)."""
    return Coeffs(*(v.to(x).reshape(-1, *(1,) * (x.ndim - 1)) for v in path(t)))


def linear(t: Tensor) -> Coeffs:
    """Straight lines (Liu et al. 2022, rectified flow; Lipman et al. 2022)."""
    return Coeffs(1 - t, t, -torch.ones_like(t), torch.ones_like(t))


def cosine(t: Tensor) -> Coeffs:
    """Generalised variance-preserving path, alpha^2 + sigma^2 = 1 (Albergo & Vanden-Eijnden 2022; SiT's GVP)."""
    angle = math.pi / 2 * t
    return Coeffs(angle.cos(), angle.sin(), -math.pi / 2 * angle.sin(), math.pi / 2 * angle.cos())


def karras(t: Tensor) -> Coeffs:
    """The variance-exploding path on which time is the noise level itself (Karras et al. 2022, Table 1)."""
    return Coeffs(torch.ones_like(t), t, torch.zeros_like(t), torch.ones_like(t))


def _variance_preserving(log_abar: Tensor, slope: Tensor) -> Coeffs:
    """alpha^2 = abar, sigma^2 = 1 - abar, from log(abar) and its derivative: no cancellation near t = 0."""
    alpha, sigma = (log_abar / 2).exp(), (-torch.expm1(log_abar)).sqrt()
    return Coeffs(alpha, sigma, slope / 2 * alpha, -slope / 2 * alpha.square() / sigma)


@dataclass(frozen=True)
class VP:
    """The continuous variance-preserving diffusion with linear beta(t) (Song et al. 2021)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __call__(self, t: Tensor) -> Coeffs:
        growth = self.beta_max - self.beta_min
        return _variance_preserving(-growth / 2 * t.square() - self.beta_min * t, -growth * t - self.beta_min)


@dataclass(frozen=True)
class DDPM:
    """A table of discrete steps (Ho et al. 2020). Index i = 0 ... steps-1 of the originals is t = (i + 1) / steps here.

    `linear` betas run from 1e-4 to 0.02 at 1000 steps and scale with their number; `cosine` is the squared cosine of
    Nichol & Dhariwal 2021, eq. 17, with betas of at most 0.999. Between the steps log(abar) is linear, and so is its
    derivative between their middles, which keeps `heun` of second order.
    """

    schedule: Literal["linear", "cosine"] = "linear"
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 2 or (self.schedule == "linear" and self.steps <= 20):
            raise UserError(
                f"a {self.schedule} DDPM table of {self.steps} steps adds all noise at once; take more steps"
            )

    def __call__(self, t: Tensor) -> Coeffs:
        table = _log_abar(self.schedule, self.steps).to(t.device, torch.promote_types(t.dtype, torch.float32))
        place = (t * self.steps).clamp(0, self.steps)
        slope = _between(table.diff(), (place - 0.5).clamp(0, self.steps - 1))  # at a step: the mean of its two sides
        return _variance_preserving(_between(table, place), slope * self.steps)


def _between(table: Tensor, place: Tensor) -> Tensor:
    """Linear interpolation of a table (N,) at places 0 ... N-1."""
    low = place.detach().floor().clamp(max=len(table) - 2).long()
    return table[low] + (place - low) * (table[low + 1] - table[low])


def betas(schedule: str, steps: int) -> Tensor:
    """The noise added by each step: (steps,) float64."""
    if schedule == "linear":
        return torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
    edge = ((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (1 - edge[1:] / edge[:-1]).clamp(max=0.999)


@lru_cache
def _log_abar(schedule: str, steps: int) -> Tensor:
    """log of the cumulative product of 1 - beta, from 0 at t = 0: (steps + 1,)."""
    return torch.cat((torch.zeros(1, dtype=torch.float64), torch.log1p(-betas(schedule, steps)).cumsum(0)))


PATHS: dict[str, Path] = {
    "linear": linear,
    "cosine": cosine,
    "vp": VP(),
    "karras": karras,
    "ddpm": DDPM("linear"),
    "ddpm-cosine": DDPM("cosine"),
}
