"""What a network is asked for: a condition for every sample, and the one of nothing in particular for guidance.

N samples; of prompts M tokens, E the width of their states, P that of the pooled state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from ..text.base import TextEncoder, agree
from .card import Card

Embeds = Mapping[str, Any]  # tensors, or None, under diffusers' names
EMBEDS = {  # ours -> diffusers' name, to which "negative_" may be put; its axes
    "text": ("prompt_embeds", "BME"),
    "pooled": ("pooled_prompt_embeds", "BP"),
    "text_mask": ("prompt_attention_mask", "BM"),
}


class Asks(NamedTuple):
    """The conditions of N samples, (N, ...) each; both have the same names and shapes, or none."""

    count: int
    cond: Cond
    null: Cond

    def rows(self, start: int, stop: int, fill: int = 0) -> Asks:
        """Some of them, filled up by copies of the last one."""
        cond, null = ({name: _filled(x[start:stop], fill) for name, x in of.items()} for of in (self.cond, self.null))
        return Asks(min(stop, self.count) - start + fill, cond, null)

    def to(self, device: torch.device, dtype: torch.dtype) -> Asks:
        """On a device; what is not whole numbers in a type of numbers."""
        cond, null = (
            {name: x.to(device, dtype if x.is_floating_point() else None) for name, x in of.items()}
            for of in (self.cond, self.null)
        )
        return Asks(self.count, cond, null)


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


def is_guided(model: NetConfig, config: SampleConfig) -> bool:
    """Whether a network is asked for nothing in particular too; one that imitates guidance is not."""
    return config.guidance_scale != 1 and not (isinstance(model, DiTConfig) and model.guidance)


def idle(given: Sequence[Any], negative: bool, model: NetConfig, config: SampleConfig) -> list[str]:
    """What of a call says nothing to the network, a line each; `negative`: whether something is to be led away from."""
    told = []
    if negative and config.guidance_scale == 1:
        told += ["negative_prompt has no effect at guidance_scale 1, which is no guidance"]
    elif negative and not is_guided(model, config):
        told += ["negative_prompt has no effect: this network imitates guidance and is not guided besides"]
    if any(isinstance(prompt, str) and not prompt.strip() for prompt in given):
        told += ["an empty prompt asks for nothing in particular: say what the picture should show"]
    return told


def of_labels(labels: Sequence[int], null: int, device: torch.device) -> Asks:
    """Of classes; `null` is the class of nothing in particular, 0 where the network has no classes."""
    if not null:
        return Asks(len(labels), {}, {})
    label = torch.tensor(labels, device=device)
    return Asks(len(labels), {"label": label}, {"label": torch.full_like(label, null)})


def of_prompts(
    given: Sequence[int | str | None],
    negative: str | Sequence[str] | None,
    encoder: Callable[[], TextEncoder],
    *,
    model: DiTConfig,
    embeds: Embeds,
    times: int = 1,
    guided: bool = True,
) -> Asks:
    """Of prompts, None for none, or of what takes their place in `embeds`; likewise of the negative ones.

    negative: one for all or one each; not asked for unless `guided`. `encoder`: called where there is something to
    encode. `times`: pictures of each prompt that is encoded already. UserError where the network would not understand,
    or something is given twice.
    """
    if wrong := [text for text in given if not isinstance(text, str | None)]:
        raise UserError(f"this network hears text: give prompts; got {wrong[0]!r}")
    cond, null = encoded(embeds, model), encoded(embeds, model, "negative_")
    if cond and any(text is not None for text in given):
        raise UserError("give a prompt or prompt_embeds, not both")
    if null and negative:
        raise UserError("give negative_prompt or negative_prompt_embeds, not both")
    cond = {name: x.repeat_interleave(times, 0) for name, x in cond.items()}
    cond = cond or heard(encoder()([text or "" for text in given]), model)
    count = rows_of(cond)
    if not guided:
        return Asks(count, cond, cond)
    if null and rows_of(null) > 1:
        null = {name: x.repeat_interleave(times, 0) for name, x in null.items()}
    several = [negative or ""] if isinstance(negative, str | None) else list(negative)
    rows = rows_of(null) if null else len(several)
    if rows not in (1, count):
        raise UserError(f"give one negative prompt, or one for each of {count} pictures; got {rows}")
    null = null or heard(encoder()(several), model)
    return of_texts(cond, {name: x.expand(count, *x.shape[1:]) for name, x in null.items()})


def at_hand(encoder: TextEncoder | None, model: DiTConfig) -> TextEncoder:
    """The text encoder of a network with its weights. UserError where it is not there or of other widths."""
    if encoder is None:
        raise UserError("this network hears text, and its checkpoint names no text encoder: pass encoder=")
    try:
        agree(encoder.config, model, encoder)
        return encoder.ready()
    except UserError as error:
        advice = "from_pretrained takes another place as encoder=, and prompt_embeds need none"
        raise UserError(f"{error}; {advice}") from None


def of_texts(cond: Cond, null: Cond) -> Asks:
    """Of encoded prompts and negative ones, which are padded to an equal number of tokens."""
    if "text" in cond:
        length = max(cond["text"].shape[1], null["text"].shape[1])
        masked = any("text_mask" in of or of["text"].shape[1] < length for of in (cond, null))
        cond, null = (_padded(of, length, masked) for of in (cond, null))
    return Asks(rows_of(cond), cond, null)


def encoded(embeds: Embeds, model: DiTConfig, sign: str = "") -> Cond:
    """What a caller encoded: "text" (B, M, E), "text_mask" (B, M), "pooled" (B, P); nothing where nothing is given.

    `sign`: "negative_" for what guidance leads away from. UserError where the network would not understand.
    """
    names = {ours: sign + theirs for ours, (theirs, _) in EMBEDS.items()}
    found = {ours: x for ours, name in names.items() if (x := embeds.get(name)) is not None}
    if not found:
        return {}
    if model.text_vocab:
        raise UserError(f"{sign}prompt_embeds are states; this network reads ids of its own tokenizer: give prompts")
    for ours, x in found.items():
        axes = EMBEDS[ours][1]
        if not isinstance(x, Tensor) or x.ndim != len(axes):
            got = f"the shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UserError(f"{names[ours]} is a tensor ({', '.join(axes)}); got {got}")
    for ours, key in (("text", "text_width"), ("pooled", "pooled_width")):
        name, width = names[ours], getattr(model, key)
        if width and ours not in found:
            raise UserError(f"this network asks for {name} of width {width} (model.{key}): give it too")
        if ours in found and found[ours].shape[-1] != width:
            raise UserError(f"{name} has width {found[ours].shape[-1]}; the network takes {width} (model.{key})")
    if "text_mask" in found and "text" not in found:
        raise UserError(f"{names['text_mask']} is of states; the network reads none (model.text_width 0)")
    shapes = {names[ours]: tuple(x.shape[:2] if ours != "pooled" else x.shape[:1]) for ours, x in found.items()}
    if any(
        here != there[: len(here)] for here in shapes.values() for there in shapes.values() if len(here) <= len(there)
    ):
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UserError(f"these are not of the same prompts and tokens: {told}")
    return {ours: x.bool() if ours == "text_mask" else x for ours, x in found.items()}


def heard(cond: Cond, model: DiTConfig) -> Cond:
    """Of what an encoder gives that which a network reads."""
    widths = {"text": model.text_width, "text_mask": model.text_width, "pooled": model.pooled_width}
    return {name: x for name, x in cond.items() if widths.get(name, 1)}


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
