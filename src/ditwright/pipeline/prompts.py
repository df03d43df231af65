"""What a call says in words: prompts, a text for each of an encoder's parts where it has several, encoded or not yet.

B prompts of M tokens, E the width of their states, P that of the pooled state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..diffusion.process import Cond
from ..errors import UserError, lookup
from ..model.config import DiTConfig
from ..text.base import TextEncoder, agree
from ..text.config import SEVERAL, TextConfig
from ..text.late import Late
from ..text.sd3 import PARTS
from ..text.tokenizer import Prompt
from .labels import several, whole

Asked = Sequence[int | Prompt | None]  # of each picture: the number or name of a class; a prompt, None for none
Texts = str | Sequence[Prompt] | None  # one for all pictures, or one each
Encode = Callable[[Sequence[Prompt]], Cond]
Embeds = Mapping[str, Any]  # tensors, or None, under diffusers' names
LONGEST = 512  # tokens that a call may ask for of any encoder: as many as T5 was trained with
EMBEDS = {  # ours -> diffusers' name, to which "negative_" may be put; its axes
    "text": ("prompt_embeds", "BME"),
    "pooled": ("pooled_prompt_embeds", "BP"),
    "text_mask": ("prompt_attention_mask", "BM"),
}


def together(prompt: Any, *others: Texts, name: str = "prompt") -> Any:
    """Prompts with `others`, prompt_2 and so on, as tuples of a text for each encoder; as they are without others.

    Each is one for all or one each; an empty one is no other, and its encoder hears `prompt`. UserError where their
    numbers differ, or where there is no prompt.
    """
    if not any(others):
        return prompt
    if prompt is None:
        raise UserError(f"{name}_2 and {name}_3 go with {name}, and not with {name}_embeds")
    last = max(i for i, other in enumerate(others, 1) if other)
    columns = [several(other or prompt, name) for other in (prompt, *others[:last])]
    count = max(map(len, columns))
    if any(len(column) not in (1, count) for column in columns):
        got = ", ".join(str(len(column)) for column in columns)
        raise UserError(f"{name}, {name}_2 and {name}_3 are one for all or one each; got {got}")
    return [tuple(column[i % len(column)] for column in columns) for i in range(count)]


def negatives(negative: Texts, *others: Texts, times: int = 1) -> Texts:
    """What a call leads away from, each `times` unless one is for all; `others` as of `together`. None: not given."""
    given = together("" if negative is None and any(others) else negative, *others, name="negative_prompt")
    if given is None or isinstance(given, str):
        return given
    texts = several(given, "negative_prompt")
    if not all(isinstance(text, str | tuple) for text in texts):
        raise UserError(f"negative_prompt is one text for all or one each; got {given!r}")
    return texts if len(texts) == 1 else [text for text in texts for _ in range(times)]


def encoding(encoder: TextEncoder | None, model: DiTConfig, length: int | None = None) -> Encode:
    """How texts are encoded for a network; `length`: tokens of each, in place of the encoder's own number.

    UserError, at once or when there is something to encode, where that cannot be.
    """
    if length is not None and (length := whole(length, "max_sequence_length")) < 2:
        raise UserError(f"max_sequence_length must be at least 2 tokens; got {length}")
    if length is not None and encoder is not None and length > longest(encoder.config):
        known = "text.t5_length" if encoder.config.kind in SEVERAL else "text.length"
        raise UserError(f"max_sequence_length is at most {LONGEST}, or {known} where that is more; got {length}")

    def encode(texts: Sequence[Prompt]) -> Cond:
        found = at_hand(encoder, model)
        return heard(found(texts) if length is None else found(texts, length), model)

    return encode


def longest(config: TextConfig) -> int:
    """The most tokens that a call may ask for; the encoder may read fewer."""
    return max(LONGEST, config.t5_length if config.kind in SEVERAL else config.length)


def dropping(encoder: TextEncoder | None, parts: Sequence[str]) -> TextEncoder:
    """SD3's encoders but those of these names, too, which need not be there. UserError where it is not for them."""
    config = TextConfig() if encoder is None else encoder.config
    if config.kind != "sd3":
        raise UserError(f"--text-drop is for SD3's three encoders; this network's text.kind is {config.kind}")
    for part in parts:
        lookup("text encoder of SD3", part, PARTS)
    drop = tuple(part for part in PARTS if part in {*config.drop, *parts})
    if drop != config.drop and config.fingerprint:
        warnings.warn(
            "text.fingerprint is of the text encoders with those dropped: the others go unchecked", stacklevel=2
        )
        config = replace(config, fingerprint="")
    return Late(replace(config, drop=drop))


def at_hand(encoder: TextEncoder | None, model: DiTConfig) -> TextEncoder:
    """The text encoder of a network with its weights. UserError where it is not there or of other widths."""
    if encoder is None:
        raise UserError("this network hears text, and its checkpoint names no text encoder: pass encoder=")
    try:
        agree(encoder.config, model, encoder)
        return encoder.ready()
    except UserError as error:
        advice = "from_pretrained takes another place as encoder=, `ditwright sample` as --text-encoder"
        advice += "" if model.text_vocab else "; prompt_embeds need none"
        raise UserError(f"{error}; {advice}") from None


def heard(cond: Cond, model: DiTConfig) -> Cond:
    """Of what an encoder gives that which a network reads."""
    widths = {"text": model.text_width, "text_mask": model.text_width, "pooled": model.pooled_width}
    return {name: x for name, x in cond.items() if widths.get(name, 1)}


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


def led_away(negative: Texts, embeds: Embeds) -> bool | None:
    """Whether a call names something to be led away from; None where it gives nothing of the kind, not even ""."""
    if any(x is not None for name, x in embeds.items() if name.startswith("negative_")):
        return True
    return None if negative is None else bool(negative)
