"""Which codec, as plain data; saved with every checkpoint. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError


@dataclass(frozen=True)
class CodecConfig:
    """`codec_from` makes the object."""

    kind: Literal["pixels"] = "pixels"
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise UserError(f"codec.channels must be at least 1; got {self.channels}")
