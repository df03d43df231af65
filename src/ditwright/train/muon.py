"""Muon, whose orthogonal matrices the processes of a run work out together.

N matrices of one shape, R rows, C columns.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

QUINTIC, STEPS = (3.4445, -4.7750, 2.0315), 5  # steep at 0, so that few steps do (Jordan et al. 2024)


class Muon(torch.optim.Optimizer):
    """Moves matrices along the orthogonal ones nearest to their momentum (Jordan et al. 2024), as torch.optim.Muon.

    torch's works out all of them in every process, one after the other. Here those of one shape are one product, and
    each of `size` processes, whose gradients are the same, takes its part of them. What it remembers and how weights
    move is torch's bit for bit. Steps have the size of AdamW's ("match_rms_adamw" there, Liu et al. 2025).
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        *,
        rank: int = 0,
        size: int = 1,
    ):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.rank, self.size = rank, size

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves all that have a gradient. All processes must call it."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad for p in moved]
            for p in moved:
                self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            kept = [self.state[p]["momentum_buffer"] for p in moved]
            torch._foreach_lerp_(kept, grads, 1 - group["momentum"])
            ahead = torch._foreach_lerp(grads, kept, group["momentum"])  # Nesterov's
            torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
            for p, step in zip(moved, self._orthogonal(ahead), strict=True):
                p.add_(step, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)

    def _orthogonal(self, matrices: Iterable[Tensor]) -> Iterable[Tensor]:
        """Of each matrix the nearest orthogonal one, in bf16, worked out by whichever process."""
        alike: dict[torch.Size, dict[int, Tensor]] = {}
        for n, matrix in enumerate(matrices):
            alike.setdefault(matrix.shape, {})[n] = matrix
        found: dict[int, Tensor] = {}
        waits = []
        for group in alike.values():
            stack = torch.stack(list(group.values())).bfloat16()  # (N, R, C)
            parts = [stack[len(stack) * r // self.size : len(stack) * (r + 1) // self.size] for r in range(self.size)]
            parts[self.rank].copy_(orthogonal(parts[self.rank]))
            if self.size > 1:
                waits += [dist.broadcast(part, r, async_op=True) for r, part in enumerate(parts) if len(part)]
            found |= dict(zip(group, stack, strict=True))
        for wait in waits:
            wait.wait()
        return (found[n] for n in range(len(found)))


def orthogonal(stack: Tensor) -> Tensor:
    """(N, R, C) bf16 -> likewise: nearly the orthogonal factor of each matrix, by Newton-Schulz steps."""
    a, b, c = QUINTIC
    x = stack.mT if stack.shape[-2] > stack.shape[-1] else stack
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if stack.shape[-2] > stack.shape[-1] else x
