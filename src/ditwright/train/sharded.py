"""One copy of the weights over several processes: torch's FSDP2 to train them, torch's DCP to save and load them.

Weights, gradients, optimizer and average are DTensors, of which each process holds its rows. A block is whole on a
device only while it is at work. Shards on disk are safetensors, so nothing that is read is unpickled.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ..files import remove
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
            # As a list: a Block is a container, which torch 2.11 refuses by itself even where it has a forward pass.
            fully_shard([block], mesh=self.mesh, mp_policy=blocks, offload_policy=offload)
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
        return self.gathered(average, self.device if everywhere or self.main else torch.device("meta"))

    def copied(self, average: nn.Module, *, later: bool) -> nn.Module:
        """A copy with all its weights in the main process's memory; all must ask, and others get it empty."""
        return self.gathered(average, torch.device("cpu" if self.main else "meta"))

    @torch.no_grad()
    def gathered(self, module: nn.Module, device: torch.device) -> nn.Module:
        """A copy of a module with plain weights on a device, gathered one by one; all processes must ask."""
        plain: dict[int, Any] = {}
        for name, p in module.named_parameters():
            plain[id(p)] = nn.Parameter(self.full(name, p).to(device), requires_grad=False)
        return copy.deepcopy(module, plain)

    def full(self, name: str, weight: Tensor) -> Tensor:
        """A weight, or what is like it, whole and by itself; all must ask."""
        return weight.full_tensor() if isinstance(weight, DTensor) else weight.detach().clone()

    def keep(self, state: State, beside: Path, *, later: bool) -> Keep:
        """Each process writes its shards, all at once; what is returned waits for them and moves them in."""
        if self.main:
            remove(beside)  # shards of a killed process are not of this save
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
        return read(there, self.wanted(net), self.saving)

    def wanted(self, net: nn.Module) -> State:
        """By name of a weight, how what belongs to it is to lie when it is read."""
        return dict(net.named_parameters())


def sharded(world: World, config: ParallelConfig, precision: str) -> Sharded:
    """The processes, each of which holds a part of one of the copies. `precision`: of matrix products, or auto."""
    return Sharded(**vars(world), **common(world, config, precision), mesh=mesh_of(world, config))


def common(world: World, config: ParallelConfig, precision: str) -> dict[str, Any]:
    """What a sharded world has besides its meshes."""
    if not dist.is_initialized():  # one process, which offloads
        dist.init_process_group(store=dist.HashStore(), rank=0, world_size=1)
    bf16 = precision == "bf16" or (
        precision == "auto" and world.device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    saving = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
    return {"offload": config.offload, "bf16": bf16, "saving": saving}


def mesh_of(world: World, config: ParallelConfig) -> DeviceMesh:
    """([copies,] shards[, parts of matrices]): those with the same samples are neighbours, as are those of a copy."""
    ranks = torch.arange(world.size).view(-1, config.shard, config.tensor, config.sequence).permute(0, 3, 1, 2)
    ranks = ranks.flatten(0, 1)  # a part of the tokens is a copy of the weights
    axes = {"copy": len(ranks), "shard": config.shard, "tensor": config.tensor}
    axes = {name: size for name, size in axes.items() if size > 1 or name == "shard"}
    return DeviceMesh(world.device.type, ranks.reshape(*axes.values()), mesh_dim_names=tuple(axes))
