"""Runners for training: how blocks run, without a word of it in the network."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..nn.branch import Context, Streams


def checkpointed(blocks: Iterable[nn.Module], xs: Streams, ctx: Context) -> Streams:
    """Keep only each block's input and compute the rest again when going back (Chen et al. 2016)."""
    for block in blocks:
        xs = checkpoint(block, xs, ctx, use_reentrant=False, preserve_rng_state=False)
    return xs
