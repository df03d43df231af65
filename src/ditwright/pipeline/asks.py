"""What a network is asked for: a condition for every sample, and the one of nothing in particular for guidance.

N samples; of prompts M tokens, E the width of their states, P that of the pooled state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.config import SampleConfig
from ..diffusion.process import Cond
from ..errors import UserError
from ..model.baseline import NetConfig
from ..model.config import DiTConfig
from ..text.tokenizer import Prompt
from .card import Card
from .plan import imitates
from .prompts import Embeds, Encode, Texts, encoded


class Asks(NamedTuple):
    """The conditions of N samples, (N, ...) each; both have the same names and shapes, or none."""

    count: int
    cond: Cond
    null: Cond
    guided: bool = True  # false where `null` is not asked for

    def rows(self, start: int, stop: int, fill: int = 0) -> Asks:
        """Some of them, filled up by copies of the last one."""
        cond, null = ({name: _filled(x[start:stop], fill) for name, x in of.items()} for of in (self.cond, self.null))
        return self._replace(count=min(stop, self.count) - start + fill, cond=cond, null=null)

    def to(self, device: torch.device, dtype: torch.dtype) -> Asks:
        """On a device; what is not whole numbers in a type of numbers."""
        cond, null = (
            {name: x.to(device, dtype if x.is_floating_point() else None) for name, x in of.items()}
            for of in (self.cond, self.null)
        )
        return self._replace(cond=cond, null=null)


def told_beside(asks: Asks, card: Card, config: SampleConfig, space: Sequence[int]) -> tuple[Asks, SampleConfig]:
    """With what a network is told besides, where it asks: its picture's size, or the guidance that it imitates.

    A network that imitates guidance is guided by true_cfg_scale, where it is guided as well. `space`: height and width
    of the latents.
    """
    model, more = card.model, Cond()
    scale = scale_of(model, config, negative=asks.guided)
    if imitates(model):
        more["guidance"] = torch.full((asks.count,), config.guidance_scale)
    if isinstance(model, DiTConfig) and model.sizes:
        height, width = (side * card.codec.factor for side in space)
        more["size"] = torch.tensor([[height, width, height / width]] * asks.count)
    device = next((x.device for x in asks.cond.values()), None)
    more = {name: told.to(device) for name, told in more.items()}
    return asks._replace(cond=asks.cond | more, null=asks.null | more), replace(config, guidance_scale=scale)


def hears_text(model: NetConfig) -> bool:
    """Whether a network is conditioned on what a text encoder gives."""
    return isinstance(model, DiTConfig) and model.text_width + model.pooled_width > 0


def is_guided(model: NetConfig, config: SampleConfig, negative: bool | None = None) -> bool:
    """Whether a network is asked for what it is led away from too; `negative`: as of `idle`."""
    if config.guidance_interval[1] == 0:  # no sampler asks at time 0
        return False
    return scale_of(model, config, negative=negative is not None) != 1


def scale_of(model: NetConfig, config: SampleConfig, *, negative: bool) -> float:
    """The scale of guidance, 1 for none; `negative`: whether there is something to be led away from.

    As in diffusers, a network that hears text is not guided below 1 either, and one that imitates guidance only by
    true_cfg_scale, away from a negative prompt that is given.
    """
    if imitates(model):
        return config.true_cfg_scale if negative else 1.0
    return max(1.0, config.guidance_scale) if hears_text(model) else config.guidance_scale


def idle(
    given: Sequence[Any], negative: bool | None, model: NetConfig, config: SampleConfig, *, embeds: bool = False
) -> list[str]:
    """What of a call says nothing to the network, a line each.

    negative: whether something is to be led away from; None where not even an empty negative prompt is given.
    `embeds`: it is encoded already.
    """
    told = []
    if negative and not is_guided(model, config, negative):
        why = f"at guidance_scale {config.guidance_scale:g}, which is no guidance"
        if config.guidance_interval[1] == 0:
            why = "with a guidance_interval that ends at 0, where no step is"
        elif imitates(model):
            why = "at true_cfg_scale 1: this network imitates guidance and is not guided besides"
        told += [f"negative_prompt{'_embeds have' if embeds else ' has'} no effect {why}"]
    if config.true_cfg_scale != 1 and negative is None:
        told += ["true_cfg_scale has no effect without a negative_prompt; an empty one is nothing in particular"]
    return told + wordless(given)


def wordless(given: Sequence[Any]) -> list[str]:
    """A line, where one of some prompts is empty."""
    if any(isinstance(prompt, str | tuple) and not "".join(map(str, prompt)).strip() for prompt in given):
        return ["an empty prompt asks for nothing in particular: say what the picture should show"]
    return []


def of_labels(labels: Sequence[int], null: int, device: torch.device) -> Asks:
    """Of classes; `null` is the class of nothing in particular, 0 where the network has no classes."""
    if not null:
        return Asks(len(labels), {}, {})
    label = torch.tensor(labels, device=device)
    return Asks(len(labels), {"label": label}, {"label": torch.full_like(label, null)})


def of_prompts(
    given: Sequence[int | Prompt | None],
    negative: Texts,
    encode: Encode,
    *,
    model: DiTConfig,
    embeds: Embeds,
    times: int = 1,
    guided: bool = True,
) -> Asks:
    """Of prompts, None for none, or of what takes their place in `embeds`; likewise of the negative ones.

    negative: one for all or one each; not asked for unless `guided`. `times`: pictures of each prompt that is encoded
    already. UserError where the network would not understand, or something is given twice.
    """
    if wrong := [text for text in given if not isinstance(text, str | tuple | None)]:
        raise UserError(f"this network hears text: give prompts; got {wrong[0]!r}")
    cond, null = encoded(embeds, model), encoded(embeds, model, "negative_")
    if cond and any(text is not None for text in given):
        raise UserError("give a prompt or prompt_embeds, not both")
    if null and negative:
        raise UserError("give negative_prompt or negative_prompt_embeds, not both")
    cond = {name: x.repeat_interleave(times, 0) for name, x in cond.items()}
    cond = cond or encode([text or "" for text in given])
    count = rows_of(cond)
    if not guided:
        return Asks(count, cond, cond, guided=False)
    if null and rows_of(null) > 1:
        null = {name: x.repeat_interleave(times, 0) for name, x in null.items()}
    several = [negative or ""] if isinstance(negative, str | None) else list(negative)
    rows = rows_of(null) if null else len(several)
    if rows not in (1, count):
        raise UserError(f"give one negative prompt, or one for each of {count} pictures; got {rows}")
    null = null or encode(several)
    return of_texts(cond, {name: x.expand(count, *x.shape[1:]) for name, x in null.items()})


def of_texts(cond: Cond, null: Cond) -> Asks:
    """Of encoded prompts and negative ones, which are padded to an equal number of tokens."""
    if "text" in cond:
        length = max(cond["text"].shape[1], null["text"].shape[1])
        masked = any("text_mask" in of or of["text"].shape[1] < length for of in (cond, null))
        cond, null = (_padded(of, length, masked) for of in (cond, null))
    return Asks(rows_of(cond), cond, null)


def rows_of(cond: Cond) -> int:
    """How many prompts."""
    return len(next(iter(cond.values())))


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
