"""A source of pictures as training reads it: decoded on the fly by a few threads. B batch, H height, W width."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..errors import UserError
from .base import Group, Record, Source
from .images import Unreadable, centre_crop, open_rgb, size_of

LOOKED_AT = 16  # headers, over the whole source, before training starts


class Decoded:
    """A `Dataset` of RGB pictures. Pillow decodes without Python's lock, so threads are enough.

    With `image_size` all pictures are cropped to that square as ADM does; without it they must be of one size, and
    UserError names two that are not: at once where a few headers show it, or else when such a picture is read.
    """

    codec = None

    def __init__(self, source: Source, image_size: int | None = None, *, threads: int | None = None):
        self.source, self.image_size = source, image_size
        self.class_names = source.class_names
        self._pool = ThreadPoolExecutor(threads or getattr(os, "process_cpu_count", os.cpu_count)(), "decode")
        self._first = source[0]
        size = _header(self._first) if image_size is None else (image_size, image_size)
        self.groups = (Group(size, np.arange(len(source))),)
        if image_size is None:
            for number in np.linspace(0, len(source) - 1, LOOKED_AT).astype(int).tolist():
                self._agree(record := source[number], _header(record))

    def labels(self, items: np.ndarray) -> np.ndarray:
        """(B,) int64; zeros where the source has no classes."""
        return np.array([self.source[item].label or 0 for item in items.tolist()], np.int64)

    def captions(self, items: np.ndarray) -> list[str | None]:
        """(B,) captions, None where the source has none."""
        return [self.source[item].caption for item in items.tolist()]

    def read(self, items: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8."""
        images = np.stack(list(self._pool.map(self._picture, items.tolist())))
        return np.where(flips[:, None, None, None], images[:, :, ::-1], images)

    def _picture(self, item: int) -> np.ndarray:
        record = self.source[item]
        try:
            image = open_rgb(record.read())
        except Unreadable as error:
            raise _unusable(record, error) from error
        if self.image_size is not None:
            return centre_crop(image, self.image_size)
        self._agree(record, (image.height, image.width))
        return np.array(image)

    def _agree(self, record: Record, size: tuple[int, int]) -> None:
        if size != (first := self.groups[0].size):
            raise UserError(
                f"pictures are of several sizes: {self._first.name!r} is {first[0]} x {first[1]}, {record.name!r} is "
                f"{size[0]} x {size[1]}; crop them (data.image_size N, in eval --size N), or sort them by "
                "`ditwright prepare --buckets`"
            )


def _header(record: Record) -> tuple[int, int]:
    try:
        return size_of(record.read())
    except Unreadable as error:
        raise _unusable(record, error) from error


def _unusable(record: Record, error: Unreadable) -> UserError:
    return UserError(f"{record.name!r} {error}; `ditwright prepare` skips and lists such pictures")
