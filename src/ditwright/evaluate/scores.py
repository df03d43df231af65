"""Numbers that carry what they depend on. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

LEVEL = 0.95  # of intervals


@dataclass(frozen=True)
class Score:
    """One number, the interval beside it, and all that it depends on.

    `facts` has "metric" (the key: "fid", "precision", ...), "extractor", "feature_size", "samples" and "reference"
    (how many of each made this number; None where not known or not used), "samples_from", "reference_from", "drawn"
    (the settings that drew the samples, where known), and what is the metric's own: "k", "splits", "std", ...
    """

    name: str  # as it may be printed
    value: float
    low: float | None  # of the interval; None where none was asked for
    high: float | None
    facts: Mapping[str, Any]

    def __str__(self) -> str:
        return "  ".join(cell for cell in self.columns() if cell)

    def columns(self) -> tuple[str, ...]:
        """Name, number, interval, and where they come from."""
        return self.name, f"{self.value:.5g}", self._interval(), self._provenance()

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        interval = {"low": self.low, "high": self.high, "level": LEVEL}
        return {"name": self.name, "value": self.value, **interval, "facts": dict(self.facts)}

    def _interval(self) -> str:
        return "" if self.low is None else f"[{self.low:.4g}, {self.high:.4g}]"

    def _provenance(self) -> str:
        facts = self.facts
        counts = f"{facts['samples']:,} samples"
        if facts.get("reference_from") is not None:
            known = facts["reference"]
            counts += f" against {'an unknown number' if known is None else f'{known:,}'}"
        own = f", k {facts['k']}" if "k" in facts else ""
        extractor = "" if facts["extractor"] in self.name else f"{facts['extractor']}, "
        drawn = facts.get("drawn")
        return f"{extractor}{counts}{own}" + (f"; {drawing(drawn)}" if drawn else "")


@dataclass(frozen=True)
class Scores:
    """All numbers of one comparison, by position, or by the metric's key: `scores["fid"].value`."""

    scores: tuple[Score, ...]
    cautions: tuple[str, ...] = ()  # what a person should know before trusting them, a line each

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, key: int | str) -> Score:
        if isinstance(key, int):
            return self.scores[key]
        for score in self.scores:
            if key in (score.facts["metric"], score.name):
                return score
        raise UserError(f"no number {key!r} was measured; there are {', '.join(s.facts['metric'] for s in self)}")

    def text(self) -> str:
        """Every number in a line of its own with all that it depends on, then the cautions."""
        rows = [score.columns() for score in self.scores]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        if any(score.low is not None for score in self.scores):
            lines.append(f"[low, high]: {LEVEL:.0%} intervals, by resampling the samples")
        return "\n".join([*lines, *(f"caution: {line}" for line in self.cautions)])

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"scores": [score.plain() for score in self.scores], "cautions": list(self.cautions)}


def drawing(settings: Mapping[str, Any]) -> str:
    """How samples were drawn, in short, from the settings that lie beside them."""
    guidance = f"guidance {settings['guidance_scale']:g}"
    if settings["guidance_scale"] != 1:
        low, high = settings.get("guidance_interval") or (0, 1)
        guidance += f" on {settings['guidance_channels']} channels" if settings.get("guidance_channels") else ""
        guidance += f" at times {low:g} to {high:g}" if (low, high) != (0, 1) else ""
        guidance += f", rescaled {settings['guidance_rescale']:g}" if settings.get("guidance_rescale") else ""
    weights = f"weights {str(settings.get('weights', ''))[:8]}"
    place = f"{settings['checkpoint']} ({weights})" if settings.get("checkpoint") else weights
    heard = f"prompts of {settings['captions']}, " if settings.get("captions") else ""
    steps = f"{settings['num_inference_steps']} steps"
    return f"{settings['sampler']}, {steps}, {guidance}, {heard}seed {settings['seed']}, {place}"
