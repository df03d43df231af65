"""A source in parts of equal size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import numpy as np

from ..data.base import Record, Source
from ..data.parts import Origin

NAMES = 1000  # names of the source that its digest is made of


class Cut:
    """A source in parts of equal size. One that can only be walked has a `count` when it was."""

    def __init__(self, source: Source | Iterable[Record], size: int):
        self.source: Any = source
        self.size, self.walked = size, not hasattr(source, "__getitem__")
        self.count: int | None = None if self.walked else len(self.source)

    def __iter__(self) -> Iterator[tuple[int, Iterator[tuple[int, Record]]]]:
        """Each part's number, and its pictures with theirs; nothing is opened."""
        if self.walked:
            yield from groupby(self._walk(), key=lambda pair: pair[0] // self.size)
            return
        everyone = range(self.count or 0)
        for number, first in enumerate(everyone[:: self.size]):
            yield number, ((place, self.source[place]) for place in everyone[first : first + self.size])

    def _walk(self) -> Iterator[tuple[int, Record]]:
        count = 0
        for count, record in enumerate(self.source, start=1):
            yield count - 1, record
        self.count = count

    def origin(self, name: str) -> Origin:
        """What is kept of the source, to know it again. A folder that was moved as a whole is still the same."""
        if self.count is None:
            return Origin(name, None, "")
        places = np.unique(np.linspace(0, self.count - 1, min(NAMES, self.count)).astype(int)).tolist()
        names = [self.source[place].name for place in places]
        folder = len(os.path.commonprefix([name.rpartition("/")[0] for name in names]))  # noqa: RUF071 (any will do)
        digest = hashlib.sha256("\n".join(name[folder:] for name in names).encode(errors="surrogateescape"))
        return Origin(name, self.count, digest.hexdigest())
