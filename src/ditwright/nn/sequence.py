"""Sequence parallelism: processes have a part of every sample's tokens each, and in attention a part of its heads.

Between the two, tokens are exchanged for heads and back (DeepSpeed-Ulysses, Jacobs et al. 2023, Sec. 3). It is a
runner, so no network shows anything of it: `net(x, t, cond, run=InParts(group))` gives every process the whole output.

B batch, H heads, L tokens, P processes, l tokens of one (L / P, rounded up), M context tokens, D width, d head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .attention import attend
from .branch import Context, Runner, Streams, run_all
from .position import Rope
from .tokens import Tokens


@dataclass(frozen=True)
class InParts:
    """Runs blocks on this process's part of every stream, and puts the streams together again.

    All processes of `group` call it with the same streams and context, and each has all of what comes out. Gradients
    are to be averaged over the group, as DDP and FSDP do: their mean is the gradient of one process alone. Streams that
    the number of processes does not divide are filled up with tokens that nobody attends to, at the price of a mask.
    """

    group: dist.ProcessGroup
    run: Runner = run_all  # of the blocks, on this process's part

    def __call__(self, blocks: Iterable[nn.Module], xs: Streams, ctx: Context) -> Streams:
        parts, rank = self.group.size(), self.group.rank()
        part = partial(part_of, parts=parts, rank=rank)
        masks, cross = real(xs, ctx.mask, parts), ctx.cross
        if cross is not None:
            there = real([cross.x], cross.mask, parts)
            cross = Tokens(part(cross.x), part(cross.pos), None if there is None else part(there[0]))
        mine = replace(
            ctx,
            rope=tuple(None if rope is None else Rope(*(part(turn, dim=2) for turn in rope)) for rope in ctx.rope),
            mask=None if masks is None else torch.cat([part(mask) for mask in masks], 1),
            cross=cross,
            attend=partial(attend_by_heads, group=self.group, attend=ctx.attend),
        )
        found = self.run(blocks, tuple(part(x) for x in xs), mine)
        return tuple(whole(y, self.group)[:, : x.shape[1]] for x, y in zip(xs, found, strict=True))


def part_of(x: Tensor, *, parts: int, rank: int, dim: int = 1) -> Tensor:
    """One of so many equal parts of an axis, filled up with zeros at its end."""
    fill = -x.shape[dim] % parts
    if fill:
        x = F.pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, fill))
    return x.chunk(parts, dim)[rank]


def real(xs: Sequence[Tensor], mask: Tensor | None, parts: int) -> Sequence[Tensor] | None:
    """Which tokens of streams (B, L, D) are real, (B, L) each; None where all are, and none will have to be added."""
    if mask is not None:
        return mask.split([x.shape[1] for x in xs], 1)
    whole = all(x.shape[1] % parts == 0 for x in xs)
    return None if whole else [torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) for x in xs]


def attend_by_heads(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, group: dist.ProcessGroup, attend: Any = attend
) -> Tensor:
    """`attend` of processes with a part of the tokens each: q (B, H, l, d), k and v (B, H, m, d), mask (B, m).

    Each attends with H / P heads to the tokens of all. UserError where the processes do not divide the heads.
    """
    if q.shape[1] % group.size():
        raise UserError(
            f"sequence parallelism gives each process as many heads: {q.shape[1]} are not divisible by {group.size()}"
        )
    if q.shape == k.shape:
        q, k, v = to_heads(torch.cat((q, k, v), -1), group).chunk(3, -1)  # (B, H / P, L, d) each
    else:
        q, (k, v) = to_heads(q, group), to_heads(torch.cat((k, v), -1), group).chunk(2, -1)
    if mask is not None:
        mask = whole(mask[..., None].to(torch.uint8), group)[..., 0].bool()  # (B, M), in the order of the keys
    return to_tokens(attend(q, k, v, mask), group)


def to_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All heads of some tokens for all tokens of some heads: (B, H, l, d) -> (B, H / P, L, d)."""
    x = x.unflatten(1, (group.size(), -1)).movedim(1, 0)  # (P, B, H / P, l, d)
    return exchanged(x, group).movedim(0, 2).flatten(2, 3)


def to_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The way back: (B, H / P, L, d) -> (B, H, l, d)."""
    x = x.unflatten(2, (group.size(), -1)).movedim(2, 0)  # (P, B, H / P, l, d)
    return exchanged(x, group).movedim(0, 1).flatten(1, 2)


def whole(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The parts of all processes, one after the other: (B, l, D) -> (B, L, D)."""
    found = exchanged(x.expand(group.size(), *x.shape), group)  # (P, B, l, D)
    return found.movedim(0, 1).flatten(1, 2)


def exchanged(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(P, ...): the i-th goes to process i; what comes is in the order of the processes. Gradients go back likewise."""
    return Exchange.apply(x, group)  # type: ignore[no-untyped-call]


class Exchange(torch.autograd.Function):
    """`exchanged`, for autograd: undone by being done again, and so is its transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        """Sends x[i] to process i."""
        ctx.group = group
        x = x.contiguous()
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Sends every gradient to where its numbers came from."""
        return exchanged(grad, ctx.group), None
