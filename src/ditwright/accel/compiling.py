"""torch.compile where it pays: block by block, all of one kind by one graph, and whatever runs them stays Python."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable

import torch
from torch import nn

from ..errors import UserError


def can_compile() -> bool:
    """Whether torch.compile has the compiler that it needs here: its own on a GPU, one of C++ on a CPU."""
    return torch.cuda.is_available() or any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")))


def compile_blocks(blocks: Iterable[nn.Module], backend: Callable | None = None) -> None:
    """Compile each in place, when it first runs, by torch's own compiler or another `backend` of torch.compile.

    The second size of an input makes a graph that fits all further ones. UserError where there is no compiler: it is
    never done without.
    """
    if not can_compile():
        raise UserError("compile needs a C++ compiler on a CPU (g++ or clang++, or its path in CXX); leave it out here")
    if backend is None:
        from .rewrite import OPTIONS  # which imports that compiler: a second

        how = {"options": OPTIONS}
    else:
        how = {"backend": backend}
    for block in blocks:
        block.compile(**how)
