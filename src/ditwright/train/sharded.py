"""One copy of the weights over several processes: torch's FSDP2 to train them, torch's DCP to save and load them.

Weights, gradients, optimizer and average are DTensors, of which each process holds its rows. A block is whole on a
device only while it is at work. Shards on disk are safetensors, so nothing that is read is unpickled.
"""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ..model.weights import State
from .config import ParallelConfig
from .dcp import read, write
from .parallel import Keep, World
from .state import SHARDS, TENSORS


@dataclass(frozen=True)
class Sharded(World):
    """Processes that hold a part of the weights each; several copies side by side where the mesh has two axes."""

    mesh: DeviceMesh = field(kw_only=True)  # ([copies,] shards)
    saving: dist.ProcessGroup = field(kw_only=True)  # over which saves are agreed on, also those in the background
    offload: bool = False  # weights, gradients, optimizer and average wait in the memory of the host
    bf16: bool = False  # blocks travel in it: products, which are nearly all of them, would round their weights anyway

    def __str__(self) -> str:
        *copies, shards = self.mesh.shape
        return f"{super().__str__()} ({f'{copies[0]} copies in ' if copies else ''}{shards} shards)"

    def place(self, net: nn.Module, average: nn.Module) -> None:
        """Leave of network and average what this process is to hold. Both change in place."""
        blocks = MixedPrecisionPolicy(torch.bfloat16 if self.bf16 else None, torch.float32, cast_forward_inputs=False)
        rest = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        offload = CPUOffloadPolicy(pin_memory=self.device.type == "cuda") if self.offload else OffloadPolicy()
        for block in getattr(net.get_submodule("net"), "blocks", ()):
            fully_shard(block, mesh=self.mesh, mp_policy=blocks, offload_policy=offload)
        fully_shard(net, mesh=self.mesh, mp_policy=rest, offload_policy=offload)
        for name, p in net.named_parameters():
            module, _, leaf = name.rpartition(".")
            setattr(average.get_submodule(module), leaf, nn.Parameter(p.detach().clone(), requires_grad=False))

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network itself: `place` made it what it is."""
        return net

    def norm(self, grads: list[Tensor]) -> Tensor:
        """Of all gradients together, those of other processes too: ()."""
        total = super().norm(grads)
        return total.full_tensor() if isinstance(total, DTensor) else total

    def whole(self, average: nn.Module, *, everywhere: bool = False) -> nn.Module:
        """A copy with all its weights, on the main process or everywhere; all must ask, and others get it empty."""
        return gathered(average, self.device if everywhere or self.main else torch.device("meta"))

    def copied(self, average: nn.Module, *, later: bool) -> nn.Module:
        """A copy with all its weights in the main process's memory; all must ask, and others get it empty."""
        return gathered(average, torch.device("cpu" if self.main else "meta"))

    def keep(self, state: State, beside: Path, *, later: bool) -> Keep:
        """Each process writes its shards, all at once; what is returned waits for them and moves them in."""
        if self.main:
            shutil.rmtree(beside, ignore_errors=True)  # shards of a killed process are not of this save
        dist.barrier(self.saving)
        wait = write(beside, state, self.saving, later=later)

        def put(folder: Path) -> None:
            wait()
            if self.main:
                os.replace(beside, folder / SHARDS)

        return put

    def read(self, path: Path, net: nn.Module) -> State:
        """Tensors of a safetensors file, or of the shards in its place; what belongs to a weight lies as it does."""
        shards = path.with_name(SHARDS)
        there = shards if path.name == TENSORS and shards.is_dir() else path
        return read(there, dict(net.named_parameters()), self.saving)


def sharded(world: World, config: ParallelConfig, precision: str) -> Sharded:
    """The processes, each of which holds a part of one of the copies. `precision`: of matrix products, or auto."""
    if not dist.is_initialized():  # one process, which offloads
        dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    kind, copies = world.device.type, world.size // config.shard
    ranks = torch.arange(world.size).view(-1, config.shard, config.sequence)  # those with the same samples beside
    ranks = ranks.transpose(1, 2).reshape(copies, config.shard)  # each other, then those with the same copy
    if copies > 1:
        mesh = DeviceMesh(kind, ranks, mesh_dim_names=("copy", "shard"))
    else:
        mesh = DeviceMesh(kind, ranks[0], mesh_dim_names=("shard",))
    bf16 = precision == "bf16" or (precision == "auto" and kind == "cuda" and torch.cuda.is_bf16_supported())
    return Sharded(
        **vars(world),
        offload=config.offload,
        bf16=bf16,
        mesh=mesh,
        saving=cast(dist.ProcessGroup, dist.new_group(backend="gloo")),
    )


@torch.no_grad()
def gathered(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a module of DTensors with plain ones on a device, gathered one by one; all processes must ask."""
    plain: dict[int, Any] = {}
    for p in module.parameters():
        tensor = p.full_tensor() if isinstance(p, DTensor) else p.detach().clone()
        plain[id(p)] = nn.Parameter(tensor.to(device), requires_grad=False)
    return copy.deepcopy(module, plain)
