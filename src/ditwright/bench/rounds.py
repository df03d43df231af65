"""Timing in turns, so that a busy moment slows all; ratios of what was timed beside each other, or none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

Work = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)

FEW = 3  # rounds below which there is no spread to speak of
MANY = 9  # rounds from which on the spread is that of the middle half


@dataclass(frozen=True)
class Ratio:
    """Of two contestants: the median over rounds of the ratio in each, and how far it spreads."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> str:
        """What low and high are."""
        return "quartiles" if self.rounds >= MANY else "min and max"

    @property
    def told(self) -> float | None:
        """The ratio; None where the spread swallows it: there are too few rounds, or 1 lies within."""
        return None if self.rounds < FEW or self.low <= 1 <= self.high else self.median

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        swallowed = "" if self.told is not None else "not told: the spread swallows it"
        return {"told": self.told, "why_not": swallowed, "spread": [self.low, self.high], "spread_is": self.spread}


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """over / under, two sequences of times of the same rounds."""
    each = [a / b for a, b in zip(over, under, strict=True)]
    if len(each) >= MANY:
        low, _, high = statistics.quantiles(each, n=4, method="inclusive")
    else:
        low, high = min(each), max(each)
    return Ratio(statistics.median(each), low, high, len(each))


def in_turns(
    works: Mapping[Key, Work],
    device: torch.device,
    *,
    rounds: int,
    seconds: float,
    tell: Callable[[str], object] = str,
    late: Callable[[], bool] = lambda: False,
    falls: Callable[[Key, Work], object] = lambda key, turn: turn(),
) -> dict[Key, list[float]]:
    """Seconds of a call in each round: everything has a turn in each, of `seconds` at least, in the opposite order of
    the round before.

    `late`: asked after FEW rounds and more; where it is so there are no further ones. `falls`: does a turn, and tells
    whether that contestant falls out: it has no further turns, and is not in what is found.
    """

    def turn(key: Key) -> None:
        found[key].append(seconds_of(works[key], device, seconds))

    found: dict[Key, list[float]] = {key: [] for key in works}
    for number in range(rounds):
        if number >= FEW and late():
            break
        for key in list(found)[:: -1 if number % 2 else 1]:
            if falls(key, partial(turn, key)):
                del found[key]
            tell(f"round {number + 1} of {rounds}")
    return found


def seconds_of(work: Work, device: torch.device, seconds: float = 0.0) -> float:
    """How long a call takes: the mean over `seconds` or of one, whichever is longer."""
    wait(device)
    start, number, passed = time.perf_counter(), 0, 0.0
    while not number or passed < seconds:
        work()
        wait(device)
        number, passed = number + 1, time.perf_counter() - start
    return passed / number


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
