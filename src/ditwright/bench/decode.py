"""From latents to pixels: our codec around an AutoencoderKL beside the AutoencoderKL itself.

B batch, C channels of latents; h, w their height and width.
"""

from __future__ import annotations

import copy
import tempfile
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..codec.autoencoder import Autoencoder
from ..codec.config import AutoencoderConfig
from ..codec.learn import build
from ..train.precision import autocast
from .contest import Contest, Entry, Told, Turn, Variant
from .peers import OURS, PLAIN, check_here, compiled, variants
from .plan import Plan
from .subject import noise

CONFIG = AutoencoderConfig(widths=(32, 64, 64, 64), attention=True)  # of random weights: none are at hand
SIDE = 32  # of the latents


def decode(plan: Plan, device: torch.device) -> Contest:
    """Ours, and diffusers' own class, on the plan's batch. Ours is compiled nowhere."""
    decoders = Decoders(plan.batch_size, device)
    entries = [
        Entry(
            peer,
            partial(decoders.turn, peer, variant),
            variant,
            truth=lambda: decoders.truth,
            samples=plan.batch_size,
        )
        for peer in plan.peers
        if peer != PLAIN
        for variant in variants(peer, plan.precisions, compiled=plan.compiled and peer != OURS)
    ]
    settings = {"batch_size": plan.batch_size, "input": [SIDE, SIDE], "widths": list(CONFIG.widths)}
    notes = (
        "A small AutoencoderKL with random weights; on a CPU our codec takes one picture at a time, channels last.",
    )
    subject = f"AutoencoderKL, factor {CONFIG.factor}"
    return Contest("decode", subject, entries, plan.rounds, plan.seconds, notes=notes, settings=settings)


class Decoders:
    """The same autoencoder in all hands."""

    def __init__(self, batch: int, device: torch.device):
        self.batch, self.device = batch, device

    @cached_property
    def net(self) -> nn.Module:
        """diffusers' own. UserError where the package is not there."""
        return build(CONFIG, SIDE * CONFIG.factor, 0).to(self.device).eval().requires_grad_(False)

    @cached_property
    def latents(self) -> Tensor:
        """(B, C, h, w)"""
        return noise(self.batch, CONFIG.channels, (SIDE, SIDE), self.device)

    @cached_property
    def truth(self) -> Told:
        """In fp32, all at once."""
        with torch.inference_mode():
            return {"pixels": self.net.decode(self.latents / self.net.config["scaling_factor"]).sample}

    def turn(self, peer: str, variant: Variant) -> Turn:
        """A contestant. UserError for what is not there."""
        check_here(variant, self.device)
        dtype = torch.bfloat16 if variant.precision in ("bf16", "weights") else torch.float32
        if peer == OURS:
            with tempfile.TemporaryDirectory() as folder:
                self.net.save_pretrained(folder)
                codec = Autoencoder.found(str(Path(folder))).ready().to(self.device, dtype)
            return Turn(lambda: codec.pixels(self.latents), lambda: {"pixels": codec.pixels(self.latents)})
        net = nn.Module.to(copy.deepcopy(self.net), dtype)
        net.decoder = compiled(net.decoder, variant)
        context = autocast("bf16", self.device) if variant.precision == "autocast" else nullcontext

        @torch.inference_mode()
        def work() -> Tensor:
            with context():
                return net.decode((self.latents / net.config["scaling_factor"]).to(dtype)).sample.float()

        return Turn(work, lambda: {"pixels": work()})
