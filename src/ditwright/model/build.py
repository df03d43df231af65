"""From a configuration to a network."""

from __future__ import annotations

import torch

from .baseline import NetConfig, UNetConfig
from .dit import DiT, initialise
from .unet import UNet, initialise_unet


def empty(config: NetConfig) -> DiT | UNet:
    """The network with whatever weights torch gives it: to be filled, or counted on the meta device."""
    return UNet(config) if isinstance(config, UNetConfig) else DiT(config)


def build(config: NetConfig, seed: int = 0) -> DiT | UNet:
    """A freshly initialised network; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = empty(config)
        if isinstance(net, UNet):
            initialise_unet(net)
        else:
            initialise(net)
    return net


def parameters(config: NetConfig) -> int:
    """Trained parameters of a network, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in empty(config).parameters())
