"""What a network is, as plain data. No torch here, so that `ditwright --help` and `info` start at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import UserError, lookup


@dataclass(frozen=True)
class Stage:
    """A run of equal blocks."""

    depth: int
    mod: Literal["plain", "adaln", "adaln_zero", "adaln_single"] = "adaln_zero"  # how blocks hear the condition vector
    cross: bool = False  # a cross-attention branch between attention and MLP
    cross_norm: bool = True  # modulated as the others; PixArt: false
    lanes: Literal["shared", "own"] = "shared"  # weights of the context's stream: the image's, or its own (MM-DiT)
    read_only: bool = False  # the context's stream is read and not changed (SD3's last block)
    dual: bool = False  # the image also attends to itself alone (SD3.5-medium)
    parallel: bool = False  # attention and MLP in one (Flux's single blocks)

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UserError(f"a stage needs a depth of at least 1, not {self.depth}")
        if self.parallel and (self.cross or self.dual or self.lanes == "own" or self.mod == "adaln_single"):
            raise UserError("a parallel stage is one branch with shared lanes: it takes no cross, dual or adaln_single")
        if self.read_only and self.lanes != "own":
            raise UserError("a stage is read_only where its lanes are own")


@dataclass(frozen=True)
class Positions:
    """Where the sin-cos table is looked up."""

    scale: float = 1.0  # factor on the positions
    base: int = 0  # grids of any size are stretched to that of so many cells along a side; PixArt
    largest: int = 0  # grids lie in the middle of one of so many cells along a side; SD3
    origin: float = 0.0  # the cell of the largest grid that is at 0


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
    text_width: int = 0  # of the states of a text encoder, which are the tokens then; 0: time and label are
    text_vocab: int = 0  # above 0 the text comes as ids of so many tokens, through a tower of width text_width
    text_depth: int = 2  # blocks of the tower
    text_heads: int = 4
    text_mlp: bool = False  # two matrices in place of one from there to the network's width; PixArt
    pooled_width: int = 0  # of a pooled text vector that is added to the time; 0: none
    guidance: bool = False  # told the guidance that it imitates; FLUX.1 dev
    sizes: bool = False  # told the picture's height, width and ratio; PixArt-alpha at 1024
    sincos: tuple[int, ...] = (1, 0)  # axes of the sin-cos table, in order; () for none
    positions: Positions = Positions()
    rope: tuple[int, ...] = ()  # channels of a head rotated by each axis, () for none; more axes: the first are empty
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
        if self.rope and (len(self.rope) < len(self.patch) or sum(self.rope) != head or any(d % 2 for d in self.rope)):
            raise UserError(f"rope must give each axis an even share of the {head} channels of a head; got {self.rope}")
        if (self.context == "cross") != any(s.cross for s in self.stages):
            raise UserError("context 'cross' and stages with cross=true come together: set both or neither")
        if self.context != "stream" and any(s.lanes == "own" for s in self.stages):
            raise UserError("stages whose lanes are own need context 'stream'")
        if len({s.mod == "adaln_single" for s in self.stages}) > 1:
            raise UserError("adaln_single is of all stages or of none")
        if min(self.text_width, self.pooled_width) < 0 or (self.text_width and self.context == "none"):
            raise UserError("text_width goes with context 'stream' or 'cross'; it and pooled_width are 0 or more")
        if self.text_vocab < 0 or (self.text_vocab and not self.text_width):
            raise UserError("text_vocab is the number of token ids, 0 for none, and goes with text_width")
        if self.text_vocab and (min(self.text_depth, self.text_heads) < 1 or self.text_width % (2 * self.text_heads)):
            raise UserError("a text tower needs text_depth 1 or more, and text_width a multiple of twice text_heads")
        if self.text_width and all(s.mod == "plain" for s in self.stages):
            raise UserError("a network that reads text hears the time by its norms; plain stages alone do not hear it")
        if self.sizes and self.width % 3:
            raise UserError(f"sizes take a third of the width each; got width {self.width}")

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
