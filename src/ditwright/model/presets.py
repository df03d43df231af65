"""The networks that papers name, in one table."""

from __future__ import annotations

from .config import DiTConfig, Stage

# Peebles & Xie, Table 1: depth, width, heads.
SIZES = {
    "S":  (12,  384,  6),
    "B":  (12,  768, 12),
    "L":  (24, 1024, 16),
    "XL": (28, 1152, 16),
}  # fmt: skip


def dit(size: str, patch: int) -> DiTConfig:
    """DiT on 4-channel latents of ImageNet, with adaLN-Zero and learned variance; `conditioned` switches the rest."""
    depth, width, heads = SIZES[size]
    return DiTConfig(width=width, heads=heads, stages=(Stage(depth),), patch=(patch, patch), out_channels=8)


PRESETS: dict[str, DiTConfig] = {f"DiT-{size}/{patch}": dit(size, patch) for size in SIZES for patch in (2, 4, 8)}
