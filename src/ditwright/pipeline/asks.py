"""What a network is asked for: a condition for every sample, and the one of nothing in particular for guidance.

N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.config import SampleConfig
from ..diffusion.process import Cond
from ..errors import UserError
from ..model.baseline import NetConfig
from ..model.config import DiTConfig
from ..text.base import TextEncoder
from .card import Card


class Asks(NamedTuple):
    """The conditions of N samples, (N, ...) each; both have the same names and shapes, or none."""

    count: int
    cond: Cond
    null: Cond

    def rows(self, start: int, stop: int, fill: int = 0) -> Asks:
        """Some of them, filled up by copies of the last one."""
        cond, null = ({name: _filled(x[start:stop], fill) for name, x in of.items()} for of in (self.cond, self.null))
        return Asks(min(stop, self.count) - start + fill, cond, null)


def told_beside(asks: Asks, card: Card, config: SampleConfig, space: Sequence[int]) -> tuple[Asks, SampleConfig]:
    """With what a network is told besides, where it asks: its picture's size, or the guidance that it imitates.

    A network that imitates guidance is not guided as well. `space`: height and width of the latents.
    """
    model, more = card.model, Cond()
    if isinstance(model, DiTConfig) and model.guidance:
        more["guidance"] = torch.full((asks.count,), config.guidance_scale)
        config = replace(config, guidance_scale=1.0)
    if isinstance(model, DiTConfig) and model.sizes:
        height, width = (side * card.codec.factor for side in space)
        more["size"] = torch.tensor([[height, width, height / width]] * asks.count)
    device = next((x.device for x in asks.cond.values()), None)
    more = {name: told.to(device) for name, told in more.items()}
    return Asks(asks.count, asks.cond | more, asks.null | more), config


def hears_text(model: NetConfig) -> bool:
    """Whether a network is conditioned on what a text encoder gives."""
    return isinstance(model, DiTConfig) and model.text_width + model.pooled_width > 0


def of_labels(labels: Sequence[int], null: int, device: torch.device) -> Asks:
    """Of classes; `null` is the class of nothing in particular, 0 where the network has no classes."""
    if not null:
        return Asks(len(labels), {}, {})
    label = torch.tensor(labels, device=device)
    return Asks(len(labels), {"label": label}, {"label": torch.full_like(label, null)})


def of_prompts(given: Sequence[int | str | None], negative: str | Sequence[str], encoder: TextEncoder) -> Asks:
    """Of prompts, None for none; `negative`: one for all or one each. UserError where they are something else."""
    if wrong := [text for text in given if not isinstance(text, str | None)]:
        raise UserError(f"this network hears text: give prompts; got {wrong[0]!r}")
    several = [negative] if isinstance(negative, str) else list(negative)
    if len(several) not in (1, len(given)):
        raise UserError(f"give one negative prompt, or one for each of {len(given)} pictures; got {len(several)}")
    cond, null = encoder([text or "" for text in given]), encoder(several)
    return of_texts(cond, {name: x.expand(len(given), *x.shape[1:]) for name, x in null.items()})


def of_texts(cond: Cond, null: Cond) -> Asks:
    """Of encoded prompts and negative ones, which are padded to an equal number of tokens."""
    length = max(cond["text"].shape[1], null["text"].shape[1])
    masked = any("text_mask" in of or of["text"].shape[1] < length for of in (cond, null))
    cond, null = (_padded(of, length, masked) for of in (cond, null))
    return Asks(len(cond["text"]), cond, null)


def _padded(cond: Cond, length: int, masked: bool) -> Cond:
    text = cond["text"]
    more, axes = length - text.shape[1], text.ndim - 2
    padded = {**cond, "text": F.pad(text, (0, 0) * axes + (0, more))}
    if masked:
        mask = cond.get("text_mask", text.new_ones(text.shape[:2], dtype=torch.bool))
        padded["text_mask"] = F.pad(mask, (0, more))
    return padded


def _filled(rows: Tensor, fill: int) -> Tensor:
    return torch.cat((rows, rows[-1:].expand(fill, *rows.shape[1:]))) if fill else rows
