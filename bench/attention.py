"""Attention while training on a CPU: plain products beside the fused kernel, forward and backward.

    python bench/attention.py

The two are timed in turns; printed are medians in milliseconds and how many times as long the fused kernel takes.
"""

import statistics
import time

import torch
import torch.nn.functional as F
from einops import rearrange

from ditwright.nn.attention import by_products

SHAPES = [(256, 4, 16, 32), (32, 6, 64, 64), (8, 6, 256, 64), (2, 6, 1024, 64)]  # batch, heads, tokens, head width


def seconds(attention, q, k, v, gradient):
    start = time.perf_counter()
    out = rearrange(attention(q, k, v), "b h l d -> b l (h d)")
    out.backward(gradient.to(out.dtype), retain_graph=True)
    return time.perf_counter() - start


for batch, heads, tokens, width in SHAPES:
    for dtype in (torch.float32, torch.bfloat16):
        qkv = torch.randn(batch, tokens, 3 * heads * width, dtype=dtype, requires_grad=True)
        q, k, v = rearrange(qkv, "b l (three h d) -> three b h l d", three=3, h=heads)  # as in nn/branch.py
        gradient = torch.randn(batch, tokens, heads * width)  # dense, as a projection's is
        torch.testing.assert_close(by_products(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=0.02, atol=0.02)
        rounds = [
            (seconds(by_products, q, k, v, gradient), seconds(F.scaled_dot_product_attention, q, k, v, gradient))
            for _ in range(15)
        ]
        plain, fused = (1e3 * statistics.median(times) for times in zip(*rounds[3:], strict=True))
        print(
            f"{tokens:5d} tokens {str(dtype)[6:]:8s} plain {plain:6.1f} fused {fused:6.1f} ms  {fused / plain:4.1f} x"
        )
