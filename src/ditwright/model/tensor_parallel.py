"""Tensor parallelism: the matrices of blocks spread over processes, by a plan for each class of branch.

Attention is parted by heads and MLPs by hidden channels (Shoeybi et al. 2019, Sec. 3), through torch's own
`parallelize_module`. Some matrices are several side by side, such as queries, keys and values: a process has its part
of each, for which their rows are brought into the order of the processes. Norms, modulations, and all that is in no
block stay whole everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from ..errors import UserError
from ..nn.branch import AttentionLane, CrossAttention, FeedLane, SwiGLULane
from ..nn.norm import RMSNorm
from ..nn.streams import Parallel, ReadOnlyLane

Parts = Callable[[Any], list[int]]  # of a branch: the sizes of what lies side by side in a matrix
Plan = tuple[dict[str, Parts], dict[str, Parts]]  # of a branch: matrices parted by what comes out, by what goes in
Order = tuple[int, Tensor]  # an axis of a weight, and of what lies there in the order of the processes the way back


def thirds(branch: Any) -> list[int]:
    """Queries, keys, values."""
    return [branch.qkv.out_features // 3] * 3


def joint(branch: Any) -> list[int]:
    """Queries, keys, values, and the hidden channels of the MLP."""
    return [branch.sizes[0] // 3] * 3 + [branch.sizes[1]]


# Of each class of branch its matrices, and what each of them holds.
PLANS: dict[type[nn.Module], Plan] = {
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
    blocks = blocks_of(net)
    check(blocks, mesh.size())
    for branch, (columns, rows) in planned(blocks):
        for axis, matrices in enumerate((columns, rows)):
            for name, parts in matrices.items():
                if len(sizes := parts(branch)) > 1:
                    reorder(branch.get_submodule(name), order(sizes, mesh.size()), axis)
        styles: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in columns}
        styles |= {name: RowwiseParallel() for name in rows}
        parallelize_module(branch, mesh, styles)
        shrink(branch, mesh)


def blocks_of(net: nn.Module) -> nn.Module:
    """The blocks of a network, if it has any."""
    return nn.ModuleList(getattr(net, "blocks", ()))


def planned(blocks: nn.Module) -> list[tuple[Any, Plan]]:
    """The branches of blocks that can be parted, each with its plan."""
    return [(branch, PLANS[type(branch)]) for branch in blocks.modules() if type(branch) in PLANS]


def check(blocks: nn.Module, processes: int) -> None:
    """UserError where blocks cannot be parted evenly."""
    if not (branches := planned(blocks)):
        raise UserError("tensor parallelism parts the matrices of a transformer's blocks, and this network has none")
    for branch, plan in branches:
        if (heads := getattr(branch, "heads", processes)) % processes:
            raise UserError(f"tensor parallelism parts heads: {heads} are not divisible by {processes}")
        for name, parts in {**plan[0], **plan[1]}.items():
            if uneven := [size for size in parts(branch) if size % processes]:
                what = f"the {uneven[0]} of {name}"
                raise UserError(f"tensor parallelism parts channels: {what} are not divisible by {processes}")


def parted_parameters(blocks: nn.Module) -> int:
    """How many parameters of blocks, not spread yet, are parted; all others stay whole everywhere."""
    found = 0
    for branch, (columns, rows) in planned(blocks):
        found += sum(p.numel() for name in columns for p in branch.get_submodule(name).parameters())
        found += sum(branch.get_submodule(name).weight.numel() for name in rows)
    return found


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
    linear.order = (axis, rows.argsort())


def orders(net: nn.Module) -> dict[str, Order]:
    """By name, those weights of a spread network that lie in the order of the processes."""
    found: dict[str, Order] = {}
    for name, module in net.named_modules():
        if (order := getattr(module, "order", None)) is not None:
            found[f"{name}.weight"] = order
            if order[0] == 0 and module.bias is not None:
                found[f"{name}.bias"] = order
    return found


def shrink(branch: Any, mesh: DeviceMesh) -> None:
    """Let a branch count the heads and channels that it has left."""
    if hasattr(branch, "heads"):
        branch.heads //= mesh.size()
    if hasattr(branch, "sizes"):
        branch.sizes = tuple(size // mesh.size() for size in branch.sizes)
    for name in ("q_norm", "k_norm"):
        if isinstance(norm := getattr(branch, name, None), RMSNorm):
            setattr(branch, name, OfOwnHeads(norm, mesh))


class OfOwnHeads(nn.Module):
    """The RMS norm of a process's heads. Its weight is whole everywhere: its gradient is that of all heads."""

    def __init__(self, norm: RMSNorm, mesh: DeviceMesh):
        super().__init__()
        self.weight, self.eps, self.mesh = norm.weight, norm.eps, mesh

    def forward(self, x: Tensor) -> Tensor:  # (..., D)
        whole = DTensor.from_local(self.weight, self.mesh, [Replicate()], run_check=False)
        weight = whole.to_local(grad_placements=[Partial()])  # what goes back is summed over the processes
        return F.rms_norm(x.to(weight.dtype), weight.shape, weight, self.eps).to(x)


@torch.no_grad()
def whole_state(net: nn.Module, of: Callable[[Tensor], Tensor | None] = lambda p: p) -> dict[str, Tensor]:
    """All weights whole and in the network's own order, as it had them before; all processes must ask.

    `of`: what of a weight is wanted in its place, such as its gradient; what is None is left out.
    """
    found, ordered = {}, orders(net)
    for name, p in net.named_parameters():
        if (value := of(p)) is None:
            continue
        value = value.full_tensor() if isinstance(value, DTensor) else value
        found[name] = restored(value, ordered.get(name))
    return found


def restored(weight: Tensor, order: Order | None) -> Tensor:
    """A whole weight in the network's own order again."""
    return weight if order is None else weight.index_select(order[0], order[1].to(weight.device))
