"""A training step with optimizer and average of the weights: ours as `ditwright train` does it, others as scripts do.

All variants of a peer train the same weights in turn, with the same optimizer. The loss is the noise's squared error
(Peebles & Xie, Sec. 3.1, without the term of the variance) of the paper's networks, and a run's own of any other.

B batch, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..accel.compiling import compile_blocks
from ..accel.swap import sharing
from ..diffusion.config import ObjectiveConfig
from ..diffusion.objective import Loss, Objective, objective_from
from ..diffusion.process import Cond, Denoiser
from ..diffusion.times import Discrete
from ..rng import Draws
from ..train.ahead import Made, loaded
from ..train.config import OptimConfig
from ..train.ema import EMA
from ..train.fit import Batch, fit
from ..train.optim import adamw, schedule_from
from ..train.precision import autocast
from .contest import Contest, Entry, Told, Turn, Variant
from .peers import CALLS, OURS, PLAIN, THEIRS, Networks, check_blocks, check_here, compiled, products, variants
from .plan import Plan
from .subject import STEPS, Subject, as_the_paper, made_up, noise

OPTIM = OptimConfig()
AHEAD = 2  # batches, as in a run
LIMITS = {"fp32": 1e-3, "bf16": 5e-2}  # of the loss, and of the gradient's norm
EMBEDDERS = (
    "time.",
    "vectors.",
    "label.",
    "timestep_embedder",
    "class_embedder",
)  # diffusers copies them to all blocks
NOTES = (
    "A step is forward, backward, clipping to a norm of 1, AdamW and the average of the weights, with noise and times "
    "of its own.",
    "Checked are the first loss and the norm of the gradients, without those of the embedders of time and class, of "
    "which diffusers has a copy in every block.",
)


def step(plan: Plan, name: str, device: torch.device) -> Contest:
    """All peers in all variants, on the plan's batch."""
    subject = plan.subjects[name]
    trainers = Trainers(subject, plan.batch_size, device)
    entries = [
        Entry(
            peer,
            partial(trainers.turn, peer, variant),
            variant,
            truth=lambda: trainers.truth,
            samples=plan.batch_size,
            flops=plan.batch_size * subject.step_flops(),
        )
        for peer in plan.peers
        for variant in variants(peer, plan.precisions, compiled=plan.compiled, blocks=plan.blocks, training=True)
        if plan.wants(peer, variant)
    ]
    settings = {"batch_size": plan.batch_size, "input": list(subject.space)}
    return Contest("step", name, entries, plan.rounds, plan.seconds, LIMITS, notes=NOTES, settings=settings)


@dataclass
class Script:
    """What a training script keeps."""

    net: nn.Module
    average: nn.Module
    optim: torch.optim.Optimizer


