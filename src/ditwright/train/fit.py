"""The training loop as a generator: everything that is not the step lives in the caller.

B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
from .nonfinite import Cause, NonFinite, cause_of_gradient, cause_of_loss, first_of


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
    skipped: int = 0  # steps in a row, this one the last of them, that moved nothing
    why: str = ""  # it was skipped: loss and norm are NaN


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
    norm: Callable[[list[Tensor]], Tensor] = nn.utils.get_total_norm,
    gather: Callable[[Cause], Sequence[Cause]] = lambda cause: [cause],
    skip: int = 0,
    skipped: int = 0,
) -> Iterator[Tick]:
    """Train until `batches` end or the caller stops; yields after every optimizer step.

    `schedule(step)` multiplies the learning rate of each group, step 0 first; `done` steps came before (resume).
    Each step takes `accumulate` batches. Gradients are clipped to the norm `clip`. `run` decides how the blocks run
    (`checkpointed` saves memory); `mean` takes the mean of a number over processes, `norm` that of all gradients
    together, `gather` what each process found. A step whose loss or gradient is not finite changes nothing but the
    place: at most `skip` in a row, of which `skipped` came before, then NonFinite, in the same words on all of them.
    """
    params = [p for group in optim.param_groups for p in group["params"]]
    base = [group.setdefault("initial_lr", group["lr"]) for group in optim.param_groups]
    ask, plain = partial(denoiser, run=run), getattr(denoiser, "module", denoiser)  # not as DDP wraps it
    history = loss if skip and isinstance(loss, nn.Module) else None
    optim.zero_grad()
    for step in count(done):
        seen: list[tuple[Batch, Tensor]] = []
        before = {} if history is None else {name: kept.clone() for name, kept in history.state_dict().items()}
        for _ in range(accumulate):
            if (batch := next(batches, None)) is None:
                return
            with autocast():
                value = loss(ask, batch.x0, batch.cond, batch.draws).mean() / accumulate
            value.backward()
            seen.append((batch, value.detach()))
        # Before any number is asked for: who asks has a GPU run dry, so all of a step is asked for in one place.
        length = norm([p.grad for p in params if p.grad is not None])
        shrink = clip / (length + 1e-6)  # as torch has it
        losses, why = [mean(value.item()) for _, value in seen], ""
        if wrong := [n for n, shared in enumerate(losses) if not math.isfinite(shared)]:
            batch, value = seen[wrong[0]]
            with autocast():
                again = partial(loss, plain, batch.x0, batch.cond, batch.draws.again())
                why = first_of(gather(cause_of_loss(step + 1, value.item(), plain, batch.x0, again)))
        if not why and not math.isfinite(shared := mean(length.item())):  # all processes skip, or none
            why = first_of(gather(cause_of_gradient(step + 1, shared, plain)))
        if (skipped := skipped + 1 if why else 0) > skip:
            raise NonFinite(why)
        if why:
            if history is not None:
                history.load_state_dict(before)
        else:
            if (scale := shrink.item()) < 1:  # to multiply all by 1 takes its time
                # By a number, no tensor: weights may lie on several meshes. Kept nowhere: gradients take memory.
                torch._foreach_mul_([p.grad for p in params if p.grad is not None], scale)
            for group, lr in zip(optim.param_groups, base, strict=True):
                group["lr"] = lr * schedule(step)
            optim.step()
            if ema is not None:
                ema.update()
        optim.zero_grad()
        samples = sum(len(batch.x0) for batch, _ in seen)
        told = (math.nan, math.nan) if why else (sum(losses), length.item())
        yield Tick(step + 1, *told, optim.param_groups[0]["lr"], samples, skipped, why)
