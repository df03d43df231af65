"""Sampling with classifier-free guidance by DDIM, from class labels to latents; guided and free rows in one batch.

B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..accel.ready import along
from ..codec.config import CodecConfig
from ..diffusion.config import ProcessConfig, SampleConfig
from ..diffusion.grid import grid_for, landings
from ..diffusion.guidance import guided
from ..diffusion.process import Denoiser
from ..diffusion.sampler import ddim, last
from ..errors import UserError
from ..extras import need
from ..rng import Draws
from .contest import Contest, Entry, Told, Turn, Variant
from .peers import OURS, PLAIN, Networks, asked, laid_out, variants
from .plan import Plan
from .subject import STEPS, Subject, as_the_paper

SCALE = 4.0  # of guidance
LIMITS = {"fp32": 1e-3, "bf16": 2e-2}  # of the last latents
CODEC = CodecConfig("kl", 4, 8, scale=(0.18215,), shift=(0.0,))  # its weights are never read
Ask = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, steps, classes) -> (B, C_out, h, w)


def sampling(plan: Plan, name: str, device: torch.device) -> Contest:
    """All peers in all variants, on the plan's batch and steps. UserError for networks without classes."""
    subject, steps = plan.subjects[name], plan.first or plan.steps
    if as_the_paper(subject.config) is None:
        raise UserError("sampling is timed of the paper's DiT, which is told a class")
    walks = Walks(plan, subject, device)
    entries = [
        Entry(
            peer,
            partial(walks.turn, peer, variant),
            variant,
            truth=lambda: walks.truth,
            samples=plan.batch_size * steps / plan.steps,
            flops=2 * steps * plan.batch_size * subject.forward_flops(),
        )
        for peer in plan.peers
        for variant in variants(peer, plan.precisions, compiled=plan.compiled, blocks=plan.blocks, graphs=plan.graphs)
        if plan.wants(peer, variant)
    ]
    whole = f"{plan.steps} steps" if steps == plan.steps else f"the first {steps} of {plan.steps} steps"
    walked = f"A call is {whole} of DDIM with guidance {SCALE:g}; its last latents are checked."
    notes = (walked, f"Samples/s are of {plan.steps} steps.")
    if find_spec("PIL") is None:
        notes += ("Ours is walked without its pipeline, which needs Pillow.",)
    settings = {"batch_size": plan.batch_size, "input": list(subject.space), "steps": plan.steps, "steps_walked": steps}
    return Contest("sampling", name, entries, plan.rounds, plan.seconds, LIMITS, 0, notes=notes, settings=settings)


class Walks:
    """One subject's samplers."""

    def __init__(self, plan: Plan, subject: Subject, device: torch.device):
        self.subject, self.device, self.batch = subject, device, plan.batch_size
        self.networks = Networks(subject, device)
        self.steps, self.first = plan.steps, plan.first or plan.steps
        self.labels = [place % subject.config.num_classes for place in range(self.batch)]

    @cached_property
    def truth(self) -> Told:
        """Our fp32 network in the plain loop."""
        with torch.inference_mode():
            return {"latents": self.plain_loop(self.networks.ours_called)}

    def turn(self, peer: str, variant: Variant) -> Turn:
        """A contestant. UserError for what is not there."""
        if peer == OURS:
            work = self.by_pipeline(laid_out(self.networks.denoiser, variant, self.device))
        else:
            ask = asked(peer, self.networks.of(peer), variant, self.device)
            loop = self.plain_loop if peer == PLAIN else self.diffusers_loop
            work = torch.inference_mode()(partial(loop, ask))
        return Turn(work, lambda: {"latents": work()})

    def start(self) -> Tensor:
        """(B, C, h, w) the noise from which everybody starts: that of our seed 0."""
        like = torch.empty(self.batch, self.subject.config.channels, *self.subject.space)
        return Draws(0, range(self.batch), "sample").normal(like).to(self.device)

    def classes(self) -> Tensor:
        """(2 B,) the classes, then the null class."""
        null = [self.subject.config.num_classes] * self.batch
        return torch.tensor(self.labels + null, device=self.device)

    def by_pipeline(self, denoiser: Denoiser) -> Callable[[], Tensor]:
        """What users call; where Pillow is not installed, which it needs, what it calls."""
        try:
            from ..pipeline import Card, Pipeline
        except ModuleNotFoundError as error:
            if error.name != "PIL":
                raise
            return partial(self.by_parts, denoiser)
        config, learned = self.subject.config, self.subject.learned
        process, sides = ProcessConfig("ddpm", "noise", learned_var=learned), self.subject.space
        sample = SampleConfig(num_inference_steps=self.steps, guidance_scale=SCALE, timestep_spacing="leading")
        size = tuple(side * CODEC.factor for side in sides)
        pipe = Pipeline(denoiser, Card(config, process, CODEC, sample, image_size=size))  # type: ignore[arg-type]
        settings: dict[str, Any] = {"seed": 0, "batch_size": self.batch}
        return lambda: last(islice(pipe.steps(self.labels, **settings), self.first))

    @torch.no_grad()
    def by_parts(self, denoiser: Denoiser) -> Tensor:
        """The walk of a pipeline without the pipeline."""
        times, label = grid_for(self.subject.process, self.steps, "leading"), self.classes()
        cond, null = ({"label": half} for half in label.chunk(2))
        denoise = guided(along(denoiser, times), cond, null, SCALE)
        walk = ddim(denoise, self.start(), times, self.subject.process.path, to=landings(times, STEPS, True))
        return last(islice(walk, self.first))

    def plain_loop(self, ask: Ask) -> Tensor:
        """DDIM in a few lines (Song et al. 2020, eq. 12), as scripts have it."""
        x, y, channels, stride = self.start(), self.classes(), self.subject.config.channels, STEPS // self.steps
        betas = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
        abar = torch.cat((torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)))  # one step on
        for t in (stride * place for place in range(self.steps - 1, self.steps - 1 - self.first, -1)):
            told = torch.full((len(y),), t, device=self.device)
            eps, free = ask(torch.cat((x, x)), told, y)[:, :channels].chunk(2)
            eps = free + SCALE * (eps - free)
            here, there = abar[t + 1].item(), abar[max(0, t + 1 - stride)].item()
            x0 = (x - (1 - here) ** 0.5 * eps) / here**0.5
            x = there**0.5 * x0 + (1 - there) ** 0.5 * eps
        return x

    def diffusers_loop(self, ask: Ask) -> Tensor:
        """That of diffusers' DiTPipeline, with its scheduler."""
        library = need("diffusers", extra="hf")
        scheduler = library.DDIMScheduler(
            num_train_timesteps=STEPS, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False
        )
        scheduler.set_timesteps(self.steps)
        x, y, channels = torch.cat((self.start(),) * 2), self.classes(), self.subject.config.channels
        for t in scheduler.timesteps[: self.first]:
            half = x[: len(x) // 2]
            x = scheduler.scale_model_input(torch.cat((half, half)), t)
            out = ask(x, t.expand(len(x)).to(self.device), y)
            eps, free = out[:, :channels].chunk(2)
            eps = free + SCALE * (eps - free)
            x = scheduler.step(torch.cat((eps, eps)), t, x).prev_sample
        return x.chunk(2)[0]
