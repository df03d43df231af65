"""Whether pictures of scenes show what their captions say, by number of things, read back from pixels by a rule.

N pictures, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from ..data.scene_reader import check
from ..errors import UserError
from .pictures import Images, images_from
from .scores import LEVEL

ATTRIBUTES = ("count", "size", "colour", "shape", "relation")
READ = 64  # pictures that are looked at together

Flags = Mapping[str, bool]  # of one picture, as `check` gives them


@dataclass(frozen=True)
class Share:
    """How much of something was right, with an interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


@dataclass(frozen=True)
class Row:
    """Captions of so many things. Of size, colour, shape and relation the share is over all things (or relations)."""

    objects: int | None  # None: all captions together
    n: int  # captions
    sentence: Share  # all right
    count: Share
    size: Share
    colour: Share
    shape: Share
    relation: Share | None  # None where there are none


@dataclass(frozen=True)
class Fidelity:
    """A row for each number of things, in order, and one for all captions: `table[2].sentence.value`."""

    rows: tuple[Row, ...]

    def __getitem__(self, objects: int | None) -> Row:
        for row in self.rows:
            if row.objects == objects:
                return row
        raise UserError(f"no caption has {objects} things; there are rows of {[row.objects for row in self.rows]}")

    def text(self) -> str:
        """The table, and what its intervals are."""
        heads = ("things", "pictures", "sentence", *ATTRIBUTES)
        cells = [[str(row.objects or "all"), f"{row.n:,}"] for row in self.rows]
        for line, row in zip(cells, self.rows, strict=True):
            line += ["-" if (share := getattr(row, name)) is None else str(share) for name in heads[2:]]
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        lines = [
            "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in (heads, *cells)
        ]
        return "\n".join([*lines, f"[low, high]: {LEVEL:.0%} intervals (Wilson), by the number of pictures"])

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"level": LEVEL, "rows": [asdict(row) for row in self.rows]}


def fidelity(
    captions: Sequence[str], pictures: np.ndarray | Images, *, watch: Callable[[int], Any] = lambda done: None
) -> Fidelity:
    """How much of N captions is true of pictures (N, H, W, 3) uint8, one each. Grey ones may have one channel.

    `watch(n)`: so many are looked at. UserError for captions that are not of scenes, and pictures that are not square.
    """
    images = images_from(pictures)
    if len(captions) != images.count or not captions:
        raise UserError(
            f"prompt fidelity takes 1 picture or more and a caption for each; got {len(captions)} captions and "
            f"{images.count} pictures"
        )
    told: list[Flags] = []
    for batch in images.batches(READ, 0, images.count):
        for picture in np.broadcast_to(batch, (*batch.shape[:3], 3)):
            told.append(check(captions[len(told)], picture))
        watch(len(told))
    objects = [sum(name.startswith("size ") for name in flags) for flags in told]
    rows = [_row(k, [one for one, count in zip(told, objects, strict=True) if count == k]) for k in sorted({*objects})]
    return Fidelity((*rows, _row(None, told)))


def _row(objects: int | None, told: Sequence[Flags]) -> Row:
    def share(attribute: str) -> Share | None:
        flags = [flag for one in told for name, flag in one.items() if name.split()[0] == attribute]
        return wilson(flags, len(told)) if flags else None

    return Row(objects, len(told), **{name: share(name) for name in ("sentence", *ATTRIBUTES)})  # type: ignore[arg-type]


def wilson(flags: Iterable[bool], count: int) -> Share:
    """The share of flags that are set, with Wilson's interval (1927) of `count` independent ones.

    Things of one picture go wrong together: counted by pictures the interval is wide enough, if not the narrowest.
    Unlike a bootstrap's, it does not shrink to nothing where all flags agree.
    """
    share, z = float(np.mean([*flags])), NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
    return Share(share, middle - half if share > 0 else 0.0, middle + half if share < 1 else 1.0)
