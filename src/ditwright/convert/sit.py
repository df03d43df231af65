"""The original SiT layout: DiT's keys, time from noise to data, and an output whose second half nothing reads."""

from __future__ import annotations

import math
from dataclasses import replace

from ..diffusion.config import ProcessConfig
from ..model.config import DiTConfig
from .dit import DIT
from .rules import State


def keep_velocity(state: State, config: DiTConfig) -> tuple[State, DiTConfig]:
    """Without the half of the last layer that `learn_sigma` (SiT's default) adds and SiT's forward drops."""
    if config.out_channels != 2 * config.channels:
        return state, config
    rows = (math.prod(config.patch), 2, config.channels)  # of the last layer
    halved = dict(state)
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        if len(state[key]) == math.prod(rows):
            halved[key] = state[key].unflatten(0, rows)[:, 0].flatten(0, 1)
    return halved, replace(config, out_channels=config.channels)


def process(config: DiTConfig) -> ProcessConfig:
    """Straight lines and their velocity, the time told as 1 - t: how the released models were trained."""
    return ProcessConfig("linear", "velocity", reversed_time=True)


SIT = replace(DIT, process=process, prepare=keep_velocity)
