"""Batches made ahead in a thread, so that the device does not wait for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 60.0  # seconds for the batch that is being made when no more are wanted


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items in the same order, up to `depth` of them made before they are asked for. 0: none."""
    if depth == 0:
        yield from items
        return
    made: queue.Queue = queue.Queue(depth)
    left = threading.Event()

    def put(entry: tuple[str, object]) -> None:
        while not left.is_set():
            try:
                return made.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for one in items:
                put(("item", one))
                if left.is_set():
                    return
            put(("end", None))
        except BaseException as error:  # raised again where the batch is asked for
            put(("error", error))

    thread = threading.Thread(target=make, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "error":
                raise value  # type: ignore[misc]
            if kind == "end":
                return
            yield value  # type: ignore[misc]
    finally:
        left.set()
        thread.join(PATIENCE)  # one that is still at work in torch as Python ends takes the process down with it
