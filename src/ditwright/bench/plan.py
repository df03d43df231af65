"""What is measured, and for how long, as a person asked for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..errors import UserError
from .ceilings import PRECISIONS
from .contest import Variant
from .peers import PEERS
from .subject import Subject


@dataclass(frozen=True)
class Plan:
    """Cases by subjects, peers and variants."""

    subjects: Mapping[str, Subject]
    cases: tuple[str, ...] = ("forward", "step")  # CASES
    peers: tuple[str, ...] = PEERS
    precisions: tuple[str, ...] = PRECISIONS
    compiled: bool = False  # each variant compiled too
    blocks: bool = False  # peers that are compiled: block by block, as ours, not as a whole
    graphs: bool = False  # ours sample with CUDA graphs too
    batch_size: int = 4
    steps: int = 50  # of sampling
    first: int = 0  # of those, how many are walked and timed; 0: all
    rounds: int = 5
    seconds: float = 1.0  # of each turn, at least
    sizes: tuple[int, ...] = ()  # that cost is held against, unless the usual ones
    commands: Mapping[str, Callable[[], object]] = field(default_factory=dict)  # whose start is timed; they can be sent
    only: Callable[[str, Variant], bool] | None = None  # of peers and variants, where not all of them

    def __post_init__(self) -> None:
        if min(self.batch_size, self.rounds) < 1 or not 0 < self.seconds < float("inf"):
            raise UserError(
                "--batch-size and --rounds are at least 1, --seconds above 0; "
                f"got {self.batch_size}, {self.rounds}, {self.seconds:g}"
            )
        if not 1 <= self.steps <= 1000:
            raise UserError(f"--num-inference-steps is from 1 to 1000; got {self.steps}")

    def wants(self, peer: str, variant: Variant) -> bool:
        """Whether a peer takes part in some way."""
        return self.only is None or self.only(peer, variant)
