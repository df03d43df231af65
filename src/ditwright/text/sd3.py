"""Stable Diffusion 3's three text encoders as one (Esser et al. 2024, Sec. 4 and Fig. 2).

B batch, M tokens (CLIP's, then T5's), E width of the states, P width of the pooled state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.process import Cond
from ..errors import UserError
from .config import TextConfig
from .folder import is_projected, locate, read_shape
from .frozen import DTYPES, Frozen
from .tokenizer import checked

PARTS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}
WIDTHS = {"clip_l": (768, 768), "clip_g": (1280, 1280), "t5": (4096, 0)}  # states and pooled, where no file says


class SD3:
    """CLIP-L's and CLIP-G's penultimate states side by side, padded with zeros to T5's width, then T5's states.

    A dropped encoder's states are zeros: neither its weights nor its tokenizer need be there.
    """

    vocab = 0

    def __init__(self, config: TextConfig):
        if not config.source:
            raise UserError("text.source is empty: name the folder or the hub name of an SD3 pipeline")
        self.config = config
        self.device, self.dtype, self._checked = torch.device("cpu"), DTYPES[config.dtype], False
        places = [place for part, place in PARTS.items() if part not in config.drop]
        self._folder, self.commit = locate(config.source, config.revision, (*places, "transformer"))
        self.parts = {part: self._part(part) for part in PARTS if part not in config.drop}
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

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of those of the encoders that are not dropped."""
        lines = [f"{part} {encoder.fingerprint}" for part, encoder in self.parts.items()]
        return hashlib.sha256("\n".join(["sd3", *lines]).encode()).hexdigest()

    def __call__(self, prompts: Sequence[str]) -> Cond:
        """Gives "text" (B, M, E) and "pooled" (B, P); there is no mask: SD3 reads its padding."""
        batch = len(checked(prompts))
        found = {part: encoder(prompts) for part, encoder in self.ready().parts.items()}
        states = {
            part: found[part]["text"] if part in found else self._zeros(batch, self._tokens(part), self.widths[part][0])
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
        if part not in PARTS:
            raise UserError(f"SD3's text encoders are {', '.join(PARTS)}; got {part!r}")
        text, pooled = cond["text"].clone(), cond["pooled"].clone()
        rows = torch.ones(len(text), dtype=torch.bool) if rows is None else rows
        rows, clip = rows.to(text.device), self.config.length
        (left, left_pooled), right = self.widths["clip_l"], self.widths["clip_g"][0]
        if part == "clip_l":
            text[rows, :clip, :left] = 0
            pooled[rows, :left_pooled] = 0
        elif part == "clip_g":
            text[rows, :clip, left : left + right] = 0
            pooled[rows, left_pooled:] = 0
        else:
            text[rows, clip:] = 0
        return cond | {"text": text, "pooled": pooled}

    def ready(self) -> SD3:
        """Reads the weights now, returns itself. UserError where they are not there, or not the ones meant."""
        if not self._checked and self.config.fingerprint:
            self.config.check(self.fingerprint)
        self._checked = True
        for encoder in self.parts.values():
            encoder.ready()
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SD3:
        """Moves all of them, returns itself."""
        self.device, self.dtype = torch.device(device or self.device), dtype or self.dtype
        for encoder in self.parts.values():
            encoder.to(device, dtype)
        return self

    def save(self, folder: Path) -> None:
        """Nothing: what is frozen stays where it is, and the configuration says where."""

    def _part(self, part: str) -> Frozen:
        place = self._folder / PARTS[part]
        if not place.is_dir():
            raise UserError(f"{self.config.source!r} has no {PARTS[part]}/; put {part} into text.drop to do without")
        own = replace(self.config, kind="t5" if part == "t5" else "clip", source=str(place), revision="", drop=())
        length = self.config.t5_length if part == "t5" else self.config.length
        return Frozen(replace(own, length=length, layer=-1 if part == "t5" else -2, mask="off", fingerprint=""))

    def _widths(self, part: str) -> tuple[int, int]:
        place, network = self._folder / PARTS[part], self._folder / "transformer" / "config.json"
        if (place / "config.json").is_file():
            shape = read_shape(place)
            pooled = getattr(shape, "projection_dim" if is_projected(shape) else "hidden_size")
            return shape.hidden_size, 0 if part == "t5" else pooled
        if part == "t5" and network.is_file():
            return json.loads(network.read_text()).get("joint_attention_dim", WIDTHS[part][0]), 0
        return WIDTHS[part]

    def _tokens(self, part: str) -> int:
        return self.config.t5_length if part == "t5" else self.config.length

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device, dtype=self.dtype)
