"""Norms by name: (width, affine, eps) -> module.

D width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Norm = Callable[..., nn.Module]  # (width, *, affine=False, eps=1e-6)


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm (Zhang & Sennrich 2019), in the precision of its weight."""

    def forward(self, x: Tensor) -> Tensor:  # (..., D)
        return super().forward(x.to(self.weight.dtype)).to(x)


def layer_norm(width: int, *, affine: bool = False, eps: float = 1e-6) -> nn.Module:
    """DiT's norm: without weights of its own unless `affine`."""
    return nn.LayerNorm(width, elementwise_affine=affine, eps=eps)


def rms_norm(width: int, *, affine: bool = False, eps: float = 1e-6) -> nn.Module:
    """LightningDiT's norm, which keeps its weight under a modulation too (Yao et al. 2025)."""
    return RMSNorm(width, eps=eps)


NORMS: dict[str, Norm] = {"layer": layer_norm, "rms": rms_norm}
