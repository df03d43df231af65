"""The contestants' networks: ours, the plain DiT and diffusers', all with the same weights.

B batch, C channels.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..accel.compiling import can_compile, compile_blocks
from ..accel.swap import sharing
from ..convert import diffusers as their_layout
from ..convert.rules import Layout, write
from ..diffusion.process import Denoiser
from ..errors import UserError
from ..extras import need
from ..model.config import DiTConfig
from ..model.dit import DiT
from ..nn.tokens import patch_grid
from ..train.precision import autocast
from .ceilings import missing
from .contest import Variant
from .reference import PlainDiT, plain_weights
from .subject import Subject, as_the_paper, network

OURS, PLAIN, THEIRS = "ditwright", "plain", "diffusers"
PEERS = (OURS, PLAIN, THEIRS)
Call = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # (network, x, steps, classes) -> (B, C_out, h, w)
CALLS: dict[str, Call] = {
    PLAIN: lambda net, x, t, y: net(x, t, y),
    THEIRS: lambda net, x, t, y: net(x, timestep=t, class_labels=y, return_dict=False)[0],
}
BF16 = {  # how a peer computes in it: to sample, and to train
    OURS: (("bf16",), ("bf16",)),
    PLAIN: (("autocast", "weights"), ("autocast",)),
    THEIRS: (("autocast", "weights"), ("autocast",)),
}


def variants(
    peer: str,
    precisions: Sequence[str],
    *,
    compiled: bool,
    blocks: bool = False,
    graphs: bool = False,
    training: bool = False,
) -> list[Variant]:
    """The ways in which a peer computes in some of fp32 and bf16; `compiled`: each of them compiled too.

    `blocks` and `graphs`: as Plan has them; ours are compiled in no other way, and only ours have graphs.
    """
    ways = [way for p in precisions for way in ((p,) if p == "fp32" else BF16[peer][training])]
    both, kinds = ([False, True] if asked else [False] for asked in (compiled, graphs and peer == OURS))
    return [
        Variant(way, made, made and blocks and peer != OURS, kind)
        for way, made, kind in itertools.product(ways, both, kinds)
    ]


class Networks:
    """One subject's networks, each made when it is first asked for. All variants of a peer share its weights."""

    def __init__(self, subject: Subject, device: torch.device):
        self.subject, self.device = subject, device

    @cached_property
    def ours(self) -> nn.Module:
        """The network of the configuration, in fp32: the truth."""
        return network(self.subject.config, self.device)

    @cached_property
    def denoiser(self) -> Denoiser:
        """The same, read through its process."""
        return Denoiser(self.ours, self.subject.process).eval()

    def ours_called(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The truth in the words of the others."""
        return self.ours(x, t, {"label": y})

    @cached_property
    def plain(self) -> nn.Module:
        """The plain DiT. UserError where the network is another."""
        config = self._paper("the paper's DiT")
        with self._drawing_nothing():
            net = PlainDiT(config, patch_grid(self.subject.space, config.patch))
        net.load_state_dict(plain_weights(self.ours.state_dict(), config))
        return net.to(self.device).eval()

    @cached_property
    def diffusers(self) -> nn.Module:
        """DiTTransformer2DModel, with two of its numbers set to ours. UserError where it has no such network."""
        config, space = self._paper("diffusers' DiT"), self.subject.space
        if len({*space}) > 1 or len({*config.patch}) > 1 or round(config.mlp_ratio * config.width) != 4 * config.width:
            raise UserError(
                "diffusers' DiT takes square pictures in square patches, and an MLP of four times the width"
            )
        library = need("diffusers", extra="hf")
        with self._drawing_nothing():
            net = library.DiTTransformer2DModel(
                num_attention_heads=config.heads,
                attention_head_dim=config.width // config.heads,
                in_channels=config.channels,
                out_channels=config.out_channels,
                num_layers=config.depth,
                sample_size=space[0],
                patch_size=config.patch[0],
                num_embeds_ada_norm=config.num_classes,
                norm_eps=config.mlp_norm_eps,  # theirs is 1e-5
            )
        for block in net.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = config.time_shift  # theirs is 1
            block.norm1.emb.class_embedder.dropout_prob = 0.0  # in training labels come as they are to drop
        state = {name: tensor.cpu() for name, tensor in self.ours.state_dict().items()}
        net.load_state_dict(write(state, their_layout.RULES, Layout(config)))
        return net.to(self.device).eval()

    def of(self, peer: str) -> nn.Module:
        """The network of a peer that is not us."""
        return self.plain if peer == PLAIN else self.diffusers

    @contextmanager
    def _drawing_nothing(self) -> Iterator[None]:
        """Modules are made on the device; the weights that they draw at first leave the random state as it was."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []), self.device:
            yield

    def _paper(self, whose: str) -> DiTConfig:
        config = as_the_paper(self.subject.config)
        if config is None:
            raise UserError(f"no such network in {whose}")
        return config


def check_here(variant: Variant, device: torch.device) -> None:
    """UserError for what this machine has not."""
    if why := missing(variant.products, device):
        raise UserError(why)
    if variant.compiled and not can_compile():
        raise UserError("torch.compile finds no compiler here: a CPU needs one of C++")


def check_blocks(denoiser: Denoiser, variant: Variant) -> None:
    """UserError where ours is to be compiled and has no blocks for it."""
    if variant.compiled and not isinstance(denoiser.net, DiT):
        raise UserError("ditwright compiles the blocks of transformers; this network is none")


def products(variant: Variant, device: torch.device) -> Callable[[], AbstractContextManager]:
    """A maker of contexts for the forward pass of a script."""
    return autocast("bf16", device) if variant.precision == "autocast" else nullcontext


def compiled(net: nn.Module, variant: Variant) -> Any:
    """By torch.compile as it comes, where the variant says so: the whole of it, or, in a copy, block by block.

    The second is what diffusers calls regional compilation; its DiT does not say which its blocks are, so that its own
    `compile_repeated_blocks` refuses it.
    """
    if not (variant.compiled and variant.blocks):
        return torch.compile(net) if variant.compiled else net
    made = sharing(net)
    compile_blocks(getattr(made, "transformer_blocks", None) or made.blocks, "inductor")
    return made


def asked(peer: str, net: nn.Module, variant: Variant, device: torch.device) -> Callable[..., Tensor]:
    """A peer's network to sample with: (x, steps, classes) -> (B, C_out, h, w) in the type of x.

    UserError for what is not there.
    """
    check_here(variant, device)
    halved = variant.precision == "weights"
    net = nn.Module.to(copy.deepcopy(net), torch.bfloat16) if halved else net  # diffusers' own warns
    made, context = compiled(net.requires_grad_(False), variant), products(variant, device)

    def ask(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with context():
            return CALLS[peer](made, x.to(torch.bfloat16) if halved else x, t, y).to(x.dtype)

    return ask


def laid_out(denoiser: Denoiser, variant: Variant, device: torch.device) -> Denoiser:
    """Ours to sample with. UserError for what is not there."""
    from ..accel.ready import ready

    check_here(variant, device)
    check_blocks(denoiser, variant)
    return ready(denoiser, variant.products, compiled=variant.compiled, graphs=variant.graphs)
