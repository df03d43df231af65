"""The optimizers and their learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import UserError
from .config import OptimConfig
from .precision import in_software

Schedule = Callable[[int], float]  # step, 0 first -> factor on the learning rate


@dataclass(frozen=True)
class Constant:
    """A linear warm-up, then 1."""

    warmup: int = 0

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / (self.warmup + 1))


@dataclass(frozen=True)
class Cosine:
    """A linear warm-up, then half a cosine down to 0 at step `total`."""

    total: int
    warmup: int = 0

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def schedule_from(config: OptimConfig, steps: int) -> Schedule:
    """The schedule that a configuration names, for a run of `steps`."""
    return Cosine(steps, config.warmup) if config.schedule == "cosine" else Constant(config.warmup)


class Together(torch.optim.Optimizer):
    """Several optimizers as one, each with weights of its own."""

    def __init__(self, *parts: torch.optim.Optimizer):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state  # one place for what they remember: it is saved and resumed by the weight

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves all weights."""
        for part in self.parts:
            part.step()


class Rounded(TorchDispatchMode):
    """Products of bf16 as products of fp32, then rounded: what instructions for bf16 do, where a CPU has none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        return func(*(a.float() if isinstance(a, Tensor) else a for a in args), **(kwargs or {})).bfloat16()


class Muon(torch.optim.Muon):
    """torch's, whose products are of bf16 everywhere: on a CPU without it they took four fifths of a step of scenes."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves all weights."""
        device = self.param_groups[0]["params"][0].device
        with Rounded() if in_software("bf16", device) else nullcontext():
            super().step(closure)


KEEPS = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, Muon: {"momentum_buffer"}}  # of a weight


def movers(optim: torch.optim.Optimizer) -> dict[nn.Parameter, torch.optim.Optimizer]:
    """By weight, the optimizer that moves it."""
    parts = optim.parts if isinstance(optim, Together) else (optim,)
    return {p: part for part in parts for group in part.param_groups for p in group["params"]}


def optimizer_from(
    net: nn.Module, config: OptimConfig, growth: Mapping[str, float] = MappingProxyType({})
) -> torch.optim.Optimizer:
    """The optimizer that a configuration names. `growth`: by name of a weight, what its rate is divided by."""
    if config.kind == "adamw":
        return adamw(net, config, growth)
    inside = [(name, p) for name, p in net.named_parameters() if "blocks." in name and p.ndim == 2 and p.requires_grad]
    matrices = [p for name, p in inside if ".mod." not in name]  # modulations learn sooner by AdamW (docs/scenes.md)
    if not matrices:
        raise UserError("optim.kind muon moves the matrices of blocks, and this network has none; take adamw")
    # Steps of the size that AdamW's have: one learning rate is for both (Liu et al. 2025).
    muon = Muon(matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
    return Together(muon, adamw(net, config, but=frozenset(map(id, matrices))))


def adamw(
    net: nn.Module,
    config: OptimConfig,
    growth: Mapping[str, float] = MappingProxyType({}),
    but: Container[int] = (),
) -> torch.optim.AdamW:
    """AdamW; weights of products decay, biases, norms and embeddings do not.

    `growth`: by name of a weight, what its rate is divided by (`model/mup.py`). `but`: the id of weights to leave out.
    """
    embeddings = {id(p) for m in net.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): []}  # the first one's rate is logged
    for name, p in net.named_parameters():
        if p.requires_grad and id(p) not in but:
            decays = p.ndim >= 2 and id(p) not in embeddings
            groups.setdefault((growth.get(name, 1.0), decays), []).append(p)
    return torch.optim.AdamW(
        [
            {"params": params, "lr": config.lr / slower, "weight_decay": config.weight_decay if decays else 0.0}
            for (slower, decays), params in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )
