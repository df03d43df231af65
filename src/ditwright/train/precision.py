"""bf16 where the device is faster for it: measured or asked, never assumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from ..errors import UserError


def resolve(precision: str, device: torch.device) -> str:
    """auto -> bf16 or fp32. On a CPU two matrix products are timed: bf16 must win by 1.3."""
    if device.type == "cuda":
        if precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise UserError("this GPU has no bf16; use precision=fp32")
        return "bf16" if precision == "auto" and torch.cuda.is_bf16_supported() else precision.replace("auto", "fp32")
    if precision != "auto":
        return precision
    return "bf16" if _product_seconds(torch.float32) > 1.3 * _product_seconds(torch.bfloat16) else "fp32"


def _product_seconds(dtype: torch.dtype, size: int = 768) -> float:
    """The best of a few products of two square matrices."""
    a = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return best


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """A maker of contexts for the forward pass: matrix products in bf16, the rest as it is."""
    return partial(torch.autocast, device.type, torch.bfloat16) if precision == "bf16" else nullcontext
