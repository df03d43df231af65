"""Data sets, and the order in which training sees them.

N images, B batch, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..rng import generator


@dataclass(frozen=True)
class Dataset:
    """Images with class labels."""

    images: np.ndarray  # (N, H, W, C) uint8
    labels: np.ndarray  # (N,) int64
    class_names: tuple[str, ...]


def item(seed: int, size: int, place: int) -> int:
    """Which of `size` items comes at a place of the endless shuffled sequence."""
    return int(_epoch(seed, size, place // size)[place % size])


@lru_cache(maxsize=2)
def _epoch(seed: int, size: int, epoch: int) -> np.ndarray:
    return generator(seed, epoch, "order").permutation(size)


def drop(labels: Tensor, null: int, share: float, seed: int, places: range) -> Tensor:
    """Replace a share of the labels by the null class, for guidance: (B,) -> (B,). Seeded by each sample's place."""
    if share == 0:
        return labels
    u = np.array([generator(seed, place, "drop").random() for place in places])
    return torch.where(torch.from_numpy(u < share).to(labels.device), torch.full_like(labels, null), labels)
