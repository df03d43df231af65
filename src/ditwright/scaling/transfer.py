"""Whether one learning rate serves every width: the loss of each width at each rate, without muP and with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .results import Result
from .study import TRANSFER
from .tables import Table, brief

FEWEST = 3  # rates, for a parabola


@dataclass(frozen=True)
class Sweep:
    """One width's losses by rate. A run that left the numbers is not among them."""

    width: int
    mup: bool
    rates: tuple[float, ...]  # ascending
    losses: tuple[float, ...]  # on held-out data in the end, a mean over seeds

    @property
    def best(self) -> float:
        """The rate of the least loss, between rates by a parabola in the logarithms; the tried one at an end."""
        least = int(np.argmin(self.losses))
        if not 0 < least < len(self.rates) - 1:
            return self.rates[least]
        near = slice(least - 1, least + 2)
        square, slope, _ = np.polyfit(np.log(self.rates[near]), np.log(self.losses[near]), 2)
        return float(np.exp(-slope / (2 * square)))

    @property
    def open(self) -> bool:
        """Whether the best rate may lie beyond those that were tried."""
        return int(np.argmin(self.losses)) in (0, len(self.rates) - 1)

    def loss_at(self, rate: float) -> float | None:
        """The loss at one of the tried rates."""
        return next((loss for tried, loss in zip(self.rates, self.losses, strict=True) if tried == rate), None)


def sweeps(results: Iterable[Result]) -> list[Sweep]:
    """Every width's, those without muP first."""
    found: dict[tuple[bool, int], dict[float, list[float]]] = {}
    for run in (result for result in results if result.role == TRANSFER):
        mup, rate = run.rate
        found.setdefault((mup, run.facts["width"]), {}).setdefault(rate, []).append(run.loss)
    made = []
    for (mup, width), by_rate in sorted(found.items()):
        rates, losses = zip(*sorted((rate, float(np.mean(values))) for rate, values in by_rate.items()), strict=True)
        made.append(Sweep(width, mup, rates, losses))
    return made


def drift(found: Iterable[Sweep], mup: bool) -> float | None:
    """How many times the largest of the widths' best rates is the least; None for fewer than two widths."""
    best = [sweep.best for sweep in found if sweep.mup == mup]
    return max(best) / min(best) if len(best) > 1 else None


def sweep_table(found: Iterable[Sweep], base: float) -> Table:
    """Each width's best rate, and what the base rate costs it."""
    rows = []
    for sweep in found:
        least, kept = min(sweep.losses), sweep.loss_at(base)
        rows.append(
            (
                f"width {sweep.width}, {'muP' if sweep.mup else 'standard'}",
                brief(sweep.best) + (" or beyond" if sweep.open else ""),
                brief(least),
                brief(kept),
                "-" if kept is None else f"{100 * (kept / least - 1):+.1f}%",
            )
        )
    return Table(("network", "best rate", "least loss", f"loss at {brief(base)}", "over the least"), rows)
