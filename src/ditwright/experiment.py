"""Everything that defines a training run, as plain data. No torch at import, so that `--help` starts at once.

Recipes make these, YAML files and dotted options change them, a run folder keeps them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from .codec.config import AutoencoderConfig, CodecConfig
from .diffusion.config import ObjectiveConfig, ProcessConfig, SampleConfig
from .errors import UserError
from .model.baseline import NetConfig
from .text.config import TextConfig
from .train.config import LogConfig, OptimConfig, ParallelConfig


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from, and how many make a batch."""

    source: str = "digits"  # a name in SOURCES, a folder that `ditwright prepare` wrote, or pictures
    image_size: int | None = None  # pictures are cropped to it; None: as they are, or as they were prepared
    batch_size: int = 256  # over all processes
    label_drop: float = 0.1  # share of labels replaced by the null class, of captions by none, for guidance
    # Shares of what SD3's CLIP-L, CLIP-G and T5 give that are replaced by zeros, each by itself; SD3: 0.464 of each
    encoder_drop: tuple[float, float, float] = (0.0, 0.0, 0.0)
    guidance_scale: float = 3.5  # told to a network that imitates guidance (FLUX.1 dev), as diffusers trains those
    flip: float = 0.0  # share of pictures mirrored left to right
    prefetch: int = 2  # batches made ahead, in a thread
    validation: str = ""  # held-out data, a source like the other, for a loss without the noise of drawing
    validation_size: int = 512  # samples of it

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"data.batch_size must be at least 1; got {self.batch_size}")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"data.image_size must be at least 1 pixel; got {self.image_size}")
        if self.prefetch < 0:
            raise UserError(f"data.prefetch must be 0 or more; got {self.prefetch}")
        if self.validation_size < 1 or (self.validation_size != 512 and not self.validation):
            raise UserError(
                f"data.validation_size is at least 1 and goes with data.validation; got {self.validation_size}"
            )
        if not all(0 <= share <= 1 for share in self.encoder_drop):
            raise UserError(f"data.encoder_drop must be three shares between 0 and 1; got {self.encoder_drop}")
        if not 0 <= self.guidance_scale < math.inf:
            raise UserError(f"data.guidance_scale must be 0 or more; got {self.guidance_scale:g}")
        for name in ("label_drop", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.{name} must be between 0 and 1; got {getattr(self, name):g}")


@dataclass(frozen=True)
class MeasureConfig:
    """Samples of the averaged weights against a reference as training goes, in the words of `ditwright eval`."""

    every: int = 0  # steps between measurements, the last of them after the last step; 0: none at all
    extractor: str = ""  # KIND:PLACE, what sees the pictures: judge:FILE, inception:FILE, ...
    reference: str = ""  # an .npz, a folder or a data set; "": the pictures of data.source
    metrics: tuple[str, ...] = ()  # of fid, sfid, is, kid, pr, dc; none named: all that extractor and reference allow
    samples: int = 1000
    seed: int = 0  # of samples and bootstrap
    guidance_scale: float = 1.0  # sampler and steps are those of `sample`, all else of its guidance is left out
    rounds: int = 1000  # of the bootstrap; 0: no intervals

    def __post_init__(self) -> None:
        for name, low in {"every": 0, "samples": 1, "rounds": 0, "guidance_scale": 0}.items():
            if getattr(self, name) < low:
                raise UserError(f"measure.{name} must be at least {low}; got {getattr(self, name):g}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"measure.seed must be a whole number from 0 to 2^63 - 1; got {self.seed}")
        given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if given and not self.every:
            raise UserError(f"measure.{given[0]} is given, but measure.every is 0: give --measure.every N, or neither")
        if self.every and not self.extractor:
            raise UserError(
                "measure.extractor is missing: judge:FILE (ditwright eval judge makes one), inception:FILE or another "
                "of ditwright eval --extractor"
            )


@dataclass(frozen=True)
class TrainConfig:
    """One run, whole."""

    steps: int
    model: NetConfig
    seed: int = 0
    init: str = ""  # weights to start from: a run, a checkpoint, another project's, a hub name; "": drawn by the seed
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of matrix products; auto: what this device is faster at
    compile: bool = False  # torch.compile each block
    checkpoint_activations: bool = False  # all blocks compute theirs again: less memory, a third more time
    memory_gb: float = 0.0  # a budget for each device, in 10^9 bytes: as few blocks do so as keeps to it; 0: none
    process: ProcessConfig = field(default_factory=ProcessConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    text: TextConfig = field(default_factory=TextConfig)  # the encoder of captions, where the network hears text
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)  # previews, and the default of `ditwright sample`
    log: LogConfig = field(default_factory=LogConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1; got {self.steps}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be a whole number from 0 to 2^63 - 1; got {self.seed}")
        if not 0 <= self.memory_gb < math.inf:
            raise UserError(f"memory_gb must be 0 or more; got {self.memory_gb:g}")
        if self.memory_gb and self.checkpoint_activations:
            raise UserError(
                "checkpoint_activations is for all blocks, memory_gb for as few as it takes: give one of them"
            )
        if self.memory_gb and self.parallel.offload:
            raise UserError("memory_gb counts weights on the device, parallel.offload keeps them off: give one of them")
        if self.compile and self.parallel.sequence > 1:
            raise UserError("compile is for blocks that see all tokens: leave it out with parallel.sequence above 1")
        if self.data.guidance_scale != DataConfig.guidance_scale and not getattr(self.model, "guidance", False):
            raise UserError(
                "data.guidance_scale is told to networks that imitate guidance (model.guidance), and this one does "
                f"not: leave it at {DataConfig.guidance_scale:g}"
            )
        outputs = self.model.channels * (2 if self.process.learned_var else 1)
        if self.model.out_channels != outputs:
            raise UserError(
                f"model.out_channels must be {outputs} with {self.model.channels} channels and "
                f"process.learned_var={str(self.process.learned_var).lower()}; got {self.model.out_channels}"
            )


@dataclass(frozen=True)
class CropsConfig:
    """The pictures that an autoencoder learns from, and those that it is measured with."""

    source: str = "photos"  # a name in SOURCES, or pictures
    held_out: str = ""  # likewise, never trained on; "": every twentieth picture of the source
    image_size: int | None = None  # pictures are cropped to it first; None: as they are
    crop: int = 64  # pixels of the random crops, anew at every visit
    batch_size: int = 32  # over all processes
    flip: float = 0.5  # share of pictures mirrored left to right
    prefetch: int = 2  # batches made ahead, in a thread

    def __post_init__(self) -> None:
        if min(self.batch_size, self.crop) < 1 or self.prefetch < 0:
            raise UserError("data.batch_size and data.crop must be at least 1, data.prefetch 0 or more")
        if self.image_size is not None and self.image_size < self.crop:
            raise UserError(f"data.image_size {self.image_size} is smaller than data.crop {self.crop}")
        if not 0 <= self.flip <= 1:
            raise UserError(f"data.flip must be between 0 and 1; got {self.flip:g}")


@dataclass(frozen=True)
class ReconstructionConfig:
    """Weights of the terms of an autoencoder's loss."""

    l1: float = 1.0  # mean absolute error, of values in [-1, 1]
    mse: float = 1.0  # mean squared error
    kl: float = 1e-6  # divergence from a unit normal, in nats per value of the picture

    def __post_init__(self) -> None:
        if min(self.l1, self.mse, self.kl) < 0 or self.l1 + self.mse == 0:
            raise UserError("loss.l1, mse and kl must be 0 or more, and one of the first two above it")


@dataclass(frozen=True)
class CodecTrainConfig:
    """The training of an autoencoder, whole."""

    steps: int
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of products; auto: what this device is faster at
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    loss: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    data: CropsConfig = field(default_factory=CropsConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1; got {self.steps}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be a whole number from 0 to 2^63 - 1; got {self.seed}")
        if self.optim.mup_width:
            raise UserError("optim.mup_width is for transformers; an autoencoder takes 0")
        if self.optim.kind != "adamw":
            raise UserError(f"optim.kind {self.optim.kind} is for transformers; an autoencoder takes adamw")
        if self.log.async_save:
            raise UserError("log.async_save is for transformers; an autoencoder's checkpoints are small: leave it out")
        if self.data.crop % self.model.factor:
            raise UserError(
                f"data.crop {self.data.crop} is not divisible by {self.model.factor}, the factor of model.widths"
            )
