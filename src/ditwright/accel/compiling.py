"""torch.compile where it pays: block by block, all of one kind by one graph, and whatever runs them stays Python."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..errors import UserError

GRAPHS = 64  # that all blocks of a process may have, which are one piece of code to torch; past them it warns, and no
# more are made. Its own 8 are fewer than SD3.5's kinds of block at two resolutions.


def can_compile() -> bool:
    """Whether torch.compile has the compiler that it needs here: its own on a GPU, one of C++ on a CPU."""
    return torch.cuda.is_available() or any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++")))


def compile_blocks(blocks: Iterable[nn.Module], backend: Callable | None = None) -> None:
    """Compile each in place, when it first runs, by torch's own compiler or another `backend` of torch.compile.

    All blocks of a kind are one graph; the second size of an input makes one that fits all further sizes, and a batch
    of one has graphs of its own. UserError where there is no compiler: it is never done without.
    """
    if not can_compile():
        raise UserError("compile needs a C++ compiler on a CPU (g++ or clang++, or its path in CXX); leave it out here")
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, GRAPHS)
    how = {"options": rewrites()} if backend is None else {"backend": backend}
    for block in blocks:
        block.compile(**how)


def rewrites() -> dict[str, Any]:
    """Options of torch.compile that bring them in; none, and a warning, where this torch lacks what they build on."""
    try:
        from .rewrite import OPTIONS  # which imports that compiler: a second
    except ImportError as error:
        warnings.warn(
            f"torch {torch.__version__} has not what accel/rewrite.py is built on ({error}): blocks are compiled "
            "without it, which costs some speed on a CPU",
            stacklevel=3,
        )
        return {}
    return OPTIONS
