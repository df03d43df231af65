"""The networks that papers name, in one table."""

from __future__ import annotations

from dataclasses import replace

from .baseline import UNetConfig
from .config import DiTConfig, Positions, Stage

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


# FLUX.1 (Black Forest Labs 2024): blocks with lanes of their own, parallel ones, width, heads, width of the text,
# of the pooled text, channels, whether it imitates guidance. The last is for a CPU.
FLUX = {
    "FLUX.1-dev":     (19, 38, 3072, 24, 4096, 768, 16, True),
    "FLUX.1-schnell": (19, 38, 3072, 24, 4096, 768, 16, False),
    "FLUX-S":         ( 2,  4,  192,  6,  512, 512,  4, False),
}  # fmt: skip


# PixArt (Chen et al. 2023, 2024): DiT's size, pixels of a side, whether it is told the picture's size, width of the
# text. The last is for a CPU.
PIXART = {
    "PixArt-alpha-XL/2-256":  ("XL",  256, False, 4096),
    "PixArt-alpha-XL/2-512":  ("XL",  512, False, 4096),
    "PixArt-alpha-XL/2-1024": ("XL", 1024, True,  4096),
    "PixArt-sigma-XL/2-256":  ("XL",  256, False, 4096),
    "PixArt-sigma-XL/2-512":  ("XL",  512, False, 4096),
    "PixArt-sigma-XL/2-1024": ("XL", 1024, False, 4096),
    "PixArt-sigma-XL/2-2K":   ("XL", 2048, False, 4096),
    "PixArt-S/2":             ("S",   256, False,  512),
}  # fmt: skip

# Stable Diffusion 3 and 3.5 (Esser et al. 2024): blocks, which are the heads too, blocks in which the image attends to
# itself beside, largest grid, norm of queries and keys, width of the text, of the pooled text, channels. The last is
# for a CPU.
SD3 = {
    "SD3-medium":   (24,  0, 192, False, 4096, 2048, 16),
    "SD3.5-medium": (24, 13, 384, True,  4096, 2048, 16),
    "SD3.5-large":  (38,  0, 192, True,  4096, 2048, 16),
    "SD3-S":        ( 6,  0, 192, True,   512,  512,  4),
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


def flux(name: str) -> DiTConfig:
    """FLUX.1: text and image in one attention, then in one stream."""
    own, one, width, heads, text, pooled, channels, guidance = FLUX[name]
    return DiTConfig(
        width=width,
        heads=heads,
        stages=(Stage(own, lanes="own"), Stage(one, parallel=True)),
        channels=channels,
        out_channels=channels,
        num_classes=0,
        context="stream",
        text_width=text,
        pooled_width=pooled,
        guidance=guidance,
        sincos=(),
        rope=rope_of(width // heads),
        qk_norm=True,
    )


def pixart(name: str) -> DiTConfig:
    """PixArt: text by cross-attention, one modulation for all blocks; positions are closer on larger pictures."""
    size, side, sizes, text = PIXART[name]
    depth, width, heads = SIZES[size]
    return DiTConfig(
        width=width,
        heads=heads,
        stages=(Stage(depth, "adaln_single", cross=True, cross_norm=False),),
        out_channels=8,
        num_classes=0,
        context="cross",
        text_width=text,
        text_mlp=True,
        sizes=sizes,
        positions=Positions(512 / side, base=side // 16),
    )


def sd3(name: str) -> DiTConfig:
    """Stable Diffusion 3: text and image with weights of their own in one attention (MM-DiT).

    Positions are those of 256 pixels, closer for 1024, which are 64 patches (Esser et al. 2024, Sec. 5.3.2).
    """
    depth, dual, largest, qk_norm, text, pooled, channels = SD3[name]
    return DiTConfig(
        width=64 * depth,
        heads=depth,
        stages=(
            *([Stage(dual, lanes="own", dual=True)] if dual else []),
            Stage(depth - dual - 1, lanes="own"),
            Stage(1, lanes="own", read_only=True),
        ),
        channels=channels,
        out_channels=channels,
        num_classes=0,
        context="stream",
        text_width=text,
        pooled_width=pooled,
        positions=Positions(256 / 1024, largest=largest, origin=(largest - 64) / 2),
        qk_norm=qk_norm,
    )


def rope_of(head: int) -> tuple[int, int, int]:
    """The channels of a head that FLUX.1 gives an empty axis, the row and the column: 16, 56, 56 of its 128."""
    side = 7 * head // 16 // 2 * 2
    return head - 2 * side, side, side


PRESETS: dict[str, DiTConfig] = {f"DiT-{size}/{patch}": dit(size, patch) for size in SIZES for patch in (2, 4, 8)}
PRESETS |= {f"LightningDiT-{size}/{p}": lightning(size, p) for size in LIGHTNING for p in LIGHTNING[size][3]}
# DiT told a picture's caption as one vector, CLIP's, in place of its class.
PRESETS |= {"ProjectedDiT-XL/2": replace(dit("XL", 2), num_classes=0, pooled_width=768)}
PRESETS |= {name: pixart(name) for name in PIXART} | {name: sd3(name) for name in SD3}
PRESETS |= {name: flux(name) for name in FLUX}

# Dhariwal & Nichol 2021, Sec. 4: the U-Net for ImageNet at 256 pixels, without a codec and with learned variance.
BASELINES = {"ADM-256": UNetConfig(width=256, channels=3, out_channels=6)}
