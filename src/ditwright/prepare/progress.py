"""How far a process is, for people."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from ..train.log import say


class Progress:
    """How far a process is and how long it still takes: a bar, or a line each minute where there is no terminal."""

    def __init__(self, total: int | None, *, shown: bool, unit: str = "pictures"):
        self.total, self.done, self.before = total, 0, 0
        self.begun = self.said = time.monotonic()
        terminal = sys.stderr.isatty()
        self.lines = shown and not terminal
        self.bar = tqdm(total=total, unit=f" {unit}", disable=not (shown and terminal), dynamic_ncols=True)

    def step(self, count: int = 1) -> None:
        """So many more."""
        self.done += count
        self.bar.update(count)
        if self.lines and (now := time.monotonic()) - self.said > 60:
            self.said = now
            say(tqdm.format_meter(self.before + self.done, self.total, now - self.begun, initial=self.before))

    def skip(self, count: int) -> None:
        """Those that were done before: they count, but not for the speed."""
        self.before += count
        if not self.bar.disable:
            self.bar.initial += count
            self.bar.n += count
            self.bar.refresh()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()
