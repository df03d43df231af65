"""What all blocks regress from the condition, as one product.

B batch, L tokens, D width, N numbers that a network's norms, scales and gates take from the condition together.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.modulation import AdaLN, AdaLNZero
from .linear import LaidOut, filled


def can_fuse(norm: nn.Module, device: torch.device) -> bool:
    """Whether a norm and its modulation have a kernel (`fused.py`): on GPUs, with the Triton that torch brings."""
    bare = type(norm) is nn.LayerNorm and not norm.elementwise_affine
    return bare and device.type == "cuda" and find_spec("triton") is not None


class Share(nn.Module):
    """A modulated norm whose numbers are there already, from `start` on; in place of AdaLN and AdaLNZero."""

    def __init__(self, mod: AdaLN | AdaLNZero, start: int, dtype: torch.dtype):
        super().__init__()
        self.norm, self.vectors, self.dtype = mod.norm, mod.vectors, dtype
        self.span = (start, start + mod.lin.out_features)
        self.fuses = can_fuse(mod.norm, mod.lin.weight.device)

    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor, Tensor | float]:
        start, stop = self.span
        shift, scale, *gate = vec[:, None, start:stop].chunk(self.vectors, -1)  # (B, 1, D) each
        if self.fuses and not torch.compiler.is_compiling():
            from .fused import modulated

            h = modulated(x, shift, scale, self.norm.eps, self.dtype)
        else:
            h = torch.addcmul(shift, self.norm(x), 1 + scale).to(self.dtype)
        return h, gate[0] if gate else 1.0


class Gathered(nn.Module):
    """The regressions of many norms in one product: (R, D) -> (R, N), of `dtype`."""

    def __init__(self, linears: Iterable[nn.Linear], dtype: torch.dtype):
        super().__init__()
        linears = list(linears)
        with torch.device("meta"):
            joined = nn.Linear(linears[0].in_features, sum(lin.out_features for lin in linears))
        joined.weight = nn.Parameter(torch.cat([lin.weight.detach().to(dtype) for lin in linears]), requires_grad=False)
        joined.bias = nn.Parameter(torch.cat([lin.bias.detach() for lin in linears]), requires_grad=False)
        self.lin = LaidOut(joined, dtype)

    def forward(self, vec: Tensor) -> Tensor:
        return filled(lambda rows: self.lin(F.silu(rows)), vec)
