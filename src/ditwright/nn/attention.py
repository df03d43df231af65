"""The one seam for attention kernels.

B batch, H heads, L queries, M keys, d head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q (B, H, L, d), k and v (B, H, M, d); `mask` (B, M) is True at keys that exist."""
    keys = None if mask is None else mask[:, None, None]
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        # bf16 backward of short sequences on a CPU takes many times longer than fp32 (docs/tour.md, "Precision").
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=keys)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
