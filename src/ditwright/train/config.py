"""How weights are moved and what is noted of it, as plain data. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import UserError


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its schedule, and the average of its weights.

    `muon` moves the matrices that tokens pass through in blocks along the orthogonal matrix nearest to their momentum,
    at AdamW's rates, and leaves all else, modulations too, to AdamW (Jordan et al. 2024; Liu et al. 2025).
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0  # steps of linear warm-up
    clip: float = 1.0  # largest gradient norm
    accumulate: int = 1  # batches per step
    ema: float = 0.9999
    mup_width: int = 0  # the width at which lr is meant: rates and first weights follow muP to others; 0: they do not
    # A step that is not finite stops a run at once, as a small run should; one of weeks on many machines may bear some:
    skip_nonfinite: int = 0  # in a row that are left out, their samples with them; noted in metrics.jsonl
    rollbacks: int = 0  # then: times that the run goes on from its newest checkpoint again before it stops

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.clip <= 0:
            raise UserError(f"optim.lr and optim.clip must be above 0; got {self.lr:g} and {self.clip:g}")
        if self.warmup < 0 or self.weight_decay < 0:
            raise UserError("optim.warmup and optim.weight_decay must be 0 or more")
        if self.mup_width < 0:
            raise UserError(f"optim.mup_width is a width, or 0 for none; got {self.mup_width}")
        if self.mup_width and self.kind == "muon":
            raise UserError("optim.mup_width is for adamw: muon's steps are of one size at every width; take 0")
        if min(self.skip_nonfinite, self.rollbacks) < 0:
            got = f"{self.skip_nonfinite} and {self.rollbacks}"
            raise UserError(f"optim.skip_nonfinite and optim.rollbacks must be 0 or more; got {got}")
        if self.accumulate < 1:
            raise UserError(f"optim.accumulate must be at least 1; got {self.accumulate}")
        if not 0 <= self.ema < 1 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optim.ema and optim.betas must be in [0, 1); got {self.ema:g} and {self.betas}")


@dataclass(frozen=True)
class LogConfig:
    """What a run writes as it goes; 0 switches a thing off."""

    every: int = 10  # steps between lines of metrics.jsonl
    preview_every: int = 500  # steps between sample grids
    checkpoint_every: int = 500
    evaluate_every: int = 500  # steps between measurements on data.validation, where it is given
    keep: int = 2  # checkpoints, the newest
    keep_best: int = 0  # and those with the best `best_by`, saved whenever it is measured; RUN/best leads to the first
    best_by: str = "val_loss"  # a number as TensorBoard calls it: val_loss, fid/inception, ...
    best_is: Literal["lowest", "highest"] = "lowest"
    stop_within: float = 0.0  # seconds from SIGTERM to the machine's end: a save that would last longer is left out
    spike: float = 6.0  # robust z at which a step's loss is noted with its samples, the checkpoint before it kept
    stall_after: float = 600.0  # seconds without the end of a step, after which a process says where it is stuck
    async_save: bool = False  # checkpoints are written while training goes on, of a copy in the host's memory
    tensorboard: bool = False
    watts: float = 0.0  # taken by all devices together, as you state it; 0: measured where the machine tells
    pue: float = 1.0  # what the building takes for every kWh of its computers
    grams_per_kwh: float = 0.0  # of CO2, the grid's carbon intensity; 0: not stated

    def __post_init__(self) -> None:
        least = {"every": 1, "keep": 1, "preview_every": 0, "checkpoint_every": 0, "evaluate_every": 0}
        least |= {"keep_best": 0, "stop_within": 0, "spike": 0, "stall_after": 0}
        for name, low in {**least, "watts": 0, "pue": 1, "grams_per_kwh": 0}.items():
            if getattr(self, name) < low:
                raise UserError(f"log.{name} must be at least {low}; got {getattr(self, name):g}")


@dataclass(frozen=True)
class ParallelConfig:
    """How the processes of a run part its work: `data` times `shard` times `sequence` times `tensor` is their number.

    A run may go on with other numbers: the sequence of its samples does not depend on them. With `tensor` above 1 all
    weights lie as FSDP2 has them, also where `shard` is 1. It is for transformers, whose heads and hidden channels it
    divides (heads together with `sequence`). Keep its processes within a machine: they exchange sums in every branch.
    """

    data: int = 0  # copies of the weights; 0: as many as there are processes for
    shard: int = 1  # processes that hold a part of each copy (FSDP2); 1: every process holds all of it (DDP)
    sequence: int = 1  # processes that have a part of every sample's tokens each, and of the heads in attention
    tensor: int = 1  # processes that have the same samples and a part of the heads and hidden channels of each block
    offload: bool = False  # what a process holds waits in the memory of the host until a block is at work

    def __post_init__(self) -> None:
        if self.data < 0 or min(self.shard, self.sequence) < 1:
            raise UserError(
                "parallel.shard and parallel.sequence are at least 1, parallel.data too, or 0 for what fits; got "
                f"{self.shard}, {self.sequence} and {self.data}"
            )
        if self.tensor < 1:
            raise UserError(f"parallel.tensor is at least 1; got {self.tensor}")
