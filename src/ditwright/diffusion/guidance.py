"""Classifier-free guidance, written once for every target, because decoding is affine in the network's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .path import Path, coeffs_like
from .process import Cond, Denoiser
from .target import Prediction

Denoise = Callable[[Tensor, Tensor], Prediction]  # (x_t, t) with the condition already bound; t is ()


@dataclass(frozen=True)
class Skip:
    """Skip-layer guidance: away from the network without some of its layers (SD3.5; docs/maths.md, eq. 14)."""

    net: Mapping[str, object]  # what makes it leave them out, such as {"run": Without((7, 8, 9))}
    span: tuple[float, float]  # times t at which it is on, both ends included (`grid.between`)
    scale: float = 2.8


def guided(
    denoiser: Denoiser,
    cond: Cond,
    null: Cond,
    scale: float,
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    rescale: float = 0.0,
    channels: int | None = None,
    skip: Skip | None = None,
    **net: object,
) -> Denoise:
    """null + scale (cond - null), for x0 and eps alike (Ho & Salimans 2022, eq. 6; docs/maths.md, eq. 13).

    `interval`: times at which guidance is on, as a share of the span (Kynkaanniemi et al. 2024); outside it only the
    condition is asked. `rescale`: how far to bring the spread of x0 back to the condition's (Lin et al. 2023, 3.4).
    `channels`: guide the first few channels only, as the original DiT does with 3 of 4. `skip`: adds scale (cond - cond
    without layers) at its own times, whatever `scale` and `interval` are. The variance is the condition's. `net` goes
    to the network.
    """
    low, high = (share * denoiser.process.span[1] for share in interval)
    both = {name: torch.cat((cond[name], null[name])) for name in cond}

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        guides = scale != 1 and low <= t <= high
        skips = skip is not None and skip.span[0] <= t <= skip.span[1]
        if not guides:
            own = free = denoiser(x_t, t, cond, **net)
        else:
            own, free = _halves(denoiser(torch.cat((x_t, x_t)), t, both, **net))
        if not guides and not skips:
            return own
        x0, eps = (away + scale * (told - away) for told, away in zip(own[:2], free[:2], strict=True))
        if skip is not None and skips:
            less = denoiser(x_t, t, cond, **{**net, **skip.net})
            x0, eps = x0 + skip.scale * (own.x0 - less.x0), eps + skip.scale * (own.eps - less.eps)
        mixed = Prediction(_first(x0, own.x0, channels), _first(eps, own.eps, channels), own.var)
        if rescale == 0:
            return mixed
        axes = tuple(range(1, x_t.ndim))
        ratio = own.x0.std(axes, keepdim=True) / mixed.x0.std(axes, keepdim=True)
        scaled = mixed.x0 * (rescale * ratio + 1 - rescale)
        c = coeffs_like(denoiser.process.path, t.to(x_t.device), x_t)
        return Prediction(scaled, (x_t - c.alpha * scaled) / c.sigma, own.var)

    return denoise


def clipped(denoise: Denoise, path: Path, limit: float, *, agreed: bool = True) -> Denoise:
    """Keep x0 within [-limit, limit] and eps consistent with it (Ho et al. 2020's code; `clip_sample` in diffusers).

    `agreed`: false leaves eps as predicted, as diffusers' DDIM does without `use_clipped_model_output`.

    Pixels need it where the noise is predicted at almost no signal, as at the first steps of ddpm-cosine: there an
    error of eps is an error of x0 many thousand times as large.
    """

    def bounded(x_t: Tensor, t: Tensor) -> Prediction:
        pred, c = denoise(x_t, t), coeffs_like(path, t.to(x_t.device), x_t)
        x0 = pred.x0.clamp(-limit, limit)
        return pred._replace(x0=x0, eps=(x_t - c.alpha * x0) / c.sigma if agreed else pred.eps)

    return bounded


def _halves(pred: Prediction) -> tuple[Prediction, Prediction]:
    """What is predicted with the condition, and without."""
    (x0, x0_null), (eps, eps_null) = pred.x0.chunk(2), pred.eps.chunk(2)
    var, var_null = (None, None) if pred.var is None else pred.var.chunk(2)
    return Prediction(x0, eps, var), Prediction(x0_null, eps_null, var_null)


def _first(mixed: Tensor, cond: Tensor, channels: int | None) -> Tensor:
    return mixed if channels is None else torch.cat((mixed[:, :channels], cond[:, channels:]), 1)
