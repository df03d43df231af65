"""Losses that leap, told from the noise of small batches by a robust z-score against the steps before."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

WINDOW = 200  # steps that a loss is held against
LEAST = 50  # of them that must be there
NORMAL = 1.4826  # standard deviation of a normal distribution, in median absolute deviations
BEYOND = 4  # times the second highest z before it that a spike must reach
FADE = 0.5 ** (1 / 1000)  # of the highest z with every step: half of it after a thousand
PINNED = 2  # spikes whose steps are remembered, for the checkpoints before them to be kept (keep.py)


@dataclass(frozen=True)
class Spike:
    """A step whose loss leapt."""

    step: int  # how many steps were done after it
    loss: float
    z: float  # robust standard deviations above the median
    median: float  # of the steps before


class Spikes:
    """Judges every step's loss by the median and the median absolute deviation of up to WINDOW steps before it.

    One spike is told for each time that losses leave: the next one once z was below half the limit again. A function
    of the losses alone, whose memory goes with the checkpoint, so that a run that was stopped tells the same spikes.

    The deviation is that of the middle of the losses and knows nothing of their upper tail, which some weights make
    heavy: with `objective.weight velocity` an error at a time near 0 counts up to 400 times, and one sample lifts the
    mean of 64 to several times the median where most steps lie within a tenth of it. A spike must therefore also be
    BEYOND times as far out as the second highest z before it. One spike does not hide the next, two as high as each
    other hide a third for a while. Of 3,000 steps of `scenes` with a network of width 64 (measured 2026-11-26) seven
    have a z above 6, up to 14.4, and one of them is told.

    Measured by `python bench/spikes.py` on 2026-11-26, on every step's loss of 22 digits runs of a study at learning
    rates up to the best, and of one with batches of 8: 7,008 losses, highest z 3.4, so no false alarm at 6. At twice to
    four times the best rate, where training is unstable, z went from 6.7 to 131.
    """

    def __init__(self, limit: float, before: Mapping[str, Any] | None = None):
        """`limit`: the z of a spike, 0 for none; `before`: what `memory` told when the run was saved."""
        self.limit = limit
        self.losses = deque((before or {}).get("losses", ()), maxlen=WINDOW)
        self.out = bool((before or {}).get("out", False))  # losses left, and are not back yet
        self.highest = list((before or {}).get("highest", (0.0, 0.0)))  # z, fading; the second highest first
        self.told = list((before or {}).get("told", ()))  # steps of the newest spikes

    def see(self, step: int, loss: float) -> Spike | None:
        """Judge the loss of a step, then remember it; one that is no number is neither judged nor remembered."""
        if not self.limit or not math.isfinite(loss):
            return None
        middle = median(self.losses) if self.losses else loss
        z = self.judged(loss)
        if z is None:
            return None
        if z < self.limit / 2:
            self.out = False
        if self.out:
            return None  # of one leap the first step counts
        least = max(self.limit, BEYOND * self.highest[0])
        self.highest = sorted([z, *(FADE * other for other in self.highest)])[1:]
        if z < least:
            return None
        self.out = True
        self.told = [*self.told, step][-PINNED:]
        return Spike(step, loss, z, middle)

    def judged(self, loss: float) -> float | None:
        """The z of a loss by those before it, which it is then one of; None while they are too few."""
        z = None
        if len(self.losses) >= LEAST:
            middle = median(self.losses)
            spread = NORMAL * median(abs(value - middle) for value in self.losses)
            z = (loss - middle) / spread if spread else 0.0  # losses that never vary have no scale to leap by
        self.losses.append(loss)
        return z

    def memory(self) -> dict[str, Any]:
        """What the rest of the run needs to know, as plain data; nothing where spikes are switched off."""
        if not self.limit:
            return {}
        return {"losses": list(self.losses), "out": self.out, "highest": self.highest, "told": self.told}
