"""A contest: who takes part, what all must agree on before any is timed, and what was measured of each.

A contestant that cannot be measured is a row that says why; the others go on.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..extras import first_line
from .rounds import Work, in_turns

WARM = 2  # calls before any is timed
TIME = "time"  # why a row is not measured where the time allowed was used up
LIMITS = {"fp32": 1e-4, "bf16": 2e-2}  # largest relative error of what comes out, by the precision of products

Told = Mapping[str, Tensor]  # what contestants must agree on, by name
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Variant:
    """How a contestant computes. bf16: as ditwright does it; autocast and weights: by torch.autocast, in the weights"""

    precision: Literal["fp32", "bf16", "autocast", "weights"] = "fp32"
    compiled: bool = False
    blocks: bool = False  # compiled block by block, where that is not the only way
    graphs: bool = False  # all blocks as one CUDA graph

    @property
    def products(self) -> str:
        """The precision of its matrix products, fp32 or bf16."""
        return "fp32" if self.precision == "fp32" else "bf16"

    def __str__(self) -> str:
        precision = f"bf16 {self.precision}" if self.precision in ("autocast", "weights") else self.precision
        compiled = ", compiled" * self.compiled + " by blocks" * (self.compiled and self.blocks)
        return precision + compiled + ", graphs" * self.graphs


@dataclass(frozen=True)
class Turn:
    """A contestant that is ready."""

    work: Work = int
    told: Callable[[], Told] = dict  # what is held against the truth


@dataclass(frozen=True)
class Entry:
    """A contestant, and how to make it ready; UserError or RuntimeError where it cannot be done here."""

    peer: str  # ditwright, plain, diffusers
    make: Callable[[], Turn] = Turn
    variant: Variant | None = None  # None: there is only one way
    what: str = ""  # it does, where that differs within a contest
    size: int | None = None  # of what it does, where cost is held against size
    truth: Callable[[], Told] = dict
    samples: float = 1  # of a call
    flops: int | None = None  # of a call; None: they do not tell how long it takes

    def __str__(self) -> str:
        size = "" if self.size is None else f"size {self.size}"
        return ", ".join(part for part in (self.peer, self.what, str(self.variant or ""), size) if part)


@dataclass(frozen=True)
class Contest:
    """What is measured together, in turns."""

    case: str
    subject: str
    entries: Sequence[Entry]
    rounds: int
    seconds: float  # of a turn, at least
    limits: Mapping[str, float] = field(default_factory=lambda: LIMITS)
    warm: int = WARM
    unit: str = ""  # what the sizes of entries count
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else the numbers depend on


@dataclass(frozen=True)
class Row:
    """What was measured of a contestant."""

    entry: Entry
    times: tuple[float, ...] = ()  # seconds of a call in each round
    errors: Mapping[str, float] = field(default_factory=dict)  # relative, against the truth
    why: str = ""  # it was not measured

    @property
    def error(self) -> float | None:
        """The largest."""
        return max(self.errors.values(), default=None)


@dataclass(frozen=True)
class Result:
    """A contest that is over."""

    contest: Contest
    rows: tuple[Row, ...]


def hold(
    contest: Contest, device: torch.device, *, tell: Tell = str, late: Callable[[], bool] = lambda: False
) -> Result:
    """Make all ready and check them; then warm up; then time in turns. `late`: whether the time allowed is used up."""
    rows, turns = dict[int, Row](), dict[int, Turn]()
    where = f"{contest.case}, {contest.subject}"
    for number, entry in enumerate(contest.entries):
        rows[number] = Row(entry, why=TIME) if late() else entered(contest, entry, number, turns)
        tell(f"{where}, {entry}: checked")
    for number in list(turns):
        if why := failure(partial(warmed, turns[number], contest.warm)):
            del turns[number]
            rows[number] = replace(rows[number], why=why)
        tell(f"{where}, {contest.entries[number]}: warm")
    works = {number: turn.work for number, turn in turns.items()}

    def heard(turn: str) -> None:
        tell(f"{where}, {turn}")

    def falls(number: int, turn: Work) -> bool:
        if why := failure(turn):
            rows[number] = replace(rows[number], why=why)
        return bool(why)

    times = in_turns(works, device, rounds=contest.rounds, seconds=contest.seconds, tell=heard, late=late, falls=falls)
    for number, each in times.items():
        rows[number] = replace(rows[number], times=tuple(each))
    return over(contest, rows.values())


def warmed(turn: Turn, times: int) -> None:
    """Work that is not timed."""
    for _ in range(times):
        turn.work()


def over(contest: Contest, rows: Iterable[Row]) -> Result:
    """The result, which holds on to no network."""
    light = tuple(replace(row, entry=replace(row.entry, make=Turn, truth=dict)) for row in rows)
    return Result(replace(contest, entries=()), light)


def entered(contest: Contest, entry: Entry, number: int, turns: dict[int, Turn]) -> Row:
    """The row of a contestant that was checked; it is among the turns if it may be timed."""
    found: dict[str, float] = {}

    def check() -> None:
        turn = entry.make()
        told, truth = turn.told(), entry.truth()
        found.update({name: relative(told[name], truth[name]) for name in told})
        limit = contest.limits[entry.variant.products if entry.variant else "fp32"]
        for name, error in found.items():
            if not error <= limit:
                raise UserError(f"its {name} differs by {error:.1e} from the truth, more than {limit:g}: it is wrong")
        turns[number] = turn

    why = failure(check)
    return Row(entry, errors=found, why=why)


def failure(work: Callable[[], object]) -> str:
    """Why something cannot be done here; empty where it was done."""
    try:
        work()
        return ""
    except (torch.OutOfMemoryError, MemoryError):
        why = "does not fit into memory beside the others; take a smaller batch or fewer peers"
    except UserError as error:
        why = str(error)
    except ModuleNotFoundError as error:
        why = f"the package {error.name!r} is not installed"
    except Exception as error:  # of torch's compiler, its kernels, another version of a package: all become the row
        why = f"{type(error).__name__}: {first_line(error)}"
    gc.collect()  # the frames of the error held its tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return why


def relative(told: Tensor, truth: Tensor) -> float:
    """||told - truth|| / ||truth||"""
    if told.shape != truth.shape:
        return math.inf
    truth = truth.double()
    return (torch.linalg.vector_norm(told.double() - truth) / torch.linalg.vector_norm(truth)).item()
