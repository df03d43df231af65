"""Tensor parallelism: the matrices of blocks spread over processes, by a plan for each class of branch.

Attention is parted by heads and MLPs by hidden channels (Shoeybi et al. 2019, Sec. 3), through torch's own
`parallelize_module`. Some matrices are several side by side, such as queries, keys and values: a process has its part
of each, for which their rows are brought into the order of the processes. Norms, modulations, and all that is in no
block stay whole everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from ..errors import UserError
from ..nn.branch import AttentionLane, CrossAttention, FeedLane, SwiGLULane
from ..nn.streams import Parallel, ReadOnlyLane

Parts = Callable[[Any], list[int]]  # of a branch: the sizes of what lies side by side in a matrix


def thirds(branch: Any) -> list[int]:
    """Queries, keys, values."""
    return [branch.qkv.out_features // 3] * 3


def joint(branch: Any) -> list[int]:
    """Queries, keys, values, and the hidden channels of the MLP."""
    return [branch.sizes[0] // 3] * 3 + [branch.sizes[1]]


# Of each class of branch its matrices: those parted by what comes out, those by what goes in; each with what it holds.
PLANS: dict[type[nn.Module], tuple[dict[str, Parts], dict[str, Parts]]] = {
    FeedLane: ({"fc1": lambda b: [b.fc1.out_features]}, {"fc2": lambda b: [b.fc2.in_features]}),
    SwiGLULane: ({"w12": lambda b: [b.w3.in_features] * 2}, {"w3": lambda b: [b.w3.in_features]}),
    AttentionLane: ({"qkv": thirds}, {"proj": lambda b: [b.proj.in_features]}),
    ReadOnlyLane: ({"qkv": thirds}, {}),
    CrossAttention: (
        {"q": lambda b: [b.q.out_features], "kv": lambda b: [b.q.out_features] * 2},
        {"proj": lambda b: [b.proj.in_features]},
    ),
    Parallel: ({"lin1": joint}, {"lin2": lambda b: [b.sizes[0] // 3, b.sizes[1]]}),
}


def tensor_parallel(net: nn.Module, mesh: DeviceMesh) -> None:
    """Leave of the matrices of a network's blocks what this process is to have; in place.

    All processes of the mesh, which has one axis, call it, and then the network with the same arguments; each has all
    of what comes out, and all of the gradient of what is whole. UserError where the processes do not divide the heads
    or the hidden channels.
    """
    branches = [(b, PLANS[type(b)]) for b in net.get_submodule("blocks").modules() if type(b) in PLANS]
    for branch, plan in branches:
        check(branch, plan, mesh.size())
    for branch, (columns, rows) in branches:
        for axis, matrices in enumerate((columns, rows)):
            for name, parts in matrices.items():
                reorder(branch.get_submodule(name), order(parts(branch), mesh.size()), axis)
        styles: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in columns}
        styles |= {name: RowwiseParallel() for name in rows}
        parallelize_module(branch, mesh, styles)
        shrink(branch, mesh)


def check(branch: Any, plan: tuple[dict[str, Parts], dict[str, Parts]], processes: int) -> None:
    """UserError where a branch cannot be parted evenly."""
    if getattr(branch, "heads", processes) % processes:
        raise UserError(f"tensor parallelism parts heads: {branch.heads} are not divisible by {processes}")
    for name, parts in {**plan[0], **plan[1]}.items():
        if any(size % processes for size in parts(branch)):
            size = parts(branch)[-1]
            raise UserError(f"tensor parallelism parts channels: the {size} of {name} are not divisible by {processes}")


def order(sizes: list[int], processes: int) -> Tensor:
    """Rows of matrices side by side, process by process: to each its part of every matrix."""
    starts = torch.tensor([0, *sizes]).cumsum(0)
    rows = [torch.arange(size).add(start).chunk(processes) for start, size in zip(starts, sizes, strict=False)]
    return torch.cat([part for parts in zip(*rows, strict=True) for part in parts])


@torch.no_grad()
def reorder(linear: Any, rows: Tensor, axis: int) -> None:
    """Bring the outputs (axis 0) or inputs (axis 1) of a matrix into an order; a name for it stays behind."""
    rows = rows.to(linear.weight.device)
    linear.weight.copy_(linear.weight.index_select(axis, rows))
    if axis == 0 and linear.bias is not None:
        linear.bias.copy_(linear.bias[rows])
    linear.parted = (axis, rows.argsort())


def shrink(branch: Any, mesh: DeviceMesh) -> None:
    """Let a branch count the heads and channels that it has left."""
    if hasattr(branch, "heads"):
        branch.heads //= mesh.size()
    if hasattr(branch, "sizes"):
        branch.sizes = tuple(size // mesh.size() for size in branch.sizes)
    for name in ("q_norm", "k_norm"):  # whole everywhere, but each process's gradient is that of its own heads
        for p in getattr(branch, name, nn.Identity()).parameters():
            p.register_hook(partial(summed, group=mesh.get_group()))


def summed(grad: Tensor, *, group: dist.ProcessGroup) -> Tensor:
    """Over all processes."""
    total = grad.clone()
    dist.all_reduce(total, group=group)
    return total


@torch.no_grad()
def whole_state(net: nn.Module, of: Callable[[Tensor], Tensor | None] = lambda p: p) -> dict[str, Tensor]:
    """All weights whole and in the network's own order, as it had them before; all processes must ask.

    `of`: what of a weight is wanted in its place, such as its gradient; what is None is left out.
    """
    found = {}
    for name, p in net.named_parameters():
        if (value := of(p)) is None:
            continue
        value = value.full_tensor() if isinstance(value, DTensor) else value
        module, _, leaf = name.rpartition(".")
        axis, back = getattr(net.get_submodule(module), "parted", (1, None))
        if back is not None and (leaf == "weight" or axis == 0):
            value = value.index_select(axis, back.to(value.device))
        found[name] = value
    return found
