"""Runners for training: how blocks run, without a word of it in the network."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..nn.branch import Context, Streams


def checkpointed(blocks: Iterable[nn.Module], xs: Streams, ctx: Context, *, count: int | None = None) -> Streams:
    """Keep only each block's input and compute the rest again when going back (Chen et al. 2016).

    `count`: of so many blocks, None for all. Of the first: when the way back comes to them, what the others kept is
    free, and makes room for the one that is whole again.
    """
    for place, block in enumerate(blocks):
        again = count is None or place < count
        xs = checkpoint(block, xs, ctx, use_reentrant=False, preserve_rng_state=False) if again else block(xs, ctx)
    return xs
