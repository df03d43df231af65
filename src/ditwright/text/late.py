"""A text encoder that is looked for when it is first asked."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from ..diffusion.process import Cond
from .base import TextEncoder, encoder_from
from .config import TextConfig
from .tokenizer import Prompt


class Late:
    """The encoder that a configuration names: until it is asked, its folder need not be there. Threads may share it."""

    def __init__(self, config: TextConfig):
        self.config, self._lock = config, threading.RLock()
        self._device: torch.device | str | None = None
        self._dtype: torch.dtype | None = None

    @cached_property
    def _there(self) -> TextEncoder:
        return encoder_from(self.config).to(self._device, self._dtype)

    @property
    def made(self) -> TextEncoder:
        """The encoder itself. UserError where it is not at hand."""
        with self._lock:
            return self._there

    @property
    def text_width(self) -> int:
        """E; 0 where ids come out."""
        return self.made.text_width

    @property
    def pooled_width(self) -> int:
        """P; 0 where there is no pooled state."""
        return self.made.pooled_width

    @property
    def vocab(self) -> int:
        """How many ids there are; 0 where states come out."""
        return self.made.vocab

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights and its tokenizer."""
        return self.made.fingerprint

    @property
    def commit(self) -> str:
        """Of the hub; empty where it is a folder or a package."""
        return self.made.commit

    def __call__(self, prompts: Sequence[Prompt], length: int | None = None) -> Cond:
        """What the encoder gives."""
        return self.made(prompts, length)

    def ready(self) -> Late:
        """Makes it and reads its weights now, returns itself. UserError where they are not there."""
        self.made.ready()
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Late:
        """Moves it, now or when it is made; returns itself."""
        with self._lock:
            self._device, self._dtype = device or self._device, dtype or self._dtype
            if "_there" in self.__dict__:
                self._there.to(device, dtype)
        return self

    def save(self, folder: Path) -> None:
        """Write what a checkpoint must bring with it: of a frozen encoder nothing, so that it need not be there."""
        if self.config.kind == "bytes":
            self.made.save(folder)
