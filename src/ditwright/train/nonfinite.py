"""Where training left the numbers: the first module or gradient that is not finite, by name."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor, nn

Cause = tuple[int, str]  # why a step is not finite, as one process sees it: where, the least being first, and in words


class NonFinite(RuntimeError):
    """Training left the numbers: the step, and where it began. The weights are those of the step before."""


def first_of(causes: Sequence[Cause]) -> str:
    """Of what each process found, by rank: the first, and on which process, where it is another than the main one."""
    rank = min(range(len(causes)), key=lambda rank: causes[rank][0])
    return causes[rank][1] + (f", on process {rank}" if rank else "")


def cause_of_loss(step: int, loss: float, net: nn.Module, x0: Tensor, again: Callable[[], object]) -> Cause:
    """Why the loss of this process's part of a step is not finite, if so. `again` does the forward pass once more."""
    place, where = first_nonfinite(net, again)  # by all: where weights are sharded, none gets through it alone
    if math.isfinite(loss):
        return sys.maxsize, f"the loss of step {step} is {loss} here"
    if not x0.isfinite().all():
        return 0, f"the data of step {step} is not finite"
    return place, f"the loss of step {step} is {loss}; first module with a non-finite output: {where}"


def cause_of_gradient(step: int, norm: float, net: nn.Module) -> Cause:
    """Why the norm of a step's gradients is not finite, as far as what this process holds of them can tell."""
    told = f"the gradient of step {step} is {norm}; first non-finite gradient: "
    for place, (name, p) in enumerate(net.named_parameters()):
        if p.grad is not None and not own(p.grad).isfinite().all():
            return place, f"{told}{name!r}"
    return sys.maxsize, f"{told}none; their norm overflows"


def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: to look at it asks nothing of the other processes."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@torch.no_grad()
def first_nonfinite(net: nn.Module, again: Callable[[], object]) -> tuple[int, str]:
    """The first module, in order of execution, whose output is not finite when the step is done again: (place, name).

    Places count from 1; that of none is the one after the last.
    """
    found, places = list[tuple[int, str]](), count(1)

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, args: object, out: object) -> None:
            place = next(places)
            if not found and isinstance(out, Tensor) and not out.isfinite().all():
                found.append((place, repr(name)))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in net.named_modules()]
    try:
        again()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else (next(places), "none; the loss itself overflows")
