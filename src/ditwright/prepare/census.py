"""Pictures counted: how many of each size, and which are left out."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tqdm import tqdm

from ..data.base import Record, Source
from ..data.buckets import Buckets, Dropped
from ..data.images import Unreadable, size_of
from ..data.parts import Part, Skipped
from .config import PrepareConfig, Size
from .cut import Cut
from .encode import in_order, skipped, threads
from .place import Place

LINES = 50  # sizes in the table


@dataclass
class Census:
    """How many pictures there are of each size, and which are left out, in the order of the source."""

    sizes: Counter[Size]
    skipped: list[Skipped]

    @staticmethod
    def begun(buckets: Buckets | None) -> Census:
        """With nothing in it but the buckets that there are."""
        return Census(Counter(dict.fromkeys(buckets.sizes if buckets else (), 0)), [])

    def add(self, part: Part) -> None:
        """Count a part that is done."""
        for tar in part.tars:
            self.sizes[tar.size] += tar.count
        self.skipped += [*part.corrupt, *part.dropped]

    def text(self, examples: int | None = 3) -> str:
        """A table for people; of those left out the first few of each kind, or all."""
        used = sum(self.sizes.values())
        total = used + len(self.skipped)
        share = 100 / max(1, total)
        lines = [f"{total:,} pictures: {used:,} used, {len(self.skipped):,} left out", ""]
        lines += ["height x width   pictures    share"]
        shown = {size for size, _ in self.sizes.most_common(LINES)}
        for (height, width), count in sorted(self.sizes.items()):
            if (height, width) in shown:
                lines += [f"{height:>6} x {width:<6}{count:>10,}  {share * count:5.1f} %"]
        if len(self.sizes) > LINES:
            lines += [f"... and {len(self.sizes) - LINES:,} more sizes"]
        for kind in sorted({one.kind for one in self.skipped}):
            names = [f"  {one.name} {one.reason}" for one in self.skipped if one.kind == kind]
            lines += ["", f"left out, {kind}: {len(names):,} ({share * len(names):.2g} %)", *names[:examples]]
            lines += [f"  ... and {len(names) - examples:,} more"] if examples and len(names) > examples else []
        return "\n".join(lines) + "\n"


def survey(source: Source | Iterable[Record], config: PrepareConfig) -> Census:
    """What `prepare` would make of a source, by headers alone: damage behind a header is not seen."""

    def look(record: Record) -> Size | Skipped:
        try:
            return config.target(*size_of(record.read()))
        except (Unreadable, Dropped, OSError) as error:
            return skipped(record, error)

    found = Census.begun(config.buckets)
    records = (record for _, jobs in Cut(source, config.shard_size) for _, record in jobs)
    with threads(count := config.workers or Place.here().cpus) as pool:
        for one in tqdm(in_order(pool, look, records, 4 * count), unit=" pictures", disable=not sys.stderr.isatty()):
            if isinstance(one, Skipped):
                found.skipped.append(one)
            else:
                found.sizes[one] += 1
    return found
