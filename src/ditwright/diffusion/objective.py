"""What is minimised: a weighted squared error of the network's own target, per sample.

B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError, lookup
from ..rng import Draws
from .config import ObjectiveConfig
from .grid import full
from .path import DDPM, Coeffs, coeffs_like, karras
from .posterior import VariationalBound
from .process import Cond, Process
from .target import Prediction
from .times import Discrete, LogitNormal, LogNormal, Mode, Shifted, Times, Uniform, resolution_shift, shift_time

Ask = Callable[[Tensor, Tensor, Cond], Prediction]  # a denoiser: (x_t, t, cond)
Loss = Callable[[Ask, Tensor, Cond, Draws], Tensor]  # (denoiser, x0, cond, draws) -> (B,), unreduced
Weight = Callable[[Coeffs, Tensor], Tensor]  # (coefficients, determinant of the target) -> factor on the squared error
Term = Callable[[Prediction, Tensor, Tensor, Tensor], Tensor]  # (prediction, x0, x_t, t) -> (B,), added to the loss


def uniform(c: Coeffs, det: Tensor) -> Tensor:
    """The target's own squared error, as it is."""
    return torch.ones_like(det)


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on the error of x0, whatever the target (Hang et al. 2023, Sec. 3.4; docs/maths.md, eq. 6)."""

    gamma: float = 5.0

    def __call__(self, c: Coeffs, det: Tensor) -> Tensor:
        return (c.alpha / c.sigma).square().clamp(max=self.gamma) * (c.sigma / det).square()


@dataclass(frozen=True)
class VelocityWeight:
    """The error of the velocity, whatever the target (Li & He 2025), at most `limit` times the target's own.

    A network that tells x0 is then held to every time as one that tells the velocity: 1 / t^2 on the linear path.
    """

    limit: float = 400.0  # theirs: times are kept from below 0.05

    def __call__(self, c: Coeffs, det: Tensor) -> Tensor:
        return ((c.alpha * c.d_sigma - c.sigma * c.d_alpha) / det).square().clamp(max=self.limit)


@dataclass(frozen=True)
class EDMWeight:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on the error of x0 (Karras et al. 2022, Table 1)."""

    sigma_data: float = 0.5

    def __call__(self, c: Coeffs, det: Tensor) -> Tensor:
        return (c.sigma.square() + self.sigma_data**2) / (self.sigma_data * det).square()


@dataclass(frozen=True)
class Objective:
    """E || out - (a x0 + b eps) ||^2 at drawn times: a Loss (docs/maths.md, eq. 5).

    `shift_base`: positions of an x0 whose times are as they are drawn. Those of a larger x0 are moved to noise, those
    of a smaller one to data: by `resolution_shift` (Esser et al. 2024, Sec. 5.3.2). 0: all are as they are drawn.
    """

    process: Process
    times: Times
    weight: Weight = uniform
    terms: tuple[Term, ...] = ()
    shift_base: int = 0

    def __call__(self, denoiser: Ask, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        """Loss per sample (B,), with times and noise from each sample's own generator."""
        t = self.times(draws.uniform())
        return self.at(denoiser, x0, cond, t.to(x0.device), draws.normal(x0))

    def at(self, denoiser: Ask, x0: Tensor, cond: Cond, t: Tensor, eps: Tensor) -> Tensor:
        """Loss per sample (B,) at times t (B,), which a `shift_base` moves by the size of x0, and noise eps."""
        t = shift_time(t, resolution_shift(x0[0, 0].numel(), self.shift_base)) if self.shift_base else t
        c = coeffs_like(self.process.path, t, x0)
        x_t, (a, b) = c.alpha * x0 + c.sigma * eps, self.process.target(c)
        pred = denoiser(x_t, t, cond)
        error = a * (pred.x0 - x0) + b * (pred.eps - eps)  # of the raw output: decoding is affine in it
        loss = (self.weight(c, c.alpha * b - c.sigma * a) * error.square()).flatten(1).mean(1)
        return sum((term(pred, x0, x_t, t) for term in self.terms), loss)


class SecondMoment(nn.Module):
    """Draws steps in proportion to the root of their loss's second moment: a Loss around an Objective.

    Uniform until every step has `history` losses (Nichol & Dhariwal 2021, Sec. 3.3). The history is a buffer: it is
    saved and resumed with the run.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, objective: Objective, steps: int, *, history: int = 10, uniform_share: float = 0.001):
        super().__init__()
        self.objective, self.steps, self.uniform_share = objective, steps, uniform_share
        self.register_buffer("losses", torch.zeros(steps, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(steps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """(steps,) float64, adding up to 1."""
        if (self.counts < self.losses.shape[1]).any():
            return torch.full((self.steps,), 1 / self.steps, dtype=torch.float64)
        p = self.losses.square().mean(1).sqrt()
        return p / p.sum() * (1 - self.uniform_share) + self.uniform_share / self.steps

    def forward(self, denoiser: Ask, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        p = self.probabilities()
        i = torch.searchsorted(p.cumsum(0), draws.uniform()).clamp(max=self.steps - 1)  # (B,)
        t = ((i + 1) / self.steps).double().to(x0.device)
        loss = self.objective.at(denoiser, x0, cond, t, draws.normal(x0))
        self.observe(i, loss.detach().double().cpu())
        return loss * (1 / (self.steps * p[i])).to(loss)

    def observe(self, i: Tensor, loss: Tensor) -> None:
        """Remember the newest losses of each step."""
        for step, value in zip(i.tolist(), loss, strict=True):
            self.losses[step] = torch.cat((self.losses[step, 1:], value[None]))
            self.counts[step] += 1


WEIGHTS = {
    "uniform": lambda config, process: uniform,
    "min-snr": lambda config, process: MinSNR(config.gamma),
    "velocity": lambda config, process: VelocityWeight(),
    "edm": lambda config, process: EDMWeight(getattr(process.target, "sigma_data", 0.5)),
}
TIMES = {
    "uniform": lambda config, process: Uniform(process.span),
    "discrete": lambda config, process: Discrete(process.path.steps),
    "logit-normal": lambda config, process: LogitNormal(config.mean, config.std),
    "mode": lambda config, process: Mode(config.mode_scale),
    "log-normal": lambda config, process: LogNormal(config.mean, config.std),
}


def objective_from(config: ObjectiveConfig, process: Process) -> Loss:
    """The loss that a configuration names, for a process. UserError where the two do not fit."""
    steps = process.path.steps if isinstance(process.path, DDPM) else 0
    make_times, make_weight = lookup("times", config.times, TIMES), lookup("weight", config.weight, WEIGHTS)
    if (config.times == "discrete" or config.importance or process.learned_var) and not steps:
        raise UserError("discrete times, importance sampling and learned variance need a DDPM path: ddpm, ddpm-cosine")
    if (config.importance or process.learned_var) and (config.times != "discrete" or config.shifts):
        raise UserError("importance sampling and learned variance need objective.times discrete, shift 1, shift_base 0")
    if (config.times == "log-normal") != (process.path is karras) and config.times != "uniform":
        raise UserError("log-normal times are noise levels: for the karras path and no other; it takes uniform besides")
    if config.shifts and process.span[1] != 1:
        raise UserError(f"times that end at {process.span[1]:g} take no shift: objective.shift 1 and shift_base 0")
    times = make_times(config, process)
    terms = (VariationalBound(process.path, full(steps)),) if process.learned_var else ()
    times = Shifted(times, config.shift) if config.shift != 1 else times
    objective = Objective(process, times, make_weight(config, process), terms, config.shift_base)
    return SecondMoment(objective, steps) if config.importance else objective
