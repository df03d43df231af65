"""Stable Diffusion 3's three text encoders as one (Esser et al. 2024, Sec. 4 and Fig. 2).

B batch, M tokens (CLIP's, then T5's), E width of the states, P width of the pooled state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import parse_json
from ..diffusion.process import Cond
from ..errors import UserError
from .config import TextConfig
from .folder import is_projected, read_shape
from .several import Place, Several
from .tokenizer import Prompt

PARTS = {
    "clip_l": Place("text_encoder", "clip", -2),
    "clip_g": Place("text_encoder_2", "clip", -2),
    "t5": Place("text_encoder_3", "t5"),
}
WIDTHS = {"clip_l": (768, 768), "clip_g": (1280, 1280), "t5": (4096, 0)}  # states and pooled, where no file says
Widths = Mapping[str, Sequence[int]]  # of each encoder's states and pooled state


class SD3(Several):
    """CLIP-L's and CLIP-G's penultimate states side by side, padded with zeros to T5's width, then T5's states.

    A dropped encoder's states are zeros: neither its weights nor its tokenizer need be there.
    """

    places = PARTS
    whose = "an SD3"
    advice = "to do without put {part} into text.drop; `ditwright sample` takes --text-drop {part}"

    def __init__(self, config: TextConfig):
        super().__init__(config)
        left, right = self.widths["clip_l"][0], self.widths["clip_g"][0]
        if left + right > self.text_width:
            raise UserError(f"{config.source!r}: CLIP's states, {left} + {right}, are wider than {self.text_width}")

    @cached_property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Of each encoder's states and pooled state, as its folder says, or else as SD3's are."""
        return {part: self._widths(part) for part in PARTS}

    @property
    def text_width(self) -> int:
        """E."""
        return self.widths["t5"][0]

    @property
    def pooled_width(self) -> int:
        """P."""
        return self.widths["clip_l"][1] + self.widths["clip_g"][1]

    def __call__(self, prompts: Sequence[Prompt], length: int | None = None) -> Cond:
        """Gives "text" (B, M, E) and "pooled" (B, P); there is no mask: SD3 reads its padding."""
        found, batch = self.said(prompts, length), len(prompts)
        tokens = dict.fromkeys(PARTS, self.config.length) | {"t5": length or self.config.t5_length}
        states = {
            part: found[part]["text"] if part in found else self._zeros(batch, tokens[part], self.widths[part][0])
            for part in PARTS
        }
        pooled = [
            found[part]["pooled"] if part in found else self._zeros(batch, self.widths[part][1])
            for part in ("clip_l", "clip_g")
        ]
        clip = torch.cat((states["clip_l"], states["clip_g"]), -1)
        clip = F.pad(clip, (0, self.text_width - clip.shape[-1]))
        return {"text": torch.cat((clip, states["t5"]), 1), "pooled": torch.cat(pooled, -1)}

    def without(self, cond: Cond, part: str, rows: Tensor | None = None) -> Cond:
        """`cond` with one encoder's states zeroed in some rows, (B,) bool, or in all: SD3 drops each at random."""
        return without(cond, part, rows, self.widths, self.config.length)

    def _widths(self, part: str) -> tuple[int, int]:
        place, network = self._folder / PARTS[part].folder, self._folder / "transformer" / "config.json"
        if (place / "config.json").is_file():
            shape = read_shape(place)
            pooled = getattr(shape, "projection_dim" if is_projected(shape) else "hidden_size")
            return shape.hidden_size, 0 if part == "t5" else pooled
        if part == "t5" and network.is_file():
            try:
                return parse_json(network.read_bytes()).get("joint_attention_dim", WIDTHS[part][0]), 0
            except (ValueError, AttributeError) as error:
                raise UserError(f"{str(network)!r} is not the configuration of a network ({error})") from error
        return WIDTHS[part]

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device, dtype=self.dtype)


def without(cond: Cond, part: str, rows: Tensor | None, widths: Widths, length: int) -> Cond:
    """`cond` with one encoder's states zeroed in some rows, (B,) bool, or in all; `length`: tokens of CLIP's states."""
    if part not in PARTS:
        raise UserError(f"SD3's text encoders are {', '.join(PARTS)}; got {part!r}")
    text, pooled = cond["text"].clone(), cond["pooled"].clone()
    rows = torch.ones(len(text), dtype=torch.bool) if rows is None else rows
    rows = rows.to(text.device)
    (left, left_pooled), right = widths["clip_l"], widths["clip_g"][0]
    if part == "clip_l":
        text[rows, :length, :left] = 0
        pooled[rows, :left_pooled] = 0
    elif part == "clip_g":
        text[rows, :length, left : left + right] = 0
        pooled[rows, left_pooled:] = 0
    else:
        text[rows, length:] = 0
    return cond | {"text": text, "pooled": pooled}


def widths_of(encoder: object) -> Widths:
    """Where SD3's encoders, or captions that they encoded, have their states. UserError for another encoder."""
    kind = "none" if encoder is None else getattr(encoder, "config", TextConfig()).kind
    if kind != "sd3":
        raise UserError(f"data.encoder_drop is for the three encoders of text.kind sd3, not for {kind}: leave it out")
    if not (widths := getattr(encoder, "widths", None)):
        raise UserError("these encoded captions do not tell the widths of SD3's encoders: encode them anew")
    return widths
