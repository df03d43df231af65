"""The U-Net that transformers are compared with, as plain data; and either network. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError
from .config import DiTConfig


@dataclass(frozen=True)
class UNetConfig:
    """ADM's U-Net (Dhariwal & Nichol 2021, Sec. 3): the baseline of Peebles & Xie, as diffusers builds it."""

    width: int  # channels of the finest level
    levels: tuple[int, ...] = (1, 1, 2, 2, 4, 4)  # channels of each level, in widths; each halves the sides
    depth: int = 2  # residual blocks of a level
    attention: int = 3  # levels that attend, from the coarsest on
    head_width: int = 64
    groups: int = 32  # of the group norms
    channels: int = 4
    out_channels: int = 4  # twice `channels` where the variance is learned
    num_classes: int = 1000  # 0: unconditional; the null class is `num_classes`
    kind: Literal["unet"] = "unet"

    def __post_init__(self) -> None:
        if not self.levels or min(self.width, self.depth, self.head_width, self.groups, *self.levels) < 1:
            raise UserError("a U-Net needs a level or more, and width, levels, depth, head_width, groups of at least 1")
        if min(self.channels, self.out_channels) < 1 or self.num_classes < 0:
            raise UserError("channels and out_channels must be at least 1, num_classes at least 0")
        if not 0 <= self.attention <= len(self.levels):
            raise UserError(f"attention must be 0 to {len(self.levels)}, how many levels attend; got {self.attention}")
        if self.width % self.groups:
            raise UserError(f"width {self.width} is not divisible by groups {self.groups}")
        for level in self.levels[len(self.levels) - max(1, self.attention) :]:  # the middle always attends
            if self.width * level % self.head_width:
                raise UserError(f"{self.width * level} channels are not divisible by head_width {self.head_width}")

    @property
    def patch(self) -> tuple[int, ...]:
        """What the sides of an input must be multiples of."""
        return (2 ** (len(self.levels) - 1),) * 2

    def __str__(self) -> str:
        channels = ", ".join(str(self.width * level) for level in self.levels)
        return f"U-Net: {self.depth} residual blocks at each of {channels} channels, attention at {self.attention}"


NetConfig = DiTConfig | UNetConfig
