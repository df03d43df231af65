"""Which codec, as plain data; saved with every checkpoint and every set of shards. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError


@dataclass(frozen=True)
class CodecConfig:
    """`codec_from` makes the object, `find_codec` this description of one.

    What the network sees is (z - shift) * scale, z being what the autoencoder gives.
    """

    kind: Literal["auto", "pixels", "kl", "tiny", "dc"] = "auto"  # auto: the data's own; pixels for plain pictures
    channels: int = 3  # of the latents
    factor: int = 1  # pixels per latent along a side
    scale: tuple[float, ...] = ()  # one for all channels, or one for each; none: the autoencoder's own
    shift: tuple[float, ...] = ()  # likewise
    source: str = ""  # folder or hub name of the weights
    revision: str = ""  # of a hub name
    fingerprint: str = ""  # of the weights: others are refused

    def __post_init__(self) -> None:
        if min(self.channels, self.factor) < 1:
            raise UserError(f"codec.channels and factor must be at least 1; got {self.channels} and {self.factor}")
        for name in ("scale", "shift"):
            values = getattr(self, name)
            if len(values) not in (0, 1, self.channels) or not all(map(math.isfinite, values)):
                raise UserError(
                    f"codec.{name} takes one number, or one for each of {self.channels} channels; got {values}"
                )
        if 0 in self.scale:
            raise UserError(f"codec.scale must not be 0; got {self.scale}")
        if self.kind == "pixels" and (set(self.scale) - {1.0} or set(self.shift) - {0.0}):
            raise UserError(f"pixels take no codec.scale or shift; got {self.scale} and {self.shift}")


@dataclass(frozen=True)
class AutoencoderConfig:
    """An AutoencoderKL to train. Each width but the last ends in halving both sides: the factor is 2^(widths - 1)."""

    channels: int = 4  # of the latents
    widths: tuple[int, ...] = (32, 64, 64)
    layers: int = 1  # residual layers to a width
    groups: int = 8  # of each group norm
    attention: bool = False  # in the middle, where the sides are smallest
    image_channels: int = 3

    def __post_init__(self) -> None:
        if min((self.channels, self.layers, self.groups, self.image_channels, *self.widths), default=0) < 1:
            raise UserError("model.channels, widths, layers, groups and image_channels must be at least 1")
        if not self.widths:
            raise UserError("model.widths needs at least one width")
        if any(width % self.groups for width in self.widths):
            raise UserError(f"model.widths {self.widths} must be divisible by model.groups {self.groups}")

    @property
    def factor(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.widths) - 1)
