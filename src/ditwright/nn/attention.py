"""The one seam for attention kernels.

B batch, H heads, L queries, M keys, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 256  # keys up to which plain products train faster in bf16 than the fused kernel on a CPU


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q (B, H, L, d), k and v (B, H, M, d); `mask` (B, M) is True at keys that exist."""
    keys = None if mask is None else mask[:, None, None]  # (B, 1, 1, M)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and k.shape[2] <= SHORT:
        return by_products(q, k, v, keys)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keys)


def by_products(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
    """The formula as it stands; of the scores and weights nothing wider than the inputs is kept.

    The fused CPU kernel's bf16 backward is slow on short sequences: forward and backward took it 6.5 times as long at
    16 tokens, 3.3 times at 64, 1.6 times at 256, 0.8 times at 1,024; in fp32 it is never the slower one (`python
    bench/attention.py`, measured 2026-11-26 on two Xeon cores with AMX, torch 2.13.0).
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, L, M)
    if keys is None:
        return scores.softmax(-1) @ v  # its sums are in fp32, whatever comes and goes
    away = torch.zeros_like(keys, dtype=scores.dtype).masked_fill(~keys, torch.finfo(scores.dtype).min)
    return (scores + away).softmax(-1) @ v * keys.any(-1, keepdim=True)  # no key gives 0, as from the fused kernel
