"""Everything that defines a training run, as plain data. No torch at import, so that `--help` starts at once.

Recipes make these, YAML files and dotted options change them, a run folder keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .codec.config import CodecConfig
from .diffusion.config import ObjectiveConfig, ProcessConfig, SampleConfig
from .errors import UserError
from .model.config import DiTConfig
from .train.config import LogConfig, OptimConfig


@dataclass(frozen=True)
class DataConfig:
    """Where samples come from, and how many make a batch."""

    source: str = "digits"  # SOURCES
    batch_size: int = 256
    label_drop: float = 0.1  # share of labels replaced by the null class, for guidance

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"data.batch_size must be at least 1; got {self.batch_size}")
        if not 0 <= self.label_drop <= 1:
            raise UserError(f"data.label_drop must be between 0 and 1; got {self.label_drop:g}")


@dataclass(frozen=True)
class TrainConfig:
    """One run, whole."""

    steps: int
    model: DiTConfig
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of matrix products; auto: what this device is faster at
    compile: bool = False  # torch.compile each block
    checkpoint_activations: bool = False  # less memory, a third more time
    process: ProcessConfig = field(default_factory=ProcessConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)  # previews, and the default of `ditwright sample`
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps must be at least 1; got {self.steps}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be a whole number from 0 to 2^63 - 1; got {self.seed}")
        outputs = self.model.channels * (2 if self.process.learned_var else 1)
        if self.model.out_channels != outputs:
            raise UserError(
                f"model.out_channels must be {outputs} with {self.model.channels} channels and "
                f"process.learned_var={str(self.process.learned_var).lower()}; got {self.model.out_channels}"
            )
