"""Where training left the numbers: the first module or gradient that is not finite, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class NonFinite(RuntimeError):
    """Training left the numbers: the step, and where it began. The weights are those of the step before."""


def cause_of_loss(step: int, shared: float, own: float, net: nn.Module, x0: Tensor, again: Callable[[], object]) -> str:
    """Why a step's loss is not finite. `shared`: that of all processes; `again` does the forward pass once more."""
    where = first_nonfinite(net, again)  # by all processes: where weights are sharded, none gets through it alone
    if math.isfinite(own):
        return f"the loss of step {step} is {shared} on another process"
    if not x0.isfinite().all():
        return f"the data of step {step} is not finite"
    return f"the loss of step {step} is {own}; first module with a non-finite output: {where}"


def cause_of_gradient(step: int, norm: float, net: nn.Module) -> str:
    """Why the norm of a step's gradients is not finite here, or on another process."""
    if math.isfinite(norm):
        return f"the gradient of step {step} is not finite on another process"
    grads = ((name, p.grad) for name, p in net.named_parameters() if p.grad is not None)
    where = next((repr(name) for name, grad in grads if not grad.isfinite().all()), "none; their norm overflows")
    return f"the gradient of step {step} is {norm}; first non-finite gradient: {where}"


@torch.no_grad()
def first_nonfinite(net: nn.Module, again: Callable[[], object]) -> str:
    """The name of the first module, in order of execution, whose output is not finite when the step is done again."""
    found: list[str] = []

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, args: object, out: object) -> None:
            if not found and isinstance(out, Tensor) and not out.isfinite().all():
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in net.named_modules()]
    try:
        again()
    finally:
        for handle in handles:
            handle.remove()
    return repr(found[0]) if found else "none; the loss itself overflows"
