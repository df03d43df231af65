"""Forward passes: of all peers at one size; and what they cost against the number of tokens, and of samples.

B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from ..diffusion.target import Prediction
from ..errors import UserError
from ..model.config import DiTConfig
from ..model.flops import tokens
from .contest import Contest, Entry, Told, Turn, Variant
from .peers import OURS, Networks, asked, laid_out, variants
from .plan import Plan
from .subject import Subject, made_up, noise, steps_of, time_of

EAGER = ("Nothing is compiled here: that would take longer than all else.",)
TOKENS = (64, 256, 1024, 4096)
BATCHES = (1, 2, 4, 8, 16)


def forward(plan: Plan, name: str, device: torch.device) -> Contest:
    """All peers in all variants, on the plan's batch."""
    subject = plan.subjects[name]
    entries = list(entries_of(plan, subject, plan.batch_size, device))
    settings = {"batch_size": plan.batch_size, "input": list(subject.space)}
    return Contest("forward", name, entries, plan.rounds, plan.seconds, settings=settings)


def against_tokens(plan: Plan, name: str, device: torch.device) -> Contest:
    """One sample at a time, of other sizes."""
    sizes = plan.sizes or TOKENS
    subjects = {count: replace(plan.subjects[name], space=square_of(plan.subjects[name], count)) for count in sizes}
    eager = replace(plan, compiled=False)
    entries = [
        replace(entry, size=count)
        for count, subject in subjects.items()
        for entry in entries_of(eager, subject, 1, device)
    ]
    return Contest(
        "tokens", name, entries, plan.rounds, plan.seconds, unit="tokens", notes=EAGER, settings={"batch_size": 1}
    )


def against_batch(plan: Plan, name: str, device: torch.device) -> Contest:
    """Batches of other sizes, all networks the same."""
    eager, subject = replace(plan, compiled=False), plan.subjects[name]
    networks = Networks(subject, device)
    entries = [
        replace(entry, size=count)
        for count in plan.sizes or BATCHES
        for entry in entries_of(eager, subject, count, device, networks)
    ]
    settings = {"input": list(subject.space)}
    return Contest("batch", name, entries, plan.rounds, plan.seconds, unit="batch", notes=EAGER, settings=settings)


def square_of(subject: Subject, count: int) -> tuple[int, ...]:
    """The size of a square input that is so many tokens. UserError where there is none."""
    config, side = subject.config, round(count**0.5)
    if not isinstance(config, DiTConfig) or len(config.patch) != 2 or side * side != count:
        raise UserError("cost against tokens is of transformers over pictures, at square numbers of tokens")
    space = tuple(side * p for p in config.patch)
    assert tokens(config, space) == count, "as many as asked"
    return space


def entries_of(
    plan: Plan, subject: Subject, batch: int, device: torch.device, networks: Networks | None = None
) -> Iterator[Entry]:
    """All peers in all variants on a batch."""
    networks = networks or Networks(subject, device)
    flops = batch * subject.forward_flops()

    @lru_cache(1)
    def inputs() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        x = noise(batch, subject.config.channels, subject.space, device)  # (B, C, *space)
        return x, steps_of(batch, device), made_up(subject.config, batch, subject.text, device)

    @lru_cache(1)
    @torch.inference_mode()
    def truth() -> Told:
        x, step, cond = inputs()
        return {"output": networks.ours(x, step, cond)}

    def make(peer: str, variant: Variant) -> Turn:
        x, step, cond = inputs()
        if peer == OURS:
            denoiser, t = laid_out(networks.denoiser, variant, device), time_of(step)

            @torch.inference_mode()
            def ours() -> Prediction:
                return denoiser(x, t, cond)

            return Turn(ours, lambda: {"output": raw(ours())})
        ask = asked(peer, networks.of(peer), variant, device)

        @torch.inference_mode()
        def theirs() -> Tensor:
            return ask(x, step, cond["label"])

        return Turn(theirs, lambda: {"output": theirs()})

    for peer in plan.peers:
        for variant in variants(peer, plan.precisions, compiled=plan.compiled, blocks=plan.blocks):
            if plan.wants(peer, variant):
                yield Entry(
                    peer,
                    partial(make, peer, variant),
                    variant,
                    truth=truth,
                    samples=batch,
                    flops=flops,
                )


def raw(pred: Prediction) -> Tensor:
    """What a network said that predicts the noise."""
    return pred.eps if pred.var is None else torch.cat((pred.eps, 2 * pred.var - 1), 1)
