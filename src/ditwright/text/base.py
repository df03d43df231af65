"""Text encoders: prompts to what a network is told.

B batch, M tokens, E width of the states, P width of the pooled state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from ..diffusion.process import Cond
from ..errors import UserError
from ..model.config import DiTConfig
from .bytes import Bytes
from .config import TextConfig
from .flux import Flux
from .frozen import Frozen
from .sd3 import SD3
from .tokenizer import Prompt


class TextEncoder(Protocol):
    """Turns prompts into a network's condition. All prompts of one encoder come out with the same names and shapes."""

    config: TextConfig

    @property
    def text_width(self) -> int:
        """E; 0 where ids come out."""

    @property
    def pooled_width(self) -> int:
        """P; 0 where there is no pooled state."""

    @property
    def vocab(self) -> int:
        """How many ids there are; 0 where states come out."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights and its tokenizer."""

    @property
    def commit(self) -> str:
        """Of the hub; empty where it is a folder or a package."""

    def __call__(self, prompts: Sequence[Prompt], length: int | None = None) -> Cond:
        """Gives "text" (B, M, E) states or (B, M) int64 ids, perhaps "text_mask" (B, M), perhaps "pooled" (B, P).

        The empty prompt is one as any other, and the null condition. What does not fit is cut, with a warning.
        `length`: tokens, of T5 where there are several encoders, in place of the configured ones. UserError where a
        prompt is more texts than there are encoders, or the encoder cannot read so many tokens.
        """

    def ready(self) -> TextEncoder:
        """Reads its weights now, where it has any; returns itself. UserError where they are not there."""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TextEncoder:
        """Moves its weights, where it has any, and what it gives; returns itself."""

    def save(self, folder: Path) -> None:
        """Write what a checkpoint must bring with it: the tokenizer of bytes, and nothing of the frozen ones."""


KINDS: dict[str, Callable[[TextConfig], TextEncoder]] = {
    "bytes": Bytes,
    "clip": Frozen,
    "t5": Frozen,
    "causal": Frozen,
    "sentence": Frozen,
    "minilm": Frozen,
    "sd3": SD3,
    "flux": Flux,
}


def encoder_from(config: TextConfig) -> TextEncoder:
    """The encoder that a configuration names. Weights are read when they are first needed."""
    if config.kind not in KINDS:
        raise UserError(f"text.kind is {config.kind}, which encodes nothing; choose one of {', '.join(KINDS)}")
    return KINDS[config.kind](config)


def completed(config: TextConfig) -> TextConfig:
    """A configuration that pins what it names: the hub's commit and the fingerprint. UserError where it is another."""
    return config if config.kind == "none" else pinned(encoder_from(config))


def pinned(encoder: TextEncoder) -> TextConfig:
    """An encoder's configuration with what pins it. UserError where that is another than it names."""
    config = encoder.config
    config.check(encoder.fingerprint)
    pins = {"revision": encoder.commit or config.revision, "fingerprint": encoder.fingerprint}
    return replace(config, source=config.source if encoder.commit else rooted(config.source), **pins)


def rooted(source: str) -> str:
    """A place that means the same from every folder: of one that is here the whole path, of others as they are."""
    here = Path(source).expanduser()
    return str(here.absolute()) if source and here.exists() else source


def agree(config: TextConfig, model: DiTConfig, encoder: TextEncoder | None = None) -> None:
    """UserError, naming both, where a network would not understand what the encoder tells it."""
    hears = model.text_width or model.pooled_width
    if config.kind == "none":
        if hears:
            raise UserError(
                f"the network hears text (model.text_width {model.text_width}, pooled_width {model.pooled_width}) "
                "and text.kind is none: name an encoder"
            )
        return
    encoder = encoder or encoder_from(config)
    if not hears:
        raise UserError(f"text.kind is {config.kind}, and the network hears no text: set model.text_width")
    if bool(model.text_vocab) != bool(encoder.vocab) or model.text_vocab < encoder.vocab:
        wants = f"ids of {model.text_vocab} tokens" if model.text_vocab else "states"
        gives = f"ids of {encoder.vocab} tokens" if encoder.vocab else "states"
        advice = f"set model.text_vocab {encoder.vocab}"
        advice += f" and model.text_width {encoder.text_width}" if not encoder.vocab else ""
        raise UserError(
            f"text.kind {config.kind} gives {gives}; the network (model.text_vocab) takes {wants}: {advice}"
        )
    if not encoder.vocab and model.text_width not in (0, encoder.text_width):
        raise UserError(
            f"text.kind {config.kind} gives states of width {encoder.text_width}; "
            f"model.text_width is {model.text_width}"
        )
    if model.pooled_width not in (0, encoder.pooled_width):
        gives = f"a pooled state of width {encoder.pooled_width}" if encoder.pooled_width else "no pooled state"
        raise UserError(f"text.kind {config.kind} gives {gives}; model.pooled_width is {model.pooled_width}")
