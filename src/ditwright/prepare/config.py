"""What to prepare, and with what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..data.buckets import Buckets
from ..errors import UserError

Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class PrepareConfig:
    """What to make of the pictures, and with what. From one start to the next only the last three may change."""

    size: int | None = None  # side of ADM's centre crop in pixels
    buckets: Buckets | None = None  # or aspect-ratio buckets. Neither: all pictures are of one size
    flips: bool = True  # mirrored ones too
    dtype: Literal["float16", "float32"] = "float16"  # of the moments; pixels stay uint8
    shard_size: int = 2048  # pictures of the source in a part
    batch_size: int = 32  # on a GPU; it changes the last bits
    workers: int = 0  # threads; 0: one for each CPU
    max_corrupt: float = 0.01  # share of the pictures

    def __post_init__(self) -> None:
        if self.size is not None and self.buckets is not None:
            raise UserError("a size to crop to and buckets exclude each other; give one")
        if self.size is not None and self.size < 1:
            raise UserError(f"the size must be at least 1 pixel; got {self.size}")
        for name, least in (("shard_size", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if not 0 <= self.max_corrupt <= 1:
            raise UserError(f"max_corrupt is a share from 0 to 1; got {self.max_corrupt:g}")

    def target(self, height: int, width: int) -> Size:
        """The size that a picture will have. Raises Dropped where no bucket takes it."""
        if self.buckets is not None:
            return self.buckets.assign(height, width)
        return (height, width) if self.size is None else (self.size, self.size)
