"""A loss to compare networks by: the same samples, noise and times for all, spread evenly over the times.

B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rng import Draws
from .objective import Ask, Objective
from .process import Cond


@torch.no_grad()
def binned_loss(objective: Objective, denoiser: Ask, x0: Tensor, cond: Cond, draws: Draws, *, bins: int = 10) -> Tensor:
    """Loss per sample and bin (B, bins), float64. The bins hold equal shares of the times that training draws.

    Every sample is asked once in each, so the mean over all estimates the training loss, stratified; being functions
    of `draws` alone, noise and times cancel out of differences between networks.
    """
    found = []
    for number in range(bins):
        t = objective.times((number + draws.uniform()) / bins).to(x0.device)
        found.append(objective.at(denoiser, x0, cond, t, draws.normal(x0)).double())
    return torch.stack(found, 1)
