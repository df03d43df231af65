"""A network's agreement with the world: which path, which target, how it is told the time.

B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError, lookup
from .config import ProcessConfig
from .path import DDPM, PATHS, Coeffs, Path, coeffs_like
from .target import EDM, TARGETS, Prediction, Target, decode, determinant, to_data


def thousand(t: Tensor) -> Tensor:
    """t in 0 ... 1 as 0 ... 1000, the range that sinusoidal time features were made for."""
    return 1000 * t


def remaining(t: Tensor) -> Tensor:
    """1 - t: the time of networks that count from noise to data (Ma et al. 2024)."""
    return 1 - t


def quarter_log(t: Tensor) -> Tensor:
    """log(sigma) / 4 (Karras et al. 2022, Table 1), for the path on which time is sigma."""
    return t.log() / 4


@dataclass(frozen=True)
class Index:
    """The step index 0 ... steps-1 that networks trained on a DDPM table are told."""

    steps: int = 1000

    def __call__(self, t: Tensor) -> Tensor:
        return t * self.steps - 1


@dataclass(frozen=True)
class Process:
    """Everything needed to decode a network. Refused when built if the target is undecidable within the span."""

    path: Path
    target: Target
    label: Callable[[Tensor], Tensor] = thousand  # time -> what the network is told
    scale_in: Callable[[Coeffs], Tensor] | None = None  # factor on the network's input
    learned_var: bool = False  # the output's second half of channels is the variance fraction
    span: tuple[float, float] = (0.0, 1.0)  # the times at which the network is asked: (low, high]

    def __post_init__(self) -> None:
        low, high = self.span
        if not 0 <= low < high:
            raise UserError(f"span must be two times 0 <= low < high; got {self.span}")
        t = torch.linspace(high, low, 9, dtype=torch.float64)[: 9 if low > 0 else 8]
        det = determinant(self.path(t), self.target)
        bad = ~(det.isfinite() & (det.abs() > 1e-9) & (det.sign() == det[0].sign()))
        if bad.any():
            raise UserError(
                f"target {_name(self.target)} cannot be decoded on path {_name(self.path)} at t = {t[bad][0]:g}; "
                "choose another target (velocity always works on linear and cosine), "
                f"or end the span before it, such as span = ({low:g}, {high * 0.999:g})"
            )


def _name(thing: object) -> str:
    return repr(getattr(thing, "__name__", thing))


Cond = dict[str, Tensor]  # conditions by name, (B, ...) each


class Denoiser(nn.Module):
    """A network read through its process: (x_t, t) -> Prediction. Samplers, guidance and losses know only this."""

    def __init__(self, net: nn.Module, process: Process):
        super().__init__()
        self.net, self.process = net, process

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None, **net: object) -> Prediction:
        """x_t (B, C, *space), t () or (B,) -> Prediction. `net` (such as run=...) goes to the network as it is."""
        p = self.process
        t = t.to(x_t.device).expand(len(x_t))
        c = coeffs_like(p.path, t, x_t)
        x_in = x_t if p.scale_in is None else x_t * p.scale_in(c)
        x_in = x_in.to(next(self.net.parameters(), x_t).dtype)  # a half-precision network inside an fp32 sampler
        out = self.net(x_in, p.label(t).to(x_t.dtype), cond, **net).to(x_t.dtype)
        if not p.learned_var:
            return decode(out, x_t, c, p.target)
        out, raw = out.chunk(2, 1)  # (B, C, *space) each
        return decode(out, x_t, c, p.target)._replace(var=(raw + 1) / 2)


def process_from(config: ProcessConfig) -> Process:
    """The process that a configuration names."""
    path, target = lookup("path", config.path, PATHS), lookup("target", config.target, TARGETS)
    label: Callable[[Tensor], Tensor] = thousand
    span = (0.0, 1.0)
    if isinstance(path, DDPM):
        path = DDPM(path.schedule, config.steps)
        label = Index(config.steps)
    elif config.path == "karras":
        label, span = quarter_log, (0.002, 80.0)
    if isinstance(target, EDM):
        target = EDM(config.sigma_data)
    if config.reversed_time:
        label, target = remaining, to_data if config.target == "velocity" else target
    scale_in = target.scale_in if isinstance(target, EDM) else None
    return Process(path, target, label, scale_in, config.learned_var, config.span or span)
