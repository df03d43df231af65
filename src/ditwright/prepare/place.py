"""Which of the processes this is."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from ..errors import UserError


@dataclass(frozen=True)
class Place:
    """One of the processes that torchrun started, or the only one."""

    rank: int
    size: int
    device: torch.device
    cpus: int

    @staticmethod
    def here() -> Place:
        """What the environment says. They need not talk to each other: the folder is all that they share."""
        names = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        try:
            rank, size, local, beside = (int(os.environ.get(name, default)) for name, default in names.items())
        except ValueError:
            raise UserError(f"{', '.join(names)} must be whole numbers, as torchrun sets them") from None
        if not 0 <= rank < size:
            raise UserError(f"RANK {rank} does not fit WORLD_SIZE {size}")
        device, gpus = torch.device("cpu"), torch.cuda.device_count()
        if gpus:
            if local >= gpus:
                raise UserError(f"process {local} of this machine has no GPU: there are {gpus}")
            device = torch.device("cuda", local)
        return Place(rank, size, device, max(1, len(os.sched_getaffinity(0)) // beside))
