"""Codecs: pixels to what the network sees, and back. Scale and shift live here and nowhere else.

B batch, H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .config import CodecConfig


class Codec(Protocol):
    """Turns 8-bit images into latents and back."""

    channels: int  # of the latents
    factor: int  # pixels per latent along a side

    def encode(self, images: np.ndarray) -> Tensor: ...  # (B, H, W, C) uint8 -> (B, channels, H/factor, W/factor)

    def decode(self, latents: Tensor) -> np.ndarray: ...  # the reverse


@dataclass(frozen=True)
class Pixels:
    """No autoencoder: pixels in [-1, 1] are the latents."""

    channels: int = 3
    factor: int = 1

    def encode(self, images: np.ndarray) -> Tensor:
        """(B, H, W, C) uint8 -> (B, C, H, W) float32 in [-1, 1]."""
        if images.dtype != np.uint8 or images.shape[-1] != self.channels:
            raise UserError(
                f"pixels with {self.channels} channels encode uint8 images (B, H, W, {self.channels}); "
                f"got {images.dtype} {images.shape}"
            )
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1

    def decode(self, latents: Tensor) -> np.ndarray:
        """(B, C, H, W) -> (B, H, W, C) uint8, clipped."""
        pixels = (latents.float().clamp(-1, 1) + 1) * 127.5
        return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def codec_from(config: CodecConfig) -> Codec:
    """The codec that a configuration names."""
    return Pixels(config.channels)
