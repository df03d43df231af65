"""A modulated norm as one Triton kernel, for networks that are not compiled: torch.compile makes such a one itself.

B batch, L tokens, D width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def token(x, shift, scale, out, tokens, width, apart, eps, SPAN: tl.constexpr):
    """One token of (B, L, D): normed, scaled, shifted, rounded to what `out` keeps. `apart`: between shifts."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, SPAN)
    here = place < width
    value = tl.load(x + row * width + place, mask=here, other=0.0).to(tl.float32)
    value = tl.where(here, value - tl.sum(value, 0) / width, 0.0)
    value = value * tl.rsqrt(tl.sum(value * value, 0) / width + eps)
    own = row // tokens * apart + place
    value = value * (1 + tl.load(scale + own, mask=here, other=0.0).to(tl.float32))
    value = value + tl.load(shift + own, mask=here, other=0.0).to(tl.float32)
    tl.store(out + row * width + place, value.to(out.dtype.element_ty), mask=here)


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift for x (B, L, D), shift and scale (B, 1, D) with equal strides: of `dtype`."""
    x, (batch, tokens, width) = x.contiguous(), x.shape
    shift, scale = (vector.expand(batch, 1, width) for vector in (shift, scale))
    assert (shift.stride(0), 1) == (scale.stride(0), shift.stride(2)), "shift and scale are parts of one tensor"
    out = torch.empty_like(x, dtype=dtype)
    with torch.cuda.device_of(x):
        span = triton.next_power_of_2(width)
        token[(batch * tokens,)](x, shift, scale, out, tokens, width, shift.stride(0), eps, SPAN=span)
    return out
