"""How fast this machine trains the networks of a study: a few steps of each, timed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import torch

from ..run import assemble, job_of
from ..train.job import ticks
from ..train.parallel import World
from ..train.precision import resolve
from .plan import Run, samples_per_step

WARM, MOST = 2, 20  # steps before the clock starts, and at most on it


def measured_rates(runs: Iterable[Run], device: torch.device, *, seconds: float = 1.0) -> dict[str, float]:
    """Samples trained a second by every network, each measured for about so long."""
    precision, found = "", dict[str, float]()
    for run in runs:
        if run.network not in found:
            precision = precision or resolve(run.config.precision, device)
            job = job_of(assemble(replace(run.config, precision=precision), World(device)))
            found[run.network] = samples_per_step(run.config) / step_seconds(ticks(job, 0), device, seconds)
    return found


def step_seconds(steps: Iterable[object], device: torch.device, seconds: float) -> float:
    """The time of a training step, a mean over as many as fit in `seconds`."""
    start, count = 0.0, 0
    for number, _ in enumerate(steps):
        if number + 1 >= WARM:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            start, count = start or now, number + 1 - WARM
            if count and (now - start > seconds or count >= MOST):
                break
    return (now - start) / count
