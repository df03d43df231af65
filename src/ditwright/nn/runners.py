"""Runners of sampling: which blocks run, without a word of it in the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .branch import Context, Runner, Streams, run_all


@dataclass(frozen=True)
class Without:
    """All blocks but some, by number from 0: a network made worse on purpose, for guidance to lead away from.

    As diffusers' SD3Transformer2DModel does with `skip_layers`: a block left out hands its streams on as they are.
    """

    layers: tuple[int, ...]
    run: Runner = run_all  # of those that are left

    def __call__(self, blocks: Iterable[nn.Module], xs: Streams, ctx: Context) -> Streams:
        return self.run((block for i, block in enumerate(blocks) if i not in self.layers), xs, ctx)
