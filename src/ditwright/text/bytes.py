"""Ids for a network that reads them by a tower of its own.

B batch, M tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..diffusion.process import Cond
from ..errors import UserError
from .config import TextConfig
from .tokenizer import Prompt, Tokenizer, checked


class Bytes:
    """A tokenizer that `learn` made, as a text encoder."""

    text_width = pooled_width = 0
    commit = ""

    def __init__(self, config: TextConfig, tokenizer: Tokenizer | None = None):
        """`tokenizer`: one that is there already; otherwise the one in the folder that the configuration names."""
        if tokenizer is None and not config.source:
            raise UserError("text.source is empty: name the folder of a tokenizer.json")
        self.config, self.device = config, torch.device("cpu")
        self.tokenizer = tokenizer or Tokenizer.read(Path(config.source).expanduser(), config.length)
        config.check(self.fingerprint)

    @property
    def vocab(self) -> int:
        """How many ids there are."""
        return self.tokenizer.vocab

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer."""
        return self.tokenizer.fingerprint

    def __call__(self, prompts: Sequence[Prompt], length: int | None = None) -> Cond:
        """Gives "text" (B, M) int64 and "text_mask" (B, M); `length`: M, in place of the one it is made with."""
        tokenizer = self.tokenizer if length is None else Tokenizer(self.tokenizer.backend, length)
        ids, mask = tokenizer(checked(prompts, lower=self.config.lower))
        return {"text": ids.to(self.device), "text_mask": mask.to(self.device)}

    def ready(self) -> Bytes:
        """Itself: it is."""
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Bytes:
        """Gives its ids on a device; returns itself. Ids have but one dtype."""
        self.device = torch.device(device or self.device)
        return self

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        self.tokenizer.save(folder)
