"""Matrices parted over processes in a run: `model/tensor_parallel.py`, and torch's FSDP2 over the other processes.

A part of a matrix is a DTensor on both axes, parted once more by FSDP2; all else has only the latter. On disk a matrix
lies as it does without: put together, brought into the network's own order, cut into rows again. So any arrangement of
processes reads what another one wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, empty

from ..errors import UserError
from ..model.tensor_parallel import Order, blocks_of, orders, planned, restored, tensor_parallel
from ..model.weights import State
from .config import ParallelConfig
from .dcp import weight_of
from .parallel import Keep, World
from .sharded import Sharded, common, mesh_of


@dataclass(frozen=True)
class Spread(Sharded):
    """Processes that hold a part of the matrices each; `mesh` is of those that have the same part of them."""

    across: DeviceMesh = field(kw_only=True)  # those that have the other parts, for the same samples
    rows: DeviceMesh = field(kw_only=True)  # all that hold one copy together
    disk: DeviceMesh = field(kw_only=True)  # the same ones, their memory of the host
    orders: dict[str, Order] = field(default_factory=dict)  # of the weights that `place` brought into another one

    def __str__(self) -> str:
        return f"{super().__str__()[:-1]}, matrices in {self.tensor} parts)"

    def place(self, net: nn.Module, average: nn.Module) -> None:
        """Leave of network and average what this process is to hold. UserError where it cannot be parted evenly."""
        inner = net.get_submodule("net")
        each = self.tensor * (self.tokens.size() if self.tokens else 1)
        for branch, _ in planned(blocks_of(inner)):
            if (heads := getattr(branch, "heads", each)) % each:
                raise UserError(f"parallel.sequence times parallel.tensor is {each} and must divide the {heads} heads")
        tensor_parallel(inner, self.across)
        self.orders.update(orders(net))
        super().place(net, average)

    @torch.no_grad()
    def norm(self, grads: list[Tensor]) -> Tensor:
        """Of all gradients together, each part of a matrix and all else counted once: ()."""
        parts = [local(grad) for grad in grads if self.is_part(grad)]
        rest = [local(grad) for grad in grads if not self.is_part(grad)]
        squares = [nn.utils.get_total_norm(some).to(self.device).double().square() for some in (rest, parts)]
        for square in squares:
            dist.all_reduce(square, group=self.mesh["shard"].get_group())
        dist.all_reduce(squares[1], group=self.across.get_group())
        return torch.stack(squares).sum().sqrt().float()

    def keep(self, state: State, beside: Path, *, later: bool) -> Keep:
        """As without parts: of what is parted, each process writes some rows."""
        return super().keep({name: self.in_rows(name, tensor) for name, tensor in state.items()}, beside, later=later)

    def wanted(self, net: nn.Module) -> State:
        """What is parted is read in rows."""
        return {
            name: empty(p.shape, device_mesh=self.disk, placements=[Shard(0)]) if self.is_part(p) else p
            for name, p in net.named_parameters()
        }

    def read(self, path: Path, net: nn.Module) -> State:
        """As without parts; all must ask."""
        state, weights = super().read(path, net), dict(net.named_parameters())
        for name, tensor in state.items():
            weight = weights.get(weight_of(name, weights))
            if isinstance(tensor, DTensor) and self.is_part(weight):
                state[name] = self.in_parts(name, tensor, cast(DTensor, weight))
        return state

    def is_part(self, tensor: Tensor | None) -> bool:
        """Whether it is parted by `across`; if not, all of those have the same."""
        here = isinstance(tensor, DTensor) and tensor.device_mesh.ndim > self.mesh.ndim
        return here and tensor.placements[-1].is_shard()

    @torch.no_grad()
    def full(self, name: str, weight: Tensor) -> Tensor:
        """A weight, or what is like it, whole and in the network's own order; all must ask."""
        if not self.is_part(weight):
            return super().full(name, weight)
        part = cast(Shard, cast(DTensor, weight).placements[-1])
        shape = list(weight.shape)
        shape[part.dim] //= self.tensor
        mine = laid(local(weight), self.mesh["shard"], Shard(0), shape).full_tensor()
        whole = laid(mine, self.across, part, weight.shape).full_tensor()
        return restored(whole, self.orders.get(weight_of(name, self.orders)))

    @torch.no_grad()
    def in_rows(self, name: str, tensor: Tensor) -> Tensor:
        """What is parted: this process's rows of it, in the network's own order and the host's memory."""
        if not self.is_part(tensor):
            return tensor
        whole = self.full(name, tensor)
        return laid(rows_of(whole, self.disk).to("cpu", copy=True), self.disk, Shard(0), whole.shape)

    @torch.no_grad()
    def in_parts(self, name: str, rows: DTensor, like: DTensor) -> DTensor:
        """The way back: as `like` lies, in the order of the processes."""
        whole = laid(rows.to_local(), self.rows, Shard(0), rows.shape).full_tensor()
        if (order := self.orders.get(weight_of(name, self.orders))) is not None:
            whole = whole.index_select(order[0], order[1].argsort().to(whole.device))
        part = whole.chunk(self.tensor, cast(Shard, like.placements[-1]).dim)[self.across.get_local_rank()]
        found = torch.zeros_like(like, dtype=rows.dtype, requires_grad=False)
        local(found).copy_(rows_of(part, self.mesh["shard"]))
        return cast(DTensor, found)


def spread(world: World, config: ParallelConfig, precision: str) -> Spread:
    """The processes, each of which holds a part of the matrices. `precision`: of matrix products, or auto."""
    mesh, facts = mesh_of(world, config), common(world, config, precision)
    kind, copies = world.device.type, mesh.mesh.reshape(-1, config.shard * config.tensor)
    rows = DeviceMesh(kind, copies, mesh_dim_names=("copy", "row"))["row"]
    disk = rows if kind == "cpu" else DeviceMesh("cpu", copies, mesh_dim_names=("copy", "row"))["row"]
    others = mesh["copy", "shard"] if len(copies) > 1 else mesh["shard"]
    world = replace(world, tensor=config.tensor)
    return Spread(**vars(world), **facts, mesh=others, across=mesh["tensor"], rows=rows, disk=disk)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def laid(mine: Tensor, mesh: DeviceMesh, part: Shard, shape: Sequence[int]) -> DTensor:
    """A tensor of a shape of which each process of a mesh, which has one axis, holds a part."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(mine, mesh, [part], run_check=False, shape=torch.Size(shape), stride=stride)


def rows_of(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """The rows of a process, as torch parts them: the last ones may have fewer, or none."""
    most = -(-len(tensor) // mesh.size())
    return tensor[mesh.get_local_rank() * most :][:most]
