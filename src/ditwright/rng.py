"""Randomness as an argument: sample n of seed s draws the same numbers in any batch, on any rank, after any resume.

Every sample owns a counter-based generator (Philox, Salmon et al. 2011), so nothing that its neighbours draw can
move its own sequence. Numbers are made on the CPU: the device does not change them either.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, index: int, stream: str) -> np.random.Generator:
    """The generator of one sample; `stream` keeps different uses ("train", "sample", "order") apart."""
    counter = np.array([0, 0, index, zlib.crc32(stream.encode())], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, 0], dtype=np.uint64), counter=counter))


class Draws:
    """One generator per sample of a batch; each call moves every one of them on by the same amount."""

    def __init__(self, seed: int, indices: Iterable[int], stream: str):
        self.seed, self.indices, self.stream = seed, [int(i) for i in indices], stream
        self.generators = [generator(seed, i, stream) for i in self.indices]

    def again(self) -> Draws:
        """The same draws from their beginning, to look at a batch a second time."""
        return Draws(self.seed, self.indices, self.stream)

    def uniform(self) -> Tensor:
        """(B,) float64 in the open interval (0, 1), so that every inverse distribution function is finite."""
        return torch.tensor([g.random() for g in self.generators], dtype=torch.float64).clamp(min=2.0**-54)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise with the shape, device and dtype of `like`, (B, ...)."""
        assert len(like) == len(self.generators), f"{len(self.generators)} generators for {len(like)} samples"
        noise = np.stack([g.standard_normal(tuple(like.shape[1:]), dtype=np.float32) for g in self.generators])
        return torch.from_numpy(noise).to(like)
