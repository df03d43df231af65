"""What is measured: networks with random weights, and inputs that mean nothing.

B batch, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..diffusion.config import ProcessConfig
from ..diffusion.process import Cond, Process, process_from
from ..model.baseline import NetConfig
from ..model.build import empty
from ..model.config import DiTConfig, Stage
from ..model.flops import macs
from ..rng import Draws
from ..train.cost import training_flops

STEPS = 1000  # of the DDPM table
BIAS = 0.02  # spread of random biases


@dataclass(frozen=True)
class Subject:
    """A network, and the size of its input."""

    config: NetConfig
    space: tuple[int, ...]
    text: int = 0  # tokens, where the network hears text

    @property
    def process(self) -> Process:
        """DDPM's, the noise predicted: what is told of eps is the network's output as it is."""
        return process_from(ProcessConfig("ddpm", "noise", steps=STEPS, learned_var=self.learned))

    @property
    def learned(self) -> bool:
        """Whether half of the output's channels are the variance."""
        return self.config.out_channels == 2 * self.config.channels

    def forward_flops(self) -> int:
        """Of one sample, 2 to a multiply-add. UserError where the size does not fit the network."""
        return 2 * sum(macs(self.config, self.space, self.text).values())

    def step_flops(self) -> int:
        """Of one sample, backward as twice forward."""
        return training_flops(self.config, self.space, 1, self.text)


def as_the_paper(config: NetConfig) -> DiTConfig | None:
    """The configuration of a DiT that is the paper's but for its sizes; None for any other network."""
    if not isinstance(config, DiTConfig) or not config.num_classes or len(config.patch) != 2:
        return None
    sizes = ("width", "heads", "patch", "channels", "out_channels", "num_classes", "mlp_ratio")
    paper = DiTConfig(stages=(Stage(config.depth),), **{name: getattr(config, name) for name in sizes})
    return config if config == paper else None


def network(config: NetConfig, device: torch.device, seed: int = 0) -> nn.Module:
    """A network in which every weight counts, those too that are zero at first.

    Matrices are normal with the inverse of the root of their inputs, vectors of classes 1, other vectors BIAS; the
    weights of norms lie around 1.
    """
    draws = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        net = empty(config)
    net = net.to_empty(device=device).eval()
    with torch.no_grad():
        for module in net.modules():
            for name, p in module.named_parameters(recurse=False):
                spread = 1.0 if isinstance(module, nn.Embedding) else p[0].numel() ** -0.5 if p.ndim > 1 else BIAS
                p.normal_(std=spread, generator=draws)
                if p.ndim == 1 and name == "weight":
                    p.add_(1)  # of a norm
    return net


def noise(count: int, channels: int, space: tuple[int, ...], device: torch.device) -> Tensor:
    """(B, C, *space), the same whatever else is drawn."""
    return Draws(0, range(count), "bench").normal(torch.empty(count, channels, *space)).to(device)


def steps_of(count: int, device: torch.device) -> Tensor:
    """(B,) int64: steps of the table, from its middle on."""
    return (torch.arange(count) * 37 + STEPS // 2).remainder(STEPS).to(device)


def time_of(step: Tensor) -> Tensor:
    """The time of a step of the table, in float64 so that the network is told the very step."""
    return (step.double() + 1) / STEPS


def made_up(config: NetConfig, count: int, text: int, device: torch.device) -> Cond:
    """Conditions of so many samples, of `text` tokens where the network hears text: as it asks for, and meaningless."""
    draws, cond = Draws(0, range(count), "conditions"), dict[str, Tensor]()
    if config.num_classes:
        cond["label"] = torch.arange(count) % config.num_classes
    if isinstance(config, DiTConfig):
        if config.text_vocab:
            cond["text"] = torch.zeros(count, text, dtype=torch.int64)
        elif config.text_width:
            cond["text"] = draws.normal(torch.empty(count, text, config.text_width))
        if config.pooled_width:
            cond["pooled"] = draws.normal(torch.empty(count, config.pooled_width))
        if config.guidance:
            cond["guidance"] = torch.full((count,), 3.5)
        if config.sizes:
            cond["size"] = torch.ones(count, 3)
    return {name: told.to(device) for name, told in cond.items()}
