"""One of two sets of pictures as the metrics see it: statistics of all of it, features of as many as are kept.

Pictures stream through the extractor a batch at a time; several processes take whole batches each, so that a picture
has the same neighbours, and with them the same last digits, whatever their number.

N pictures, K of them kept, B batch, D features, S splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..data.base import spread
from ..errors import UserError
from ..metrics.features import Extractor, Features
from ..metrics.score import Score
from ..metrics.statistics import Moments, total_over_processes
from ..train.parallel import World
from .pictures import Images

MOMENTS, KEPT, SPLITS = "moments", "kept", "splits"
Need = tuple[str, str]  # one of those, and of which part of Features: pool, spatial or probabilities
MOST_KEPT = 50_000
ROWS = 1024  # features that join the moments together
PARTS_OF_SCORE = 10  # of an Inception Score
Watch = Callable[[str, int, int], None]  # (name of the set, pictures seen by this process, pictures that it will see)


@dataclass(frozen=True, eq=False)
class Side:
    """What is known of a set."""

    name: str
    extractor: str = ""  # what made the features, where known
    count: int | None = None  # pictures, where known
    size: tuple[int, int] | None = None  # their height and width, where known
    parts: Mapping[Need, Any] = field(default_factory=dict)  # a Gaussian, features (K, D), or S Scores
    images: Images | None = None  # from which the rest can be had
    origin: Mapping[str, Any] = field(default_factory=dict)  # the settings that drew it, where known

    def __getitem__(self, need: Need) -> Any:
        return self.parts[need]


def nothing(name: str, done: int, total: int) -> None:
    """Watch no progress."""


@dataclass(frozen=True)
class Reading:
    """How pictures are gone through."""

    world: World  # the processes that share them
    keep: int = MOST_KEPT  # features of at most so many pictures are kept, evenly spread
    batch_size: int = 64
    watch: Watch = nothing


def share(count: int, batch_size: int, world: World) -> range:
    """The pictures of this process: whole batches, neighbours."""
    batches = -(-count // batch_size)
    begin, end = (min(count, batches * rank // world.size * batch_size) for rank in (world.rank, world.rank + 1))
    return range(begin, end)


def collect(images: Images, extractor: Extractor, needs: AbstractSet[Need], reading: Reading) -> Side:
    """See every picture once and keep what is needed of it: memory grows with `keep`, not with the pictures.

    Statistics are those of all processes' pictures on each of them; features are together on the main one alone.
    UserError where the extractor gives NaN.
    """
    first = images.first()
    places = share(images.count, reading.batch_size, reading.world)
    kept = spread(images.count, reading.keep)
    low, high = np.searchsorted(kept, [places.start, places.stop])
    collector = Collector(images.count, kept[low:high], needs, sample=extractor(first), extractor=extractor.name)
    for start, found in _features(images, extractor, places, reading.batch_size):
        collector.add(start, found)
        reading.watch(images.name, start + len(found.pool) - places.start, len(places))
    parts = collector.whole(reading.world)
    height, width = first.shape[1:3]
    return Side(images.name, extractor.name, images.count, (height, width), parts, images, images.origin)


def offered(extractor: Extractor, picture: np.ndarray) -> set[str]:
    """Which parts of Features it makes of a picture (1, H, W, C)."""
    found = extractor(picture)
    return {part for part in ("pool", "spatial", "probabilities") if getattr(found, part) is not None}


class Collector:
    """The parts of a side while they are gathered by one process."""

    def __init__(self, count: int, kept: np.ndarray, needs: AbstractSet[Need], *, sample: Features, extractor: str):
        """`count` pictures in all; `kept`: the numbers of those whose features this process keeps."""
        widths = {of: getattr(sample, of).shape[1] for _, of in needs}
        self.count, self.kept = count, kept
        self.moments = {of: Moments(widths[of], extractor) for what, of in needs if what == MOMENTS}
        self.rows = {of: np.empty((len(kept), widths[of]), np.float32) for what, of in needs if what == KEPT}
        self.splits = {of: [Score(widths[of]) for _ in range(PARTS_OF_SCORE)] for what, of in needs if what == SPLITS}

    def add(self, start: int, found: Features) -> None:
        """Take in the features of pictures from number `start` on."""
        stop = start + len(found.pool)
        for of, moments in self.moments.items():
            moments.update(getattr(found, of))
        low, high = np.searchsorted(self.kept, [start, stop])
        for of, rows in self.rows.items():
            rows[low:high] = getattr(found, of)[self.kept[low:high] - start]
        for of, splits in self.splits.items():
            ends = [max(start, min(stop, i * self.count // len(splits))) - start for i in range(len(splits) + 1)]
            for i, score in enumerate(splits):
                score.update(getattr(found, of)[ends[i] : ends[i + 1]])

    def whole(self, world: World) -> dict[Need, Any]:
        """The parts of all processes' pictures."""
        alone, device = world.size == 1, world.device
        parts: dict[Need, Any] = {}
        for of, moments in sorted(self.moments.items()):  # in one order, for the processes meet here
            parts[MOMENTS, of] = (moments if alone else moments.over_processes(device)).gaussian()
        for of, rows in sorted(self.rows.items()):
            parts[KEPT, of] = rows if alone else gathered(rows, world)
        for of, splits in sorted(self.splits.items()):
            parts[SPLITS, of] = tuple(score if alone else score.over_processes(device) for score in splits)
        return parts


def gathered(rows: np.ndarray, world: World) -> np.ndarray:
    """Every process's rows (K, D) one after the other, on the main process; its own on the others."""
    counts = np.zeros(world.size)
    counts[world.rank] = len(rows)
    counts = total_over_processes(counts, world.device).astype(int)
    padded = torch.zeros(int(counts.max()), rows.shape[1], device=world.device)
    padded[: len(rows)] = torch.from_numpy(rows)
    parts = [torch.empty_like(padded) for _ in counts] if world.main else None
    dist.gather(padded, parts)
    if parts is None:
        return rows
    return np.concatenate([part[:count].cpu().numpy() for part, count in zip(parts, counts, strict=True)])


def _features(images: Images, extractor: Extractor, places: range, batch_size: int) -> Iterator[tuple[int, Features]]:
    """Features of some pictures, about ROWS at a time, with the number of the first."""
    start, held, waiting = places.start, 0, list[Features]()
    for batch in images.batches(batch_size, places.start, places.stop):
        found = extractor(batch)
        _check_finite(found, extractor, images, start + held)
        waiting.append(found)
        held += len(batch)
        if held >= ROWS:
            yield start, _joined(waiting)
            start, held, waiting = start + held, 0, []
    if waiting:
        yield start, _joined(waiting)


def _joined(several: list[Features]) -> Features:
    return Features(*(_stacked([getattr(one, of) for one in several]) for of in ("pool", "spatial", "probabilities")))


def _stacked(arrays: list[Any]) -> Any:
    return None if arrays[0] is None else np.concatenate(arrays)


def _check_finite(found: Features, extractor: Extractor, images: Images, start: int) -> None:
    for of in ("pool", "spatial", "probabilities"):
        rows = getattr(found, of)
        if rows is not None and not (finite := np.isfinite(rows).all(1)).all():
            number = start + int(finite.argmin())
            raise UserError(f"{extractor.name} gives NaN or infinite features for picture {number} of {images.name!r}")
