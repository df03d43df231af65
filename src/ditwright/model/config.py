"""What a network is, as plain data. No torch here, so that `ditwright --help` and `info` start at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import UserError, lookup


@dataclass(frozen=True)
class Stage:
    """A run of equal blocks."""

    depth: int
    mod: Literal["plain", "adaln", "adaln_zero"] = "adaln_zero"  # how blocks hear the condition vector
    cross: bool = False  # a cross-attention branch between attention and MLP

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UserError(f"a stage needs a depth of at least 1, not {self.depth}")


@dataclass(frozen=True)
class DiTConfig:
    """A diffusion transformer. The number of axes is `len(patch)`: 1 audio, 2 images, 3 video or voxels."""

    width: int
    heads: int
    stages: tuple[Stage, ...]
    patch: tuple[int, ...] = (2, 2)
    channels: int = 4
    out_channels: int = 4  # twice `channels` where the variance is learned
    num_classes: int = 1000  # 0: unconditional; the null class is `num_classes`
    context: Literal["none", "stream", "cross"] = "none"  # the condition as tokens: nowhere, in the stream, or read
    sincos: tuple[int, ...] = (1, 0)  # axes of the sin-cos table, in order; () for none
    rope: tuple[int, ...] = ()  # channels of each head rotated by each axis; () for none
    qk_norm: bool = False  # RMS norm of queries and keys (Dehghani et al. 2023)
    norm: Literal["layer", "rms"] = "layer"  # of blocks and head; LightningDiT: rms
    mlp: Literal["gelu", "swiglu"] = "gelu"  # LightningDiT: swiglu, its mlp_ratio 8/3
    mlp_ratio: float = 4.0
    mlp_norm_eps: float = 1e-6  # diffusers' DiT: 1e-5
    time_shift: int = 0  # of the time features' frequencies; diffusers' DiT: 1
    kind: Literal["dit"] = "dit"

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise UserError(f"width must be a positive multiple of heads; got width {self.width}, heads {self.heads}")
        if not self.stages:
            raise UserError("a network needs at least one stage")
        if not self.patch or min(self.patch) < 1:
            raise UserError(f"patch must be one or more positive sizes, one per axis; got {self.patch}")
        if min(self.channels, self.out_channels) < 1 or self.num_classes < 0:
            raise UserError("channels and out_channels must be at least 1, num_classes at least 0")
        if self.sincos and (sorted(self.sincos) != list(range(len(self.patch))) or self.width % (2 * len(self.sincos))):
            raise UserError(
                f"sincos must name each of the {len(self.patch)} axes once and share the width {self.width} evenly "
                f"between sines and cosines of each; got {self.sincos}"
            )
        head = self.width // self.heads
        if self.rope and (len(self.rope) != len(self.patch) or sum(self.rope) != head or any(d % 2 for d in self.rope)):
            raise UserError(f"rope must give each axis an even share of the {head} channels of a head; got {self.rope}")
        if (self.context == "cross") != any(s.cross for s in self.stages):
            raise UserError("context 'cross' and stages with cross=true come together: set both or neither")

    @property
    def depth(self) -> int:
        return sum(stage.depth for stage in self.stages)

    def __str__(self) -> str:
        blocks = ", ".join(
            f"{stage.depth} {stage.mod}" + " with cross-attention" * stage.cross for stage in self.stages
        )
        patch = " x ".join(map(str, self.patch))
        return f"blocks: {blocks}; width {self.width}, {self.heads} heads, patch {patch}"


# The paper's four block designs (Peebles & Xie, Sec. 3.2): how a norm hears the condition, where it is a token.
CONDITIONINGS: dict[str, tuple[str, str]] = {
    "in-context": ("plain", "stream"),
    "cross": ("plain", "cross"),
    "adaln": ("adaln", "none"),
    "adaln-zero": ("adaln_zero", "none"),
}


def conditioned(config: DiTConfig, conditioning: str) -> DiTConfig:
    """The same network with another of the paper's four conditioning designs."""
    mod, context = lookup("conditioning", conditioning, CONDITIONINGS)
    stages = tuple(replace(stage, mod=mod, cross=context == "cross") for stage in config.stages)
    return replace(config, stages=stages, context=context)
