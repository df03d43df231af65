"""Several processes, one run: each takes its part of every batch, and gradients are averaged (torch's own DDP).

Started by torchrun, which sets RANK, WORLD_SIZE and LOCAL_RANK. What a sample draws follows from its place in the
sequence, so the number of processes changes no sample, no noise and no time: sums are only rounded in another order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from .log import say


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them. Alone, every method does next to nothing."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local: int = 0  # rank among the processes of its machine

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def __str__(self) -> str:
        return str(self.device) if self.size == 1 else f"{self.size} x {self.device.type}"

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network, its gradients averaged over the processes."""
        if self.size == 1:
            return net
        return DistributedDataParallel(net, device_ids=[self.device] if self.device.type == "cuda" else None)

    def share(self, places: range) -> range:
        """This process's part of a batch's places. UserError where the batch cannot be parted evenly."""
        if len(places) % self.size:
            raise UserError(f"data.batch_size {len(places)} is not divisible by {self.size} processes")
        part = len(places) // self.size
        return places[self.rank * part : (self.rank + 1) * part]

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

    def say(self, line: str) -> None:
        """A line for people, once."""
        if self.main:
            say(line)

    def leave(self) -> None:
        """Part from the others."""
        if self.size > 1:
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
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(device, rank, size, local)


VARIABLES = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
