"""Sampling times: decreasing grids (N + 1,) in float64, from the noise end of the span to 0.

The length of the grid, not the sampler, says how many steps are taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .path import DDPM, karras
from .process import Process
from .times import shift_time


def uniform(steps: int, high: float = 1.0) -> Tensor:
    """Equal steps from `high` to 0."""
    return torch.linspace(high, 0, steps + 1, dtype=torch.float64)


def shifted(times: Tensor, shift: float) -> Tensor:
    """A grid with more of its steps at high noise where shift > 1 (Esser et al. 2024, resolution-dependent shift)."""
    return shift_time(times, shift)


def to_first_step(steps: int, shift: float = 1.0) -> Tensor:
    """Equal steps from 1 to the first of 1,000, and one to 0: what SD3's code and diffusers' pipeline of it shift.

    `shift`: by which the first step lies higher than 0.001: the release shifts it when it makes its table, and again
    with the grid.
    """
    first = shift_time(torch.tensor(0.001, dtype=torch.float64), shift).item()
    return torch.cat((torch.linspace(1, first, steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)))


def karras_rho(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """Noise levels from `high` to `low`, then 0 (Karras et al. 2022, eq. 5)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat((levels, levels.new_zeros(1)))


def with_last(times: Tensor, last: float = 0.04) -> Tensor:
    """A grid squeezed above `last`, and one closing step to 0: SiT's stochastic sampler (Ma et al. 2024)."""
    return torch.cat((last + (times[0] - last) * times / times[0], times.new_zeros(1)))


def full(steps: int) -> Tensor:
    """Every step of a DDPM table."""
    return respaced(steps, range(steps))


def respaced(steps: int, kept: Sequence[int]) -> Tensor:
    """Some of the steps of a DDPM table, by index 0 ... steps-1: t = (index + 1) / steps."""
    index = torch.tensor(sorted(kept, reverse=True), dtype=torch.float64)
    return torch.cat(((index + 1) / steps, index.new_zeros(1)))


def spaced(steps: int, spacing: str | int) -> list[int]:
    """Which steps of a DDPM table a respacing keeps, in the originals' notation (Nichol & Dhariwal 2021, Sec. 4).

    `"250"`: 250 evenly spread from first to last; `"10,20,30"`: as many from each third; `"ddim50"`: a whole stride
    from 0 that gives exactly 50 (Song et al. 2020). UserError where the count does not fit.
    """
    text = str(spacing)
    if text.startswith("ddim"):
        count = _whole(text[4:], text)
        for stride in range(1, steps + 1):
            if len(range(0, steps, stride)) == count:
                return list(range(0, steps, stride))
        raise UserError(f"no whole stride takes exactly {count} of {steps} steps; use {str(count)!r} instead")
    counts = [_whole(part, text) for part in text.split(",")]
    kept: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        size = steps // len(counts) + (section < steps % len(counts))
        if not 1 <= count <= size:
            raise UserError(f"respacing {text!r}: cannot take {count} of the {size} steps of section {section + 1}")
        place, gap = 0.0, (size - 1) / (count - 1) if count > 1 else 1.0
        for _ in range(count):
            kept.append(start + round(place))
            place += gap  # added up, not multiplied: the originals' rounding at ties
        start += size
    return kept


def _whole(part: str, text: str) -> int:
    if not part.isdecimal():
        raise UserError(f"respacing {text!r} is not understood; write '250', '10,20,30' or 'ddim50'")
    return int(part)


def strided(steps: int, count: int, spacing: str, offset: int = 0) -> list[int]:
    """Which `count` steps of a DDPM table diffusers' schedulers walk (Lin et al. 2024, Table 2).

    `leading`: a whole stride from 0, plus `offset`; `trailing`: backwards from the last; `linspace`: first to last.
    """
    if not 1 <= count <= steps or offset + (count - 1) * (steps // count) >= steps:
        raise UserError(f"{count} steps with spacing {spacing!r} and offset {offset} do not fit a table of {steps}")
    kept: np.ndarray
    if spacing == "leading":
        kept = offset + np.arange(count) * (steps // count)
    elif spacing == "trailing":
        kept = np.arange(steps, 0, -steps / count)[:count].round() - 1  # NumPy's own rounding at ties
    else:
        kept = np.linspace(0, steps - 1, count).round()
    return [int(step) for step in kept]


def landings(times: Tensor, steps: int, clean: bool = True) -> Tensor:
    """Where each step of diffusers' DDIM leads: a whole stride of the table down, whatever time the grid has next.

    times (N + 1,), some of the `steps` of a DDPM table and 0 -> (N,). Below the table lies the clean sample or, unless
    `clean`, the table's first step (diffusers' `set_alpha_to_one`).
    """
    index = (times[:-1] * steps).round() - 1 - steps // (len(times) - 1)
    return torch.where(index >= 0, (index + 1) / steps, 0.0 if clean else 1 / steps)


def between(times: Tensor, start: float, stop: float) -> tuple[float, float] | None:
    """The lowest and the highest time of steps i = 0 ... N-1 with N start < i < N stop; None where there is none.

    times (N + 1,). So diffusers' StableDiffusion3Pipeline counts its `skip_layer_guidance_start` and `_stop`: shares of
    the steps, however they lie in time, and neither end included. At 28 steps 0.01 and 0.2 are the steps 1 to 5.
    """
    steps = len(times) - 1
    inside = [i for i in range(steps) if steps * start < i < steps * stop]
    return (times[inside[-1]].item(), times[inside[0]].item()) if inside else None


def grid_for(process: Process, steps: int, spacing: str = "auto", offset: int = 0) -> Tensor:
    """The grid that suits a process: table steps for DDPM, rho-spaced levels for karras, else equal steps."""
    low, high = process.span
    if isinstance(process.path, DDPM):
        size = process.path.steps
        if spacing != "auto":
            return respaced(size, strided(size, steps, spacing, offset))
        return respaced(size, spaced(round(size * high), steps))
    if spacing != "auto":
        raise UserError(f"timestep_spacing {spacing!r} is for the tables of ddpm paths; this one takes 'auto'")
    return karras_rho(steps, max(low, 0.002), high) if process.path is karras else uniform(steps, high)
