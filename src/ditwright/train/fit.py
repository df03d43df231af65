"""The training loop as a generator: everything that is not the step lives in the caller.

B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn

from ..diffusion.objective import Loss
from ..diffusion.process import Cond
from ..nn.branch import Runner, run_all
from ..rng import Draws
from .ema import EMA


@dataclass(frozen=True)
class Batch:
    """Clean samples (latents, where there is a codec), their conditions, and the randomness of each."""

    x0: Tensor  # (B, C, *space)
    cond: Cond
    draws: Draws


@dataclass(frozen=True)
class Tick:
    """What one optimizer step was like."""

    step: int  # how many steps are done
    loss: float
    grad_norm: float  # before clipping
    lr: float
    samples: int


class NonFinite(RuntimeError):
    """Training left the numbers: the step, and where it began. The weights are those of the step before."""


def fit(
    denoiser: nn.Module,
    loss: Loss,
    batches: Iterator[Batch],
    optim: torch.optim.Optimizer,
    *,
    schedule: Callable[[int], float],
    ema: EMA | None = None,
    done: int = 0,
    accumulate: int = 1,
    clip: float = 1.0,
    run: Runner = run_all,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    mean: Callable[[float], float] = float,
) -> Iterator[Tick]:
    """Train until `batches` end or the caller stops; yields after every optimizer step.

    `schedule(step)` multiplies the learning rate of each group, step 0 first; `done` steps came before (resume).
    Each step takes `accumulate` batches. Gradients are clipped to the norm `clip`. `run` decides how the blocks run
    (`checkpointed` saves memory); `mean` takes the mean of a number over processes. NonFinite before any harm is done.
    """
    params = [p for group in optim.param_groups for p in group["params"]]
    base = [group.setdefault("initial_lr", group["lr"]) for group in optim.param_groups]
    ask, plain = partial(denoiser, run=run), getattr(denoiser, "module", denoiser)  # not as DDP wraps it
    for step in count(done):
        total, samples = 0.0, 0
        for _ in range(accumulate):
            if (batch := next(batches, None)) is None:
                return
            with autocast():
                value = loss(ask, batch.x0, batch.cond, batch.draws).mean() / accumulate
            shared = mean(value.item())
            if not math.isfinite(shared):
                if math.isfinite(value.item()):
                    raise NonFinite(f"the loss of step {step + 1} is {shared} on another process")
                if not batch.x0.isfinite().all():
                    raise NonFinite(f"the data of step {step + 1} is not finite")
                with autocast():
                    where = first_nonfinite(plain, lambda b=batch: loss(plain, b.x0, b.cond, b.draws.again()))
                raise NonFinite(
                    f"the loss of step {step + 1} is {value.item()}; first module with a non-finite output: {where}"
                )
            value.backward()
            total, samples = total + shared, samples + len(batch.x0)
        norm = nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        if not norm.isfinite():
            grads = ((name, p.grad) for name, p in plain.named_parameters() if p.grad is not None)
            where = next(
                (repr(name) for name, grad in grads if not grad.isfinite().all()), "none; their norm overflows"
            )
            raise NonFinite(f"the gradient of step {step + 1} is {norm}; first non-finite gradient: {where}")
        nn.utils.clip_grads_with_norm_(params, clip, norm)
        for group, lr in zip(optim.param_groups, base, strict=True):
            group["lr"] = lr * schedule(step)
        optim.step()
        optim.zero_grad()
        if ema is not None:
            ema.update()
        yield Tick(step + 1, total, norm.item(), optim.param_groups[0]["lr"], samples)


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
