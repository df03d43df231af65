"""The text encoders of one pipeline's folder as one: what Stable Diffusion 3's and FLUX's have in common."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self

import torch

from ..diffusion.process import Cond
from ..dtypes import DTYPES
from ..errors import UserError
from .config import TextConfig
from .folder import locate
from .frozen import Frozen
from .tokenizer import Prompt, checked


class Place(NamedTuple):
    """Where in a pipeline's folder an encoder is, and which of its states are read."""

    folder: str
    kind: Literal["clip", "t5"]
    layer: int = -1


class Several:
    """Reads, moves and tells apart the encoders in `places`, by name; a subclass says what is made of their states."""

    vocab = 0  # states come out, no ids
    places: ClassVar[dict[str, Place]]
    whose: ClassVar[str]  # pipeline, for people
    advice: ClassVar[str]  # where an encoder, "{part}", is not there

    def __init__(self, config: TextConfig):
        if not config.source:
            raise UserError(f"text.source is empty: name the folder or the hub name of {self.whose} pipeline")
        self.config = config
        self.device, self.dtype, self._checked = torch.device("cpu"), DTYPES[config.dtype], False
        wanted = {part: place for part, place in self.places.items() if part not in config.drop}
        folders = [place.folder for place in wanted.values()]
        self._folder, self.commit = locate(config.source, config.revision, (*folders, "transformer"))
        self.parts = {part: self._part(part, place) for part, place in wanted.items()}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of those of the encoders that are not dropped."""
        lines = [f"{part} {encoder.fingerprint}" for part, encoder in self.parts.items()]
        return hashlib.sha256("\n".join([self.config.kind, *lines]).encode()).hexdigest()

    def said(self, prompts: Sequence[Prompt], length: int | None = None) -> dict[str, Cond]:
        """What each encoder gives; `length`: T5's tokens, in place of the configured ones."""
        texts = self.texts(prompts)
        first = next(iter(texts.values()))
        for part in texts.keys() - self.parts.keys():
            if texts[part] != first:
                warnings.warn(f"the text for {part} has no effect: text.drop leaves that encoder out", stacklevel=4)
        own = {part: length if place.kind == "t5" else None for part, place in self.places.items()}
        return {part: encoder(texts[part], own[part]) for part, encoder in self.ready().parts.items()}

    def texts(self, prompts: Sequence[Prompt]) -> dict[str, list[str]]:
        """What each encoder of `places` hears: of a prompt that is a text for each its own, or else the first."""
        each = [prompt if isinstance(prompt, tuple) else (prompt,) for prompt in prompts]
        count = len(self.places)
        if wrong := [own for own in each if not 1 <= len(own) <= count]:
            raise UserError(
                f"{self.whose} pipeline has {count} text encoders: a prompt is 1 to {count}; got {wrong[0]!r}"
            )
        return {
            part: checked(prompts if isinstance(prompts, str) else [own[i] if i < len(own) else own[0] for own in each])
            for i, part in enumerate(self.places)
        }

    def ready(self) -> Self:
        """Reads the weights now, returns itself. UserError where they are not there, or not the ones meant."""
        if not self._checked and self.config.fingerprint:
            self.config.check(self.fingerprint)
        self._checked = True
        for encoder in self.parts.values():
            encoder.ready()
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves all of them, returns itself."""
        self.device, self.dtype = torch.device(device or self.device), dtype or self.dtype
        for encoder in self.parts.values():
            encoder.to(device, dtype)
        return self

    def save(self, folder: Path) -> None:
        """Nothing: what is frozen stays where it is, and the configuration says where."""

    def _part(self, part: str, place: Place) -> Frozen:
        folder = self._folder / place.folder
        if not folder.is_dir():
            raise UserError(f"{self.config.source!r} has no {place.folder}/; {self.advice.format(part=part)}")
        own = replace(self.config, kind=place.kind, source=str(folder), revision="", drop=(), layer=place.layer)
        length = self.config.t5_length if place.kind == "t5" else self.config.length
        return Frozen(replace(own, length=length, mask="off", fingerprint=""))