class Trainers:
    """One subject's trainers, each made when it is first asked for."""

    def __init__(self, subject: Subject, batch: int, device: torch.device):
        self.subject, self.batch, self.device = subject, batch, device
        self.networks = Networks(subject, device)

    @cached_property
    def data(self) -> tuple[Tensor, Cond]:
        """Clean samples (B, C, *space) and their conditions."""
        config, size = self.subject.config, self.batch
        return noise(size, config.channels, self.subject.space, self.device), made_up(
            config, size, self.subject.text, self.device
        )

    @cached_property
    def loss(self) -> Loss:
        """Ours."""
        process = self.subject.process
        if as_the_paper(self.subject.config):
            return Objective(process, Discrete(STEPS))
        return objective_from(ObjectiveConfig(times="discrete"), process)

    @cached_property
    def first(self) -> tuple[Denoiser, torch.optim.Optimizer, EMA]:
        """Ours, in training."""
        denoiser = Denoiser(copy.deepcopy(self.networks.ours), self.subject.process).train()
        return denoiser, adamw(denoiser, OPTIM), EMA(denoiser, OPTIM.ema)

    @cached_property
    def scripts(self) -> Callable[[str], Script]:
        """Those of peers, by name."""

        @lru_cache
        def made(peer: str) -> Script:
            net = copy.deepcopy(self.networks.of(peer)).train()
            optim = torch.optim.AdamW(net.parameters(), OPTIM.lr, weight_decay=0.0, fused=peer == THEIRS or None)
            return Script(net, copy.deepcopy(net).eval().requires_grad_(False), optim)

        return made

    @cached_property
    def truth(self) -> Told:
        """Loss and norm of our fp32 network."""
        denoiser = Denoiser(copy.deepcopy(self.networks.ours), self.subject.process).train()
        return self.told(denoiser, lambda: self.own_loss(denoiser))

    def own_loss(self, denoiser: nn.Module) -> Tensor:
        """Of the first batch, whose times and noise everybody takes for the check."""
        x, cond = self.data
        return self.loss(denoiser, x, cond, self.draws(0)).mean()

    def draws(self, number: int) -> Draws:
        """The randomness of a batch in the endless sequence."""
        return Draws(0, range(number * self.batch, (number + 1) * self.batch), "train")

    def told(self, net: nn.Module, loss: Callable[[], Tensor]) -> Told:
        """The loss, and the norm of its gradients."""
        value = loss()
        value.backward()
        trained = [p.grad for name, p in net.named_parameters() if p.grad is not None and not embeds(name)]
        norm = nn.utils.get_total_norm(trained)
        net.zero_grad()
        return {"loss": value.detach().float(), "gradient norm": norm.detach().float()}

    def turn(self, peer: str, variant: Variant) -> Turn:
        """A contestant. UserError for what is not there."""
        check_here(variant, self.device)
        return self.ours(variant) if peer == OURS else self.theirs(peer, variant)

    def ours(self, variant: Variant) -> Turn:
        """As `ditwright train` does it: fit, AdamW and the average of a run, blocks compiled."""
        first, optim, ema = self.first
        check_blocks(first, variant)
        denoiser, context = sharing(first), autocast(variant.products, self.device)
        if variant.compiled:
            compile_blocks(denoiser.net.blocks)

        def batches() -> Iterator[Batch]:
            for number in count():
                yield Batch(*self.data, Made(self.draws(number), self.data[0]))

        def loss() -> Tensor:
            with context():
                return self.own_loss(denoiser)

        coming, schedule = loaded(batches(), AHEAD, self.device), schedule_from(OPTIM, 1)
        ticks = fit(denoiser, self.loss, coming, optim, schedule=schedule, ema=ema, autocast=context)
        return Turn(lambda: next(ticks), lambda: self.told(denoiser, loss))

    def theirs(self, peer: str, variant: Variant) -> Turn:
        """As scripts do it: noise from the device's generator, the step in a few lines."""
        script, context = self.scripts(peer), products(variant, self.device)
        net, (x0, cond) = compiled(script.net, variant), self.data
        generator = torch.Generator(self.device).manual_seed(0)
        path, channels = self.subject.process.path, self.subject.config.channels
        table = path((torch.arange(STEPS, device=self.device).double() + 1) / STEPS)
        alpha, sigma = table.alpha.float(), table.sigma.float()  # (STEPS,) each

        def loss(t: Tensor, eps: Tensor) -> Tensor:
            x = alpha[t].view(-1, 1, 1, 1) * x0 + sigma[t].view(-1, 1, 1, 1) * eps
            with context():
                out = CALLS[peer](net, x, t, cond["label"])
            return F.mse_loss(out[:, :channels].float(), eps)

        def work() -> None:
            t = torch.empty(self.batch, dtype=torch.int64, device=self.device).random_(0, STEPS, generator=generator)
            loss(t, torch.empty_like(x0).normal_(generator=generator)).backward()
            nn.utils.clip_grad_norm_(script.net.parameters(), OPTIM.clip)
            script.optim.step()
            script.optim.zero_grad()
            AVERAGES[peer](script)

        def check() -> Tensor:
            draws = self.draws(0)
            t = (Discrete(STEPS)(draws.uniform()) * STEPS - 1).round().long().to(self.device)
            return loss(t, draws.normal(x0))

        return Turn(work, lambda: self.told(script.net, check))


def embeds(name: str) -> bool:
    """Whether a weight is of the embedders of time and class."""
    return name.removeprefix("net.").startswith(EMBEDDERS) or any(part in name for part in EMBEDDERS[-2:])


@torch.no_grad()
def one_by_one(script: Script) -> None:
    """The average as in most scripts: weight after weight."""
    for mine, theirs in zip(script.average.parameters(), script.net.parameters(), strict=True):
        mine.mul_(OPTIM.ema).add_(theirs, alpha=1 - OPTIM.ema)


@torch.no_grad()
def together(script: Script) -> None:
    """The average in one call."""
    torch._foreach_lerp_(list(script.average.parameters()), list(script.net.parameters()), 1 - OPTIM.ema)


AVERAGES = {PLAIN: one_by_one, THEIRS: together}
