"""No autoencoder, and what every codec does with pixels.

B batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .config import CodecConfig

Noise = Callable[[Tensor], Tensor]  # standard normal values shaped like its argument


@dataclass(frozen=True)
class Pixels:
    """Pixels in [-1, 1] are the latents, the 8-bit pixels their moments."""

    config: CodecConfig = field(default_factory=lambda: CodecConfig("pixels"))

    def moments(self, images: np.ndarray) -> Tensor:
        """(B, H, W, C) uint8 -> (B, C, H, W) uint8."""
        channels = self.config.channels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels:
            raise UserError(
                f"pixels with {channels} channels encode uint8 images (B, H, W, {channels}); "
                f"got {images.dtype} {images.shape}"
            )
        return channels_first(images)

    def latents(self, moments: Tensor, noise: Noise | None = None) -> Tensor:
        """(B, C, H, W) uint8 -> float32 in [-1, 1]."""
        return to_float(moments)

    def encode(self, images: np.ndarray, noise: Noise | None = None) -> Tensor:
        """(B, H, W, C) uint8 -> (B, C, H, W) float32 in [-1, 1]."""
        return self.latents(self.moments(images))

    def pixels(self, latents: Tensor) -> Tensor:
        """(B, C, H, W) float32, as they are."""
        return latents.float()

    def decode(self, latents: Tensor) -> np.ndarray:
        """(B, C, H, W) -> (B, H, W, C) uint8, clipped."""
        return to_uint8(latents)

    def ready(self) -> Pixels:
        """There is nothing to read."""
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Pixels:
        """There is nothing to move."""
        return self

    def save(self, folder: Path) -> None:
        """There is nothing to write."""


def channels_first(images: np.ndarray) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W); copied where torch cannot share the memory: mirrored views, read-only arrays."""
    images = np.ascontiguousarray(images)
    return torch.from_numpy(images if images.flags.writeable else images.copy()).permute(0, 3, 1, 2)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_uint8(pixels: Tensor) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] -> (B, H, W, C) uint8, clipped."""
    scaled = (pixels.float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
