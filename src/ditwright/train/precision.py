"""bf16 where the device is faster for it: measured or asked, never assumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial

import torch

from ..dtypes import DTYPES
from ..errors import UserError

SLOW = 8  # times as long as in fp32, which only products without instructions for a format take: there 150 was measured


def resolve(precision: str, device: torch.device) -> str:
    """auto -> bf16 or fp32. On a CPU two matrix products are timed: bf16 must win by 1.3."""
    if device.type == "cuda":
        if precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise UserError("this GPU has no bf16; use precision=fp32")
        return "bf16" if precision == "auto" and torch.cuda.is_bf16_supported() else precision.replace("auto", "fp32")
    if precision != "auto":
        return precision
    if in_software("bf16", device):
        return "fp32"
    fp32, bf16 = product_seconds(torch.float32, torch.bfloat16)
    return "bf16" if fp32 > 1.3 * bf16 else "fp32"


@cache
def in_software(precision: str, device: torch.device) -> str:
    """What to say of a precision that a CPU has no instructions for, so that products take far longer; else nothing."""
    if device.type != "cpu":
        return ""
    fp32, asked = product_seconds(torch.float32, DTYPES[precision], size=256, rounds=3)  # small: else it takes seconds
    return f"this CPU computes {precision} in software, far slower than fp32" if asked > SLOW * fp32 else ""


def product_seconds(*dtypes: torch.dtype, size: int = 768, rounds: int = 8) -> list[float]:
    """The best time of a product of two square matrices in each format, taken in turns: a busy machine slows all."""
    best = [float("inf")] * len(dtypes)
    for _ in range(rounds):
        for i, dtype in enumerate(dtypes):
            a = torch.ones(size, size, dtype=dtype)
            start = time.perf_counter()
            a @ a
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """A maker of contexts for the forward pass: matrix products in bf16, the rest as it is."""
    return partial(torch.autocast, device.type, torch.bfloat16) if precision == "bf16" else nullcontext


def peak_flops(precision: str, device: torch.device) -> float:
    """The FLOP/s that a device reaches in large matrix products of a precision, measured on random numbers."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    draws = torch.Generator(device).manual_seed(0)  # random: powers of zeros and ones are lower than those of real work
    a, b = (torch.empty(size, size, dtype=dtype, device=device).normal_(generator=draws) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        c = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size * size * c.shape[1] / best
