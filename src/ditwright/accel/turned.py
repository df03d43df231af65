"""A matrix copied with its rows and columns exchanged, by a kernel of its own.

In the kernels around it torch.compile would do it while it does something else, and be several times as long about it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

APART = 32  # numbers between rows: a power of two from one to the next, they would share few places of a cache

LIBRARY = torch.library.Library("ditwright", "FRAGMENT")
LIBRARY.define("turned(Tensor x) -> Tensor")


def turned(x: Tensor) -> Tensor:
    """(R, N) -> (N, R), the numbers of a row one after the other in memory."""
    return torch.ops.ditwright.turned(x)


@torch.library.register_fake("ditwright::turned", lib=LIBRARY)
def room(x: Tensor) -> Tensor:
    """Of the shape and strides of what comes."""
    rows, columns = x.shape
    return x.new_empty_strided((columns, rows), (rows + APART, 1))


@torch.library.impl("ditwright::turned", "CPU", lib=LIBRARY)
def _turned(x: Tensor) -> Tensor:
    return copy()(room(x), x.t())


@cache
def copy() -> Callable[[Tensor, Tensor], Tensor]:
    """Tensor.copy_, compiled: torch's own of bfloat16 takes one thread, and four times as long."""
    return torch.compile(Tensor.copy_)
