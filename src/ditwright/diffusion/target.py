"""What the network predicts: every target is a(t) x0 + b(t) eps (docs/maths.md, eq. 3), decoded by one 2 x 2 solve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .path import Coeffs

Target = Callable[[Coeffs], tuple[Tensor, Tensor]]  # -> (a, b)


class Prediction(NamedTuple):
    """What samplers and losses see of a network."""

    x0: Tensor  # (B, C, *space)
    eps: Tensor  # (B, C, *space)
    var: Tensor | None = None  # learned variance: 0 is the posterior's, 1 is beta, on a log scale


def data(c: Coeffs) -> tuple[Tensor, Tensor]:
    """The clean sample."""
    return torch.ones_like(c.alpha), torch.zeros_like(c.alpha)


def noise(c: Coeffs) -> tuple[Tensor, Tensor]:
    """The noise (Ho et al. 2020)."""
    return torch.zeros_like(c.alpha), torch.ones_like(c.alpha)


def v(c: Coeffs) -> tuple[Tensor, Tensor]:
    """alpha eps - sigma x0 (Salimans & Ho 2022, App. D)."""
    return -c.sigma, c.alpha


def velocity(c: Coeffs) -> tuple[Tensor, Tensor]:
    """dx_t / dt along the path (Lipman et al. 2022)."""
    return c.d_alpha, c.d_sigma


def to_data(c: Coeffs) -> tuple[Tensor, Tensor]:
    """The velocity of networks that count time from noise to data (Ma et al. 2024): -dx_t / dt."""
    return -c.d_alpha, -c.d_sigma


def score(c: Coeffs) -> tuple[Tensor, Tensor]:
    """The gradient of the log density, -eps / sigma (Song et al. 2021)."""
    return torch.zeros_like(c.alpha), -1 / c.sigma


@dataclass(frozen=True)
class EDM:
    """F of Karras et al. 2022, eq. 7: x0 = c_skip x_t + c_out F. Made for the karras path (alpha = 1)."""

    sigma_data: float = 0.5

    def __call__(self, c: Coeffs) -> tuple[Tensor, Tensor]:
        total = c.sigma.square() + self.sigma_data**2
        c_skip, c_out = self.sigma_data**2 / total, c.sigma * self.sigma_data / total.sqrt()
        return (1 - c_skip * c.alpha) / c_out, -c_skip * c.sigma / c_out

    def scale_in(self, c: Coeffs) -> Tensor:
        """c_in, which brings the network's input to unit variance."""
        return (c.sigma.square() + self.sigma_data**2).rsqrt()


def determinant(c: Coeffs, target: Target) -> Tensor:
    """det of the solve. out = (det / alpha) eps + ... = -(det / sigma) x0 + ... at a given x_t."""
    a, b = target(c)
    return c.alpha * b - c.sigma * a


def decode(out: Tensor, x_t: Tensor, c: Coeffs, target: Target) -> Prediction:
    """Solve x_t = alpha x0 + sigma eps, out = a x0 + b eps for (x0, eps) (docs/maths.md, eq. 4)."""
    a, b = target(c)
    det = c.alpha * b - c.sigma * a
    return Prediction((b * x_t - c.sigma * out) / det, (c.alpha * out - a * x_t) / det)


TARGETS: dict[str, Target] = {
    "data": data,
    "noise": noise,
    "v": v,
    "velocity": velocity,
    "score": score,
    "edm": EDM(),
}
