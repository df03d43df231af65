"""Codecs: pixels to what the network sees, and back. Scale and shift live here and nowhere else.

B batch, H height, W width, C channels of latents, M channels of moments; h, w the latents' height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..extras import at_revision
from .autoencoder import Autoencoder
from .config import CodecConfig
from .pixels import Noise, Pixels


class Codec(Protocol):
    """Turns 8-bit pictures into latents and back."""

    @property
    def config(self) -> CodecConfig:
        """Which it is."""

    def moments(self, images: np.ndarray) -> Tensor:
        """(B, H, W, C) uint8 -> (B, M, h, w) as the autoencoder gives them: means, then log-variances where it has any.

        This is what shards keep: from it every epoch draws other latents, and scale and shift are still to come.
        """

    def latents(self, moments: Tensor, noise: Noise | None = None) -> Tensor:
        """(B, M, h, w) -> (B, C, h, w) float32, drawn with `noise` or else the mean. Needs no weights."""

    def encode(self, images: np.ndarray, noise: Noise | None = None) -> Tensor:
        """(B, H, W, C) uint8 -> (B, C, h, w): both at once."""

    def pixels(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) float32, black -1 and white 1, not clipped."""

    def decode(self, latents: Tensor) -> np.ndarray:
        """(B, C, h, w) -> (B, H, W, C) uint8: the pixels, clipped and rounded."""

    def ready(self) -> Codec:
        """Reads its weights now, where it has any; returns itself. UserError where they are not there."""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Codec:
        """Moves its weights, where it has any; returns itself."""

    def save(self, folder: Path) -> None:
        """Write the weights as diffusers lays them out, where there are any."""


KINDS: dict[str, Callable[[CodecConfig], Codec]] = {
    "auto": Pixels,
    "pixels": Pixels,
    "kl": Autoencoder,
    "tiny": Autoencoder,
    "dc": Autoencoder,
}


def codec_from(config: CodecConfig) -> Codec:
    """The codec that a configuration names. Weights are read when they are first needed."""
    return KINDS[config.kind](config)


def find_codec(name: str, *, revision: str = "") -> CodecConfig:
    """All that is to be known of a codec by its name, the fingerprint of its weights included.

    `name`: "pixels"; a local folder that holds a diffusers autoencoder, or has one in `vae/` or `codec/`, or is a run
    of `ditwright train-codec`; or OWNER/NAME on the Hugging Face hub, pinned to the commit that `revision` (a branch,
    a tag, a commit) is now.
    """
    if not revision:
        name, revision = at_revision(name)
    return CodecConfig("pixels") if name == "pixels" else Autoencoder.found(name, revision).config


def completed(config: CodecConfig) -> CodecConfig:
    """A configuration with all that was left open filled in: given scale and shift stay, the rest is looked up.

    UserError where the autoencoder is of another kind or has other weights than the configuration says.
    """
    if not config.source:
        return config
    found = find_codec(config.source, revision=config.revision)
    if config.kind not in ("auto", found.kind):
        raise UserError(f"codec.kind is {config.kind}; {config.source!r} holds an autoencoder of kind {found.kind}")
    if config.fingerprint not in ("", found.fingerprint):
        raise UserError(
            f"{config.source!r} has weights {found.fingerprint[:12]}; the configuration asks for "
            f"{config.fingerprint[:12]}: bring those back, or clear codec.fingerprint"
        )
    return replace(found, scale=config.scale or found.scale, shift=config.shift or found.shift)
