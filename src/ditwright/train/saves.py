"""A checkpoint that is written while training goes on: one at most, finished before the next one and before leaving."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType


class Saves:
    """The writing of checkpoints, at once or in a thread. As a context: left when nothing is being written any more."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "save")
        self._flying: Future[None] | None = None
        self.seconds = 0.0  # that the last one took

    def start(self, write: Callable[[], None], *, later: bool) -> None:
        """Write, now or in the background, where what goes wrong is raised by the next `finish`."""
        began = time.monotonic()

        def timed() -> None:
            write()
            self.seconds = time.monotonic() - began

        self.finish()
        if later:
            self._flying = self._pool.submit(timed)
        else:
            timed()

    def finish(self) -> None:
        """Wait until what is being written is there."""
        flying, self._flying = self._flying, None
        if flying is not None:
            flying.result()

    def __enter__(self) -> Saves:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        elif self._flying is not None:
            wait([self._flying])  # what is on its way out is told, and not what went wrong besides
