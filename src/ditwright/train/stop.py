"""SIGTERM and Ctrl-C heard between steps. No torch here."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Asked(list[int]):
    """SIGTERM or SIGINT, once it came."""

    at = math.inf  # time.monotonic() when the first came

    def too_late(self, within: float, takes: float) -> bool:
        """Whether something that takes so many seconds ends later than `within` seconds after it (0: no limit)."""
        return within > 0 and time.monotonic() + takes > self.at + within


@contextmanager
def stop_asked() -> Iterator[Asked]:
    """A list that holds SIGTERM or SIGINT once it came; a second one acts at once, as without us."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only a main thread hears signals
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: object) -> None:
        asked.at = min(asked.at, time.monotonic())
        asked.append(number)
        signal.signal(number, old[number])

    for number in old:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
