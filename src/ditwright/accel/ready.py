"""A denoiser made ready to sample: nothing is computed twice that need not be. The network's own code stays as it is.

B batch, R rows, D width, N numbers that the blocks take from the condition together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.process import Cond, Denoiser
from ..diffusion.target import Prediction
from ..dtypes import DTYPES
from ..errors import UserError, lookup
from ..model.dit import DiT
from ..nn.branch import Context, FeedLane, Runner, Streams, run_all
from ..nn.modulation import AdaLN, AdaLNZero
from .compiling import compile_blocks
from .graphs import Graphed
from .linear import Filled, LaidOut
from .modulation import Gathered, Share
from .swap import sharing, swap

AHEAD = 128  # rows of the condition for which the blocks' numbers are kept: of XL/2 50 MB in bfloat16
BATCHES = 4  # of different conditions for which they are


def ready(denoiser: Denoiser, precision: str = "fp32", *, compiled: bool = False, graphs: bool = False) -> Denoiser:
    """A copy laid out for sampling on the device that it is on; weights that stay as they are, the two share.

    `precision`: of matrix products within the blocks, "fp32", "bf16" or "fp16"; all else stays in fp32. `compiled`:
    each block by torch.compile. `graphs`: all blocks as one CUDA graph (`graphs.Graphed`). UserError for what is not
    there: it is never done without.
    """
    dtype = lookup("precision", precision, DTYPES)
    if isinstance(denoiser, Ready):
        raise UserError("this denoiser is laid out for sampling already; make another of the one it came from")
    if graphs and not isinstance(denoiser.net, DiT):
        raise UserError("graphs are of a transformer's blocks, and this network is a U-Net; leave them out")
    if graphs and next(denoiser.parameters()).device.type != "cuda":
        raise UserError("graphs are of a GPU with CUDA, and this network is on the CPU; leave them out")
    if not isinstance(denoiser.net, DiT):
        cast = copy.deepcopy(denoiser).to(dtype).eval()
        if compiled:
            compile_blocks(cast.net.blocks)
        return cast
    made = sharing(denoiser)
    gathered = gather(made.net, dtype)
    swap(made.net.blocks, partial(laid_out, dtype=dtype))
    swap(made.net, lambda layer: Filled.of(layer) if type(layer) is nn.Linear else None)
    if compiled:
        compile_blocks(place.block for place in made.net.blocks)
    return Ready(made, gathered, run=Graphed() if graphs else run_all).eval()


def along(denoiser: Denoiser, times: Tensor) -> Denoiser:
    """A denoiser for one walk of a sampler, which will ask it for times (N,) in order."""
    return denoiser.along(times) if isinstance(denoiser, Ready) else denoiser


def gather(net: DiT, dtype: torch.dtype) -> Gathered | None:
    """Takes what the norms of all blocks regress from the condition out of them; None where they regress nothing."""
    linears: list[nn.Linear] = []
    numbers = 0
    for place, block in enumerate(net.blocks):
        within = 0  # places are counted within a block, so that all blocks of a kind are one code to torch.compile

        def share(layer: nn.Module) -> nn.Module | None:
            nonlocal within
            if not isinstance(layer, (AdaLN, AdaLNZero)):
                return None
            linears.append(layer.lin)
            within += layer.lin.out_features
            return Share(layer, within - layer.lin.out_features, dtype)

        swap(block, share)
        net.blocks[place] = Within(block, numbers, numbers + within)
        numbers += within
    return Gathered(linears, dtype) if linears else None


def laid_out(layer: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """What takes a layer's place within a block."""
    if type(layer) is FeedLane:
        return HiddenLane(layer, dtype)
    return LaidOut(layer, dtype) if type(layer) is nn.Linear else None


class HiddenLane(nn.Module):
    """A FeedLane whose first product and GELU are one."""

    def __init__(self, lane: FeedLane, dtype: torch.dtype):
        super().__init__()
        self.mod = lane.mod
        self.fc1, self.fc2 = LaidOut(lane.fc1, dtype, gelu=True), LaidOut(lane.fc2, dtype)

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        h, gate = self.mod(x, vec)
        return gate * self.fc2(self.fc1(h))


class Within(nn.Module):
    """A block that is told its own share of what all of them take from the condition, (B, N)."""

    def __init__(self, block: nn.Module, start: int, stop: int):
        super().__init__()
        self.block, self.start, self.stop = block, start, stop

    def forward(self, xs: Streams, ctx: Context) -> Streams:
        if self.stop > self.start:
            ctx = replace(ctx, vec=ctx.vec[:, self.start : self.stop])
        return self.block(xs, ctx)


class Ready(Denoiser):
    """A denoiser laid out for sampling by `ready`. It has the weights of the one that it was made of, in part."""

    rows = 1  # of a batch, at least: few vectors are filled up where they occur, and not the whole batch

    def __init__(
        self, denoiser: Denoiser, gathered: Gathered | None, times: Tensor | None = None, run: Runner = run_all
    ):
        super().__init__(denoiser.net, denoiser.process)
        self.gathered, self.times, self.run = gathered, times, run
        self.seen: list[tuple[Cond, dict[float, Tensor]]] = []

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """UserError: some of the weights are no more what they were."""
        raise UserError("a denoiser that is laid out for sampling cannot be saved; save the one that it was made of")

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        raise UserError("a denoiser is laid out for the device it is on; move it, or change its type, before")

    def along(self, times: Tensor) -> Ready:
        """The same for one walk of a sampler, times (N,): the blocks' numbers of many steps are one product."""
        return Ready(self, self.gathered, times, self.run).eval()

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor, cond: Cond | None = None, run: Runner = run_all) -> Prediction:  # type: ignore[override]
        """As the denoiser's own."""
        run = self.run if run is run_all else run
        if self.gathered is None:
            return super().forward(x_t, t, cond, run=run)
        known = self.known(t, cond or {}) if t.ndim == 0 and self.times is not None else None

        def told(blocks: Iterable[nn.Module], xs: Streams, ctx: Context) -> Streams:
            numbers = self.gathered(ctx.vec) if known is None else known
            return run(blocks, xs, replace(ctx, vec=numbers.to(ctx.vec.dtype)))

        return super().forward(x_t, t, cond, run=told)

    def known(self, t: Tensor, cond: Cond) -> Tensor | None:
        """The blocks' numbers (B, N) for one of the sampler's times, and those of the times after it; or None."""
        assert self.times is not None
        assert self.gathered is not None
        tables = next((tables for one, tables in self.seen if one is cond), None)
        if tables is None:
            if len(self.seen) == BATCHES:
                return None
            self.seen.append((cond, tables := {}))
        if t.item() not in tables:
            places = (self.times == t).nonzero()
            if not len(places):
                return None  # a sampler that asks between its steps
            net, rest = self.net, [embed(cond[name]) for name, embed in self.net.vectors.items()]
            count = len(rest[0]) if rest else 1
            coming = self.times[places[0, 0] :][: max(1, AHEAD // count)].to(next(net.parameters()).device)
            vec = net.time(self.process.label(coming).float())[:, None]  # (steps, 1, D)
            for one in rest:
                vec = vec + one
            numbers = self.gathered(vec.flatten(0, 1)).unflatten(0, vec.shape[:2])
            tables.clear()
            tables.update(zip(coming.tolist(), numbers, strict=True))
        return tables[t.item()]
