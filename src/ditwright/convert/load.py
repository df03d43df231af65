"""Foreign weights in one call."""

from __future__ import annotations

from pathlib import Path

import torch

from ..diffusion.process import Denoiser, process_from
from ..errors import UserError, lookup
from ..model.dit import DiT
from ..model.weights import State, load_strictly
from .diffusers import DIFFUSERS
from .dit import DIT
from .rules import Family, rename
from .sit import SIT

FAMILIES: dict[str, Family] = {"dit": DIT, "sit": SIT, "diffusers": DIFFUSERS}


def load(path_or_state_dict: str | Path | State, *, family: str = "dit", heads: int | None = None) -> Denoiser:
    """A denoiser from original-layout weights of a family ("dit", "sit", "diffusers"), in eval mode and float32.

    `path_or_state_dict`: a `.safetensors` or `.pt` file (plain, or {"model", "ema", ...}: the EMA is taken), the folder
    of a DiTPipeline or its transformer (diffusers), or the state dict itself. `heads`: needed where the width is none
    of the paper's and no config.json tells. UserError names the key that is unknown, missing or misshapen.
    """
    table = lookup("family", family, FAMILIES)
    if isinstance(path_or_state_dict, dict):
        state, told = dict(path_or_state_dict), None
    else:
        state, told = table.read(Path(path_or_state_dict))
    config = table.infer(state, told if heads is None else heads)
    if config.out_channels not in (config.channels, 2 * config.channels):
        raise UserError(
            f"the last layer gives {config.out_channels} channels; the input has {config.channels}: "
            "expected as many, or twice as many where the variance is learned"
        )
    if missing := [key for key in table.expected(config) if key not in state]:
        raise UserError(f"the checkpoint lacks the key {missing[0]!r}")
    state, config = table.prepare(state, config)
    renamed, source = rename(state, table.rules)
    table.check(state, config)
    with torch.device("meta"):
        net = DiT(config)
    load_strictly(net.to_empty(device="cpu"), renamed, source)
    return Denoiser(net, process_from(table.process(config))).eval()
