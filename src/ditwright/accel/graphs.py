"""A CUDA graph of all blocks: a step of a sampler launches one thing in place of some thousand kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.branch import Context, Streams, run_all

Work = Callable[[], Streams]
Capture = Callable[[Work], tuple[Callable[[], object], Streams]]
MOST = 8  # shapes that have a graph; each keeps the memory that the blocks need
WARM = 3  # runs before one is captured: kernels are chosen, compiled and given their memory in the first ones


class Graphed:
    """A Runner of one network: what its blocks do is captured once for every shape that comes, then replayed.

    Shapes past MOST run as they are. `capture` makes some work something to replay: that, and where its results lie
    after each time.
    """

    def __init__(self, capture: Capture | None = None):
        self.capture, self.lock = capture or captured, threading.Lock()  # threads that share a network share its graphs
        self.graphs: dict[Any, tuple[Any, Callable[[], object], Streams]] = {}

    def __call__(self, blocks: Iterable[nn.Module], xs: Streams, ctx: Context) -> Streams:
        # What is kept is written to again, whether under inference mode or not.
        with self.lock, torch.cuda.device_of(xs[0]), torch.inference_mode(False), torch.no_grad():
            return self.replayed(blocks, xs, ctx)

    def replayed(self, blocks: Iterable[nn.Module], xs: Streams, ctx: Context) -> Streams:
        """What the blocks give."""
        given = list(leaves((xs, ctx)))
        shape = tuple((one.shape, one.dtype) if isinstance(one, Tensor) else one for one in given)
        if shape not in self.graphs:
            if len(self.graphs) == MOST:
                return run_all(blocks, xs, ctx)
            kept = filled_in((xs, ctx), (one.clone() if isinstance(one, Tensor) else one for one in given))
            self.graphs[shape] = (kept, *self.capture(lambda: run_all(blocks, *kept)))
        kept, replay, out = self.graphs[shape]
        for place, one in zip(leaves(kept), given, strict=True):
            if isinstance(one, Tensor):
                place.copy_(one)
        replay()
        return tuple(x.clone() for x in out)  # the next replay writes there


def captured(work: Work) -> tuple[Callable[[], object], Streams]:
    """A CUDA graph of some work on the current stream."""
    here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
    beside.wait_stream(here)
    with torch.cuda.stream(beside):
        for _ in range(WARM):
            work()
    here.wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()
    return graph.replay, out


def leaves(thing: Any) -> Iterator[Any]:
    """What tuples and dataclasses hold, within each other too, in order."""
    parts = [getattr(thing, field.name) for field in fields(thing)] if is_dataclass(thing) else thing
    if isinstance(parts, (tuple, list)):
        for part in parts:
            yield from leaves(part)
    else:
        yield thing


def filled_in(thing: Any, others: Iterator[Any]) -> Any:
    """The same with other leaves."""
    if isinstance(thing, tuple):
        parts = [filled_in(part, others) for part in thing]
        return type(thing)(*parts) if hasattr(thing, "_fields") else tuple(parts)  # a named tuple, such as Rope
    if is_dataclass(thing):
        return replace(thing, **{field.name: filled_in(getattr(thing, field.name), others) for field in fields(thing)})
    return next(others)
