"""Samplers: generators that walk a grid of times and yield every step, which gives progress, preview and cancelling.

sampler(denoise, x, times, path, *, noise) -> Step, Step, ...
x (B, ...) is the sample at times[0]; times is a decreasing grid (grid.py) and ends at 0; noise(x) draws fresh noise
shaped like x (`Draws.normal`) and is asked only by stochastic samplers. Coefficients are float64 scalars.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError, lookup
from .guidance import Denoise
from .path import Coeffs, Path
from .posterior import log_variance, mean, posterior
from .target import Prediction

Noise = Callable[[Tensor], Tensor]
Sampler = Callable[..., Iterator["Step"]]


class Step(NamedTuple):
    """Where a sampler has come to."""

    t: Tensor  # () the time of x
    x: Tensor  # (B, ...) the sample at t
    x0: Tensor  # (B, ...) the newest estimate of the clean sample: the preview


def slope(c: Coeffs, p: Prediction) -> Tensor:
    """dx/dt of the probability flow (docs/maths.md, eq. 9)."""
    return c.d_alpha * p.x0 + c.d_sigma * p.eps


def euler(denoise: Denoise, x: Tensor, times: Tensor, path: Path, *, noise: Noise | None = None) -> Iterator[Step]:
    """First order along the probability flow (Song et al. 2021; Lipman et al. 2022)."""
    for t, s in pairwise(times):
        p = denoise(x, t)
        x = x + (s - t) * slope(path(t), p)
        yield Step(s, x, p.x0)


def heun(denoise: Denoise, x: Tensor, times: Tensor, path: Path, *, noise: Noise | None = None) -> Iterator[Step]:
    """Second order, two evaluations a step but one for the last (Karras et al. 2022, Alg. 1)."""
    for t, s in pairwise(times):
        p = denoise(x, t)
        d = slope(path(t), p)
        if s > 0:
            d = (d + slope(path(s), denoise(x + (s - t) * d, s))) / 2
        x = x + (s - t) * d
        yield Step(s, x, p.x0)


def ddim(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    path: Path,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
    to: Tensor | None = None,
) -> Iterator[Step]:
    """Exact on every path where x0 and eps are constant (Song et al. 2020, eq. 12); eta = 1 adds DDPM's noise.

    `to` (N,): where the steps lead if not to the next time (`grid.landings`).
    """
    for t, s in zip(times[:-1], times[1:] if to is None else to, strict=True):
        p, ct, cs = denoise(x, t), path(t), path(s)
        fresh = torch.zeros_like(t)
        if eta > 0:
            fresh = eta * cs.sigma * (1 - (cs.sigma * ct.alpha / (cs.alpha * ct.sigma)) ** 2).clamp(min=0).sqrt()
        x = cs.alpha * p.x0 + (cs.sigma**2 - fresh**2) ** 0.5 * p.eps
        if eta > 0 and s > 0:
            x = x + fresh * _drawn(noise, x, "ddim with eta above 0")
        yield Step(s, x, p.x0)


def ddpm(denoise: Denoise, x: Tensor, times: Tensor, path: Path, *, noise: Noise | None = None) -> Iterator[Step]:
    """Ancestral sampling, with the learned variance where the network has one (Ho et al. 2020, Alg. 2)."""
    q = posterior(path, times)
    for i, (t, s) in enumerate(pairwise(times)):
        p, step = denoise(x, t), torch.tensor([i])
        x = mean(q, step, p.x0, x)
        if s > 0:
            x = x + (0.5 * log_variance(q, step, p)).exp() * _drawn(noise, x, "ddpm")
        yield Step(s, x, p.x0)


def dpmpp_2m(denoise: Denoise, x: Tensor, times: Tensor, path: Path, *, noise: Noise | None = None) -> Iterator[Step]:
    """DPM-Solver++(2M), second order with one evaluation a step (Lu et al. 2022, Alg. 2)."""
    old: tuple[Tensor, Tensor] | None = None  # previous x0, and the log-SNR step that led from it
    for t, s in pairwise(times):
        p, ct, cs = denoise(x, t), path(t), path(s)
        decay = cs.sigma * ct.alpha / (cs.alpha * ct.sigma)  # exp(-h), h the step in log(alpha / sigma)
        h, d = -decay.log(), p.x0
        if old is not None and s > 0 and torch.isfinite(old[1]):
            d = d + h / (2 * old[1]) * (d - old[0])
        x = cs.sigma / ct.sigma * x + cs.alpha * (1 - decay) * d
        old = p.x0, h
        yield Step(s, x, p.x0)


DIFFUSIONS: dict[str, Callable[[Tensor, Coeffs, float], Tensor]] = {
    "constant": lambda t, c, norm: torch.full_like(t, norm),
    "sbdm": lambda t, c, norm: norm * (c.sigma * c.d_sigma - c.d_alpha / c.alpha * c.sigma**2),
    "sigma": lambda t, c, norm: norm * c.sigma,
    "linear": lambda t, c, norm: norm * t,
    "decreasing": lambda t, c, norm: 0.25 * (norm * torch.cos(math.pi * (1 - t)) + 1) ** 2,
    "increasing-decreasing": lambda t, c, norm: norm * torch.sin(math.pi * t) ** 2,
}


def sde(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    path: Path,
    *,
    noise: Noise | None = None,
    diffusion: str = "sigma",
    norm: float = 1.0,
    last: Literal["mean", "euler", "tweedie"] = "mean",
) -> Iterator[Step]:
    """The reverse SDE with a free diffusion coefficient w(t), by Euler-Maruyama (Ma et al. 2024).

    dx = (v - w score) dt + sqrt(2 w) dW, backwards (docs/maths.md, eq. 12). The closing step to 0 draws no noise:
    "mean" takes the SDE's drift, "euler" the flow's, "tweedie" x0 itself; `grid.with_last` gives it SiT's length.
    """
    w_at = lookup("diffusion form", diffusion, DIFFUSIONS)
    if last not in ("mean", "euler", "tweedie"):
        raise UserError(f"unknown last step {last!r}; known: mean, euler, tweedie")
    for t, s in pairwise(times):
        p, c = denoise(x, t), path(t)
        v, w = slope(c, p), w_at(t, c, norm)
        if not w.isfinite():
            raise UserError(f"diffusion form {diffusion!r} is infinite at t = {t:g} on this path; start the grid below")
        drift = v + w * p.eps / c.sigma  # score = -eps / sigma
        if s > 0:
            x = x + (s - t) * drift + (2 * w * (t - s)).sqrt() * _drawn(noise, x, "sde")
        else:
            x = {"mean": x + (s - t) * drift, "euler": x + (s - t) * v, "tweedie": p.x0}[last]
        yield Step(s, x, p.x0)


def _drawn(noise: Noise | None, x: Tensor, who: str) -> Tensor:
    if noise is None:
        raise UserError(f"{who} is stochastic: pass noise=, a function that draws noise shaped like its argument")
    return noise(x)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "sde": sde,
}


def last(steps: Iterator[Step]) -> Tensor:
    """Run a sampler to its end and return the sample."""
    return deque(steps, maxlen=1).pop().x
