"""What the settings of a call come to: a sampler, its times, and the size of the latents; or why they do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..config import merge
from ..convert.bins import SIDES, nearest
from ..diffusion.config import SampleConfig
from ..diffusion.grid import grid_for, landings, respaced, shifted, strided, to_first_step
from ..diffusion.path import DDPM
from ..diffusion.process import Index, Process
from ..diffusion.sampler import SAMPLERS, Sampler, ddim
from ..diffusion.times import flux_shift
from ..errors import UserError, did_you_mean, lookup
from ..model.baseline import NetConfig
from ..model.config import DiTConfig
from .card import Card
from .labels import whole


class Plan(NamedTuple):
    """What some settings come to."""

    sampler: Sampler
    times: Tensor  # (steps + 1,) float64
    space: tuple[int, ...]  # height, width of the latents


def settled(own: SampleConfig, given: Mapping[str, Any]) -> SampleConfig:
    """A checkpoint's settings with some of them replaced. UserError for a name or a value that does not fit."""
    fields = SampleConfig.__dataclass_fields__
    for name in given:
        if name not in fields:
            near = did_you_mean(name, fields)
            raise UserError(f"unknown setting {name!r}; known: {', '.join(fields)}{near}")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
    none = ("clip", "guidance_channels", "dynamic_shift")  # where None is a value; else it means: as saved
    return merge(own, {k: v for k, v in plain.items() if v is not None or k in none})


def size_of(card: Card, height: int | None, width: int | None, latents: Tensor | None) -> tuple[int, int] | None:
    """Height and width in pixels: those given, of the latents given, or as trained; None where nobody knows."""
    trained = card.image_size
    if latents is not None and latents.ndim == 4:
        trained = tuple(side * card.codec.factor for side in latents.shape[2:])
    if trained is None and None in (height, width):
        return None
    return (trained[0] if height is None else height, trained[1] if width is None else width)


def plan_for(
    card: Card, process: Process, config: SampleConfig, size: tuple[int, int] | None = None, *, guided: bool
) -> Plan:
    """For a network that `card` describes. `size`: in pixels, the trained one unless given; `guided`: it hears prompts.

    Where pictures are drawn at another size and then resized, the latents' is that one. UserError where the settings
    ask for what cannot be done.
    """
    model, size, factor = card.model, size or card.image_size, card.codec.factor
    if config.guidance_scale != 1 and not model.num_classes and not guided:
        raise UserError("guidance needs a condition; this network is unconditional: use guidance_scale 1")
    if config.true_cfg_scale != 1 and not (guided and imitates(model)):
        raise UserError(
            "true_cfg_scale is for networks that hear text and imitate guidance (model.guidance); this one is guided "
            "by guidance_scale: leave true_cfg_scale 1"
        )
    if (config.guidance_channels or 0) > model.channels:
        raise UserError(f"guidance_channels must be at most {model.channels}; got {config.guidance_channels}")
    check_layers(model, config.skip_guidance_layers)
    unit = [factor * p for p in model.patch]
    if len(unit) != 2:
        raise UserError(f"pictures have 2 axes; the network's patch {model.patch} has {len(unit)}")
    if size is None:
        raise UserError("these weights do not tell how large their pictures are: give height and width")
    size = (whole(size[0], "height"), whole(size[1], "width"))
    if config.use_resolution_binning:
        size = binned(size, card.image_size)
    if any(s < 1 or s % u for s, u in zip(size, unit, strict=True)):
        raise UserError(
            f"picture size {size[0]}x{size[1]} is not divisible by {unit[0]}x{unit[1]} (codec times patch); "
            "choose multiples of it"
        )
    sampler = lookup("sampler", config.sampler, SAMPLERS)
    times = times_for(process, config, math.prod(s // u for s, u in zip(size, unit, strict=True)))
    if sampler is ddim and isinstance(process.path, DDPM) and config.timestep_spacing != "auto":
        sampler = partial(ddim, to=landings(times, process.path.steps, config.set_alpha_to_one))
    return Plan(sampler, times, tuple(s // factor for s in size))


def binned(size: tuple[int, int], trained: tuple[int, int] | None) -> tuple[int, int]:
    """PixArt's size of the nearest ratio. UserError where a network was not trained at one of its sides."""
    side = (trained or (0, 0))[0]
    if trained != (side, side) or side not in SIDES:
        sides = ", ".join(map(str, SIDES))
        raise UserError(
            f"use_resolution_binning is for networks of {sides} pixels along both sides, for which PixArt has sizes; "
            f"this one is for {'an unknown size' if trained is None else f'{trained[0]}x{trained[1]}'}"
        )
    if min(size) < 1:
        raise UserError(f"height and width must be at least 1; got {size[0]} and {size[1]}")
    return nearest(*size, side)


def imitates(model: NetConfig) -> bool:
    """Whether a network is told a scale of guidance, which it imitates."""
    return isinstance(model, DiTConfig) and model.guidance


def times_for(process: Process, config: SampleConfig, tokens: int) -> Tensor:
    """The times that a sampler walks, (steps + 1,) float64; `tokens`: patches of the picture, for a shift by its size.

    UserError where a process has not the times that are asked for.
    """
    shift, steps = config.shift, config.num_inference_steps
    if config.dynamic_shift is not None:
        shift = flux_shift(tokens, *config.dynamic_shift)
    to_one = process.span[1] == 1 and not isinstance(process.path, DDPM)
    if not to_one and (config.shift != 1 or config.dynamic_shift is not None):
        raise UserError(
            f"shift {shift:g} is for paths without a table whose times end at 1; use shift 1 and no dynamic_shift here"
        )
    if to_one and config.timestep_spacing == "linspace":
        return shifted(to_first_step(steps, config.shift), shift)
    if isinstance(process.path, DDPM) and config.sampler == "dpmpp_2m" and config.timestep_spacing == "linspace":
        size = process.path.steps  # as diffusers' solver walks it: from the last step to beside the first, then to 0
        return respaced(size, strided(size, steps + 1, "linspace")[1:])
    times = grid_for(process, steps, config.timestep_spacing, config.steps_offset)
    return shifted(times, shift) if shift != 1 else times


def check_layers(model: NetConfig, layers: Sequence[int]) -> None:
    """UserError where a network has not the blocks that guidance is to leave out."""
    if layers and not isinstance(model, DiTConfig):
        raise UserError("skip_guidance_layers are blocks of a transformer; a U-Net has none to leave out")
    if isinstance(model, DiTConfig) and any(layer >= model.depth for layer in layers):
        raise UserError(f"skip_guidance_layers of this network are 0 to {model.depth - 1}; got {max(layers)}")


def told(process: Process, t: Tensor) -> Tensor:
    """A time () as the network hears it: a whole number where it counts the steps of a table."""
    return process.label(t).round().long() if isinstance(process.label, Index) else process.label(t)
