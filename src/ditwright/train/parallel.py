"""Several processes, one run: each takes its part of every batch, and gradients are averaged (torch's own DDP).

What each process holds of the weights is up to its `World`: all of them here, a part of them in `train/sharded.py`.
Started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK. What a sample draws follows from its place in the
sequence, so the number of processes changes no sample, no noise and no time: sums are only rounded in another order.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..model.weights import State, write_safetensors
from ..nn.branch import Runner
from ..nn.sequence import InParts
from .config import ParallelConfig
from .log import say
from .meeting import meeting
from .state import TENSORS, read_whole

Keep = Callable[[Path], None]  # puts what a run must remember into a checkpoint folder


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. Alone, every method does next to nothing."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local: int = 0  # rank among the processes of its machine
    tokens: dist.ProcessGroup | None = None  # those that have the same samples, a part of the tokens each
    tensor: int = 1  # as many have the same tokens, a part of the matrices each

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def parts(self) -> int:
        """Of a batch."""
        return self.size // (self.tensor * (self.tokens.size() if self.tokens else 1))

    def __str__(self) -> str:
        return str(self.device) if self.size == 1 else f"{self.size} x {self.device.type}"

    def runner(self, run: Runner) -> Runner:
        """How blocks run, on this process's part of the tokens where it has but a part."""
        return InParts(self.tokens, run) if self.tokens else run

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network, its gradients averaged over the processes."""
        if self.size == 1:
            return net
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(net, device_ids=devices, gradient_as_bucket_view=True)  # no copy of gradients

    def place(self, net: nn.Module, average: nn.Module) -> None:
        """Bring a network and its average to where they are trained: changed in place, before an optimizer is made."""
        net.to(self.device)
        average.to(self.device)

    def norm(self, grads: list[Tensor]) -> Tensor:
        """Of all gradients together: ()."""
        return nn.utils.get_total_norm(grads)

    def whole(self, average: nn.Module, *, everywhere: bool = False) -> nn.Module:
        """The average with all its weights, to sample from now; on the main process, or everywhere. All must ask."""
        return average

    def copied(self, average: nn.Module, *, later: bool) -> nn.Module:
        """The average with all its weights, to be written now, or `later`, when it has moved on. All must ask."""
        return copy.deepcopy(average).cpu() if later and self.main else average

    def keep(self, state: State, beside: Path, *, later: bool) -> Keep:
        """What writes a run's tensors of now into a checkpoint folder, maybe `later`. All must ask, and call it.

        Until then `beside`, a path that does not exist, may be used.
        """
        if not self.main:
            return lambda folder: None
        kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()} if later else state
        return lambda folder: write_safetensors(folder / TENSORS, kept)

    def read(self, path: Path, net: nn.Module) -> State:
        """Tensors of a checkpoint's file, or of the shards in its place, as they go into `net`. All must ask."""
        return read_whole(path)

    def share(self, places: range) -> range:
        """This process's part of a batch's places. UserError where the batch cannot be parted evenly."""
        if len(places) % self.parts:
            what = "processes" if self.parts == self.size else "parts (parallel.data times parallel.shard)"
            raise UserError(f"data.batch_size {len(places)} is not divisible by {self.parts} {what}")
        part, mine = len(places) // self.parts, self.rank * self.parts // self.size
        return places[mine * part : (mine + 1) * part]

    def mean(self, value: float) -> float:
        """The mean of every process's number."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item() / self.size

    def sum(self, value: float) -> float:
        """The sum of every process's number."""
        return self.size * self.mean(value)

    def any(self, flag: bool) -> bool:
        """Whether it is so for any process."""
        return self.mean(float(flag)) > 0

    def agree(self, text: str) -> str:
        """What the main process says."""
        said = [text]
        if self.size > 1:
            dist.broadcast_object_list(said, 0, device=self.device)
        return said[0]

    def gather(self, found: Any) -> list[Any]:
        """What each process found, by rank. All must ask."""
        everyones = [found] * self.size
        if self.size > 1:
            dist.all_gather_object(everyones, found)
        return everyones

    def say(self, line: str) -> None:
        """A line for people, once."""
        if self.main:
            say(line)

    def leave(self) -> None:
        """Part from the others."""
        if dist.is_initialized():
            dist.destroy_process_group()


def join() -> World:
    """The world that torchrun's variables tell of, on this process's own device; alone where there are none."""
    rank, size, local = (int(os.environ.get(name, default)) for name, default in VARIABLES)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise UserError(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, **meeting(rank, size))
    return World(device, rank, size, local)


def arranged(world: World, config: ParallelConfig, precision: str = "fp32") -> World:
    """The processes as a configuration parts their work. UserError where their number is another.

    `precision`: of matrix products, fp32, bf16, or auto, which is bf16 where a GPU has it.
    """
    each = config.shard * config.sequence * config.tensor
    data = config.data or max(1, world.size // each)
    if data * each != world.size:
        numbers = f"data {config.data or '(any)'}, shard {config.shard}, sequence {config.sequence}"
        numbers += f", tensor {config.tensor}" if config.tensor > 1 else ""
        raise UserError(
            f"parallel ({numbers}) is for {data * each} process(es) and {world.size} were started: "
            f"change --parallel.*, or start {data * each} with torchrun"
        )
    if config.sequence > 1:
        world = replace(world, tokens=dist.new_subgroups(config.sequence)[0])
    if config.tensor > 1:
        from .tensor import spread

        return spread(world, config, precision)
    if config.shard == 1 and not config.offload:
        return world
    from .sharded import sharded  # torch takes its time to import this

    return sharded(world, config, precision)


VARIABLES = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
