"""The networks that papers name, in one table."""

from __future__ import annotations

from .baseline import UNetConfig
from .config import DiTConfig, Stage

# Peebles & Xie, Table 1: depth, width, heads.
SIZES = {
    "S":  (12,  384,  6),
    "B":  (12,  768, 12),
    "L":  (24, 1024, 16),
    "XL": (28, 1152, 16),
}  # fmt: skip

# Yao et al. 2025 (LightningDiT) as released: DiT's and two larger ones, each with the patches it comes in.
LIGHTNING = {
    "B":    (12,  768, 12, (1, 2)),
    "L":    (24, 1024, 16, (2,)),
    "XL":   (28, 1152, 16, (1, 2)),
    "1p0B": (24, 1536, 24, (1, 2)),
    "1p6B": (28, 1792, 28, (1, 2)),
}  # fmt: skip


def dit(size: str, patch: int) -> DiTConfig:
    """DiT on 4-channel latents of ImageNet, with adaLN-Zero and learned variance; `conditioned` switches the rest."""
    depth, width, heads = SIZES[size]
    return DiTConfig(width=width, heads=heads, stages=(Stage(depth),), patch=(patch, patch), out_channels=8)


def lightning(size: str, patch: int) -> DiTConfig:
    """LightningDiT on 32-channel latents that are 16 times smaller than the picture (VA-VAE f16d32)."""
    depth, width, heads, _ = LIGHTNING[size]
    return DiTConfig(
        width=width,
        heads=heads,
        stages=(Stage(depth),),
        patch=(patch, patch),
        channels=32,
        out_channels=32,
        rope=(width // heads // 2,) * 2,
        norm="rms",
        mlp="swiglu",
        mlp_ratio=(8 * width // 3) / width,  # rounded down, as they do
    )


PRESETS: dict[str, DiTConfig] = {f"DiT-{size}/{patch}": dit(size, patch) for size in SIZES for patch in (2, 4, 8)}
PRESETS |= {f"LightningDiT-{size}/{p}": lightning(size, p) for size in LIGHTNING for p in LIGHTNING[size][3]}

# Dhariwal & Nichol 2021, Sec. 4: the U-Net for ImageNet at 256 pixels, without a codec and with learned variance.
BASELINES = {"ADM-256": UNetConfig(width=256, channels=3, out_channels=6)}
