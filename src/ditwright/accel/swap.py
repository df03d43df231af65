"""Layers put in the place of others, in a copy of a network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def sharing(net: Net) -> Net:
    """A copy with modules of its own and the same weights: layers of it can be replaced, and nothing is there twice."""
    kept = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    return copy.deepcopy(net, kept)


def swap(net: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace every submodule for which `make` gives another; what lies within a replaced one is left alone."""
    for name, child in net.named_children():
        made = make(child)
        if made is None:
            swap(child, make)
        else:
            setattr(net, name, made)
