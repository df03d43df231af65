"""Data sets, and the order in which training sees them.

A `Source` lists pictures that nobody has opened yet; a `Dataset` gives training its batches: pictures, or what a codec
made of them. N items, B batch, C channels, M channels of moments.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..rng import generator


@dataclass(frozen=True)
class Record:
    """A picture not opened yet, and what is known of it."""

    name: str  # by which a person finds it
    read: Callable[[], bytes | Image.Image | np.ndarray]  # the file as it is, or a decoded picture
    label: int | None = None
    caption: str | None = None


class Source(Protocol):
    """Pictures in a fixed order. One that can only be walked has `__iter__` in place of the other two."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Record: ...


@dataclass(frozen=True)
class Group:
    """Items of one size; a data set has several where it has aspect-ratio buckets."""

    size: tuple[int, int]  # height, width in pixels
    items: np.ndarray  # (n,) int64


class Dataset(Protocol):
    """What training reads, by item number."""

    class_names: tuple[str, ...]
    groups: tuple[Group, ...]
    codec: Mapping[str, Any] | None  # the codec that made its moments, as plain data; None: `read` gives pictures

    def labels(self, items: np.ndarray) -> np.ndarray:
        """(B,) item numbers of one group -> (B,) int64."""

    def captions(self, items: np.ndarray) -> list[str | None]:
        """(B,) item numbers -> a caption for each, None where it has none."""

    def read(self, items: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """(B,) items of one group, (B,) bool which are mirrored -> (B, H, W, C) uint8, or moments (B, M, h, w)."""


@dataclass(frozen=True)
class Pictures:
    """A data set that fits into memory."""

    images: np.ndarray  # (N, H, W, C) uint8
    targets: np.ndarray  # (N,) int64
    class_names: tuple[str, ...]
    codec: None = None
    texts: tuple[str, ...] = ()  # N captions, or none at all

    def __post_init__(self):
        assert len(self.texts) in (0, len(self.images)), f"{len(self.texts)} captions for {len(self.images)} pictures"

    @property
    def groups(self) -> tuple[Group, ...]:
        """All of one size."""
        height, width = self.images.shape[1:3]
        return (Group((height, width), np.arange(len(self.images))),)

    def labels(self, items: np.ndarray) -> np.ndarray:
        """(B,) int64."""
        return self.targets[items]

    def captions(self, items: np.ndarray) -> list[str | None]:
        """(B,) captions, or None for each where the data set has none."""
        return [self.texts[item] if self.texts else None for item in items.tolist()]

    def read(self, items: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """(B, H, W, C) uint8."""
        images = self.images[items]
        return np.where(flips[:, None, None, None], images[:, :, ::-1], images)


def spread(count: int, most: int) -> np.ndarray:
    """Numbers of `most` items of `count`, evenly spread over them, or of all where they are fewer: ascending."""
    return np.arange(min(count, most), dtype=np.int64) * count // max(1, min(count, most))


def uncaptioned(name: str, source: object) -> str:
    """What is wrong where a picture has no caption, and what to do: `source.columns` are texts that there are."""
    columns = getattr(source, "columns", ())
    there = f"its source has {', '.join(columns)}" if columns else "its source brings no texts"
    return f"{name!r} has no caption ({there}); where a column or key of another name holds them: SOURCE:text=NAME"


def item(seed: int, size: int, place: int) -> int:
    """Which of `size` items comes at a place of the endless shuffled sequence."""
    return int(_epoch(seed, size, place // size)[place % size])


@lru_cache(maxsize=16)
def _epoch(seed: int, size: int, epoch: int) -> np.ndarray:
    return generator(seed, epoch, "order").permutation(size)


def batch_items(seed: int, groups: tuple[Group, ...], batch_size: int, number: int) -> tuple[Group, np.ndarray]:
    """The group and the items of batch `number`: every batch is of one size, and no item comes more often than others.

    Each group is an endless shuffled sequence of its own. A round has as many batches of each group as its items have
    filled by then, in shuffled order: a group of less than a batch has its turn every few rounds.
    """

    def batches_before(turn: int) -> list[int]:
        return [turn * len(group.items) // batch_size for group in groups]

    last = (number + len(groups) + 1) * batch_size // sum(len(group.items) for group in groups) + 2
    turn = bisect_right(range(last), number, key=lambda turn: sum(batches_before(turn))) - 1
    before, after = batches_before(turn), batches_before(turn + 1)
    order = _round(seed, tuple(b - a for a, b in zip(before, after, strict=True)), turn)
    place = number - sum(before)
    which = int(order[place])
    first = (before[which] + int((order[:place] == which).sum())) * batch_size  # of this group's own sequence
    group = groups[which]
    return group, group.items[[item(seed + which, len(group.items), p) for p in range(first, first + batch_size)]]


def step_items(seed: int, groups: tuple[Group, ...], batch_size: int, *, step: int, accumulate: int = 1) -> np.ndarray:
    """The items of all batches of a training step, 1 first, over all processes: (accumulate * batch_size,)."""
    numbers = range((step - 1) * accumulate, step * accumulate)
    return np.concatenate([batch_items(seed, groups, batch_size, number)[1] for number in numbers])


@lru_cache(maxsize=16)
def _round(seed: int, slots: tuple[int, ...], turn: int) -> np.ndarray:
    return generator(seed, turn, "buckets").permutation(np.repeat(np.arange(len(slots)), slots))


def drop(labels: Tensor, null: int, share: float, seed: int, places: range) -> Tensor:
    """Replace a share of the labels by the null class, for guidance: (B,) -> (B,). Seeded by each sample's place."""
    if share == 0:
        return labels
    lost = torch.from_numpy(dropped(share, seed, places)).to(labels.device)
    return torch.where(lost, torch.full_like(labels, null), labels)


def dropped(share: float, seed: int, places: range) -> np.ndarray:
    """Which samples are not told their class or caption: (B,) bool, seeded by each sample's place."""
    return np.array([share > 0 and generator(seed, place, "drop").random() < share for place in places])


def mirrored(share: float, seed: int, places: range) -> np.ndarray:
    """Which samples of a batch are mirrored left to right: (B,) bool, seeded by each sample's place."""
    return np.array([share > 0 and generator(seed, place, "flip").random() < share for place in places])
