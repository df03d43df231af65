"""What the settings of a call come to: a sampler, its times, and the size of the latents; or why they do not."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..diffusion.config import SampleConfig
from ..diffusion.grid import grid_for, landings, shifted
from ..diffusion.path import DDPM
from ..diffusion.process import Process
from ..diffusion.sampler import SAMPLERS, Sampler, ddim
from ..errors import UserError, lookup
from .card import Card


class Plan(NamedTuple):
    """What some settings come to."""

    sampler: Sampler
    times: Tensor  # (steps + 1,) float64
    space: tuple[int, ...]  # height, width of the latents


def plan_for(
    card: Card, process: Process, config: SampleConfig, size: tuple[int, int] | None = None, *, guided: bool
) -> Plan:
    """For a network that `card` describes. `size`: in pixels, the trained one unless given; `guided`: it hears prompts.

    UserError where the settings ask for what cannot be done.
    """
    model, size, factor = card.model, size or card.image_size, card.codec.factor
    if config.guidance_scale != 1 and not model.num_classes and not guided:
        raise UserError("guidance needs a condition; this network is unconditional: use guidance_scale 1")
    if (config.guidance_channels or 0) > model.channels:
        raise UserError(f"guidance_channels must be at most {model.channels}; got {config.guidance_channels}")
    unit = [factor * p for p in model.patch]
    if len(unit) != 2:
        raise UserError(f"pictures have 2 axes; the network's patch {model.patch} has {len(unit)}")
    if size is None:
        raise UserError("these weights do not tell how large their pictures are: give height and width")
    if any(s < 1 or s % u for s, u in zip(size, unit, strict=True)):
        raise UserError(
            f"picture size {size[0]}x{size[1]} is not divisible by {unit[0]}x{unit[1]} (codec times patch); "
            "choose multiples of it"
        )
    sampler = lookup("sampler", config.sampler, SAMPLERS)
    times = grid_for(process, config.num_inference_steps, config.timestep_spacing, config.steps_offset)
    if config.shift != 1:
        if process.span[1] != 1 or isinstance(process.path, DDPM):
            raise UserError(f"shift {config.shift:g} is for paths without a table whose times end at 1; use 1 here")
        times = shifted(times, config.shift)
    if sampler is ddim and isinstance(process.path, DDPM) and config.timestep_spacing != "auto":
        sampler = partial(ddim, to=landings(times, process.path.steps, config.set_alpha_to_one))
    return Plan(sampler, times, tuple(s // factor for s in size))
