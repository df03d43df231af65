"""Batches made ahead in a thread, so that the device does not wait for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from ..rng import Draws
from .fit import Batch

T = TypeVar("T")
PATIENCE = 60.0  # seconds for the batch that is being made when no more are wanted


class Made(Draws):
    """The same draws, of which a loss's first ones are there: `uniform`, then `normal` with the shape of `like`.

    A CPU draws them sample by sample, while a GPU would do nothing.
    """

    def __init__(self, draws: Draws, like: Tensor):
        super().__init__(draws.seed, (), draws.stream)
        self.indices, self.generators, self.made = draws.indices, draws.generators, list[Tensor]()
        self.made = [super().uniform(), super().normal(like)]

    def uniform(self) -> Tensor:
        return self.made.pop(0) if self.there(2) else super().uniform()

    def normal(self, like: Tensor) -> Tensor:
        return self.made.pop(0).to(like) if self.there(1, like.shape) else super().normal(like)

    def there(self, left: int, shape: tuple[int, ...] | None = None) -> bool:
        """Whether what is asked for was made; where something else was, it is as if nothing had been."""
        if len(self.made) == left and shape in (None, self.made[0].shape):
            return True
        if self.made:
            plain = self.again()
            if len(self.made) == 1:
                plain.uniform()
            self.generators, self.made = plain.generators, []
        return False


def loaded(batches: Iterator[Batch], depth: int, device: torch.device) -> Iterator[Batch]:
    """Batches of a device, made `ahead`: on a GPU on a stream of their own, so that they need not wait for steps."""
    if device.type != "cuda":
        yield from ahead(batches, depth)
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # the codec's weights are on their way
    for batch, made in ahead(_beside(batches, stream), depth):
        here = torch.cuda.current_stream(device)
        here.wait_event(made)
        for tensor in (batch.x0, *batch.cond.values(), *getattr(batch.draws, "made", ())):
            if tensor.device.type == "cuda":
                tensor.record_stream(here)  # its memory is not given away before the step is through with it
        yield batch


def _beside(batches: Iterator[Batch], stream: torch.cuda.Stream) -> Iterator[tuple[Batch, torch.cuda.Event]]:
    """Each made on a stream, and the event that it is."""
    while True:
        with torch.cuda.stream(stream):  # of this thread, and of its device
            batch = next(batches, None)
        if batch is None:
            return
        yield batch, stream.record_event()


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
