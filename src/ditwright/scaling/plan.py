"""The runs of a study, and what each costs before it is started."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from ..data.sources import open_dataset
from ..errors import UserError
from ..experiment import TrainConfig
from ..model.build import parameters
from ..model.config import CONDITIONINGS, conditioned
from ..model.flops import macs, tokens
from ..run import agreed_codec, largest
from ..train.cost import BACKWARD, memory, training_flops
from .law import FEWEST
from .study import CONDITIONING, HELD_OUT, LADDER, TRANSFER, UNET, Study, named
from .tables import Table, brief, duration

EVALUATIONS = {"heun": 2}  # of the network for each step of a sampler; one for the others
PLANNED = (
    "run",
    "role",
    "parameters",
    "Gflops",
    "tokens",
    "steps",
    "training FLOPs",
    "memory (GB)",
    "time",
    "so far",
    "",
)
BINS = 10  # times at which a sample of the validation is looked at


@dataclass(frozen=True)
class Run:
    """One training run of a study, and what it costs."""

    name: str  # its folder
    network: str  # the same for every seed and length
    role: str  # LADDER, CONDITIONING, UNET, TRANSFER or HELD_OUT
    kind: str  # of conditioning
    config: TrainConfig
    space: tuple[int, ...]  # of a sample, in latents
    parameters: int
    macs: int  # of a forward pass of one sample: the paper's Gflops are 10^9 of them

    @property
    def tokens(self) -> int:
        """Of a sample."""
        return tokens(self.config.model, self.space)

    @property
    def trained(self) -> int:
        """Samples seen in training."""
        return self.config.steps * samples_per_step(self.config)

    @property
    def flops(self) -> int:
        """Of training: floating-point operations, 2 to a multiply-add."""
        return training_flops(self.config.model, self.space, self.trained)

    @property
    def bytes(self) -> int:
        """Needed on the device, estimated."""
        config, sizes = self.config, (self.space, self.config.data.batch_size, self.parameters)
        most, least = (sum(memory(config.model, *sizes, recomputed=n).values()) for n in (0, config.model.depth))
        if config.memory_gb:
            return min(most, max(least, round(1e9 * config.memory_gb)))
        return least if config.checkpoint_activations else most


def samples_per_step(config: TrainConfig) -> int:
    """Of the optimizer."""
    return config.data.batch_size * config.optim.accumulate


def space_of(config: TrainConfig) -> tuple[int, ...]:
    """Height and width of the latents that a configuration trains on."""
    data = open_dataset(config.data.source, config.data.image_size)
    codec = agreed_codec(config.codec, data, config.data.source)
    return tuple(side // codec.factor for side in largest(data).size)


def runs_of(study: Study, space: tuple[int, ...] | None = None) -> tuple[Run, ...]:
    """Every run in the order in which they are done: seed by seed from the cheapest on, the held-out network last.

    `space`: of a sample, where it need not be looked up. UserError where a network cannot be built.
    """
    base = study.base()
    if not base.data.validation:
        raise UserError("a study compares losses on held-out data: name them, as in --train.data.validation SOURCE")
    space = space or space_of(base)
    found: dict[str, Run] = {}
    for entry in entries(study, base):
        for run in lengths(study, entry, space):
            found.setdefault(run.name, run)  # two lengths may come to the same steps
    if study.held_out and len({run.macs for run in found.values() if run.role == LADDER}) < FEWEST:
        raise UserError(f"a prediction needs a ladder of at least {FEWEST} networks of different cost; add some widths")
    order = {seed: place for place, seed in enumerate(study.seeds)}
    late = len(order)
    return tuple(
        sorted(found.values(), key=lambda run: (run.role == HELD_OUT, order.get(run.config.seed, late), run.flops))
    )


class Entry(NamedTuple):
    """A training run before its lengths are known."""

    network: str
    role: str
    kind: str  # of conditioning
    config: TrainConfig


def entries(study: Study, base: TrainConfig) -> Iterator[Entry]:
    """Everything that a study trains."""
    own = next((kind for kind in CONDITIONINGS if conditioned(base.model, kind) == base.model), "")
    for patch, width, seed in product(study.patches, study.widths, study.seeds):
        yield Entry(named(width, patch), LADDER, own, network(study, base, width, patch, seed))
    if part := study.conditioning:
        for kind, seed in product(part.kinds, study.seeds):
            config = network(study, base, part.width, part.patch, seed)
            name = named(part.width, part.patch, kind if kind != own else "")
            yield Entry(name, CONDITIONING, kind, replace(config, model=conditioned(config.model, kind)))
    if nets := study.unets:
        for width, seed in product(nets.widths, study.seeds):
            plain = replace(base, optim=replace(base.optim, lr=nets.lr), seed=seed)
            plain = replace(plain, checkpoint_activations=False, memory_gb=0.0)
            yield Entry(f"unet{width}", UNET, "", replace(plain, model=nets.model(width, base.model)))
    if tried := study.transfer:
        for mup, width, factor, seed in product((False, True), tried.widths, tried.factors, tried.seeds):
            config = network(replace(study, lr_power=0, mup=mup), base, width, tried.patch, seed)
            name = named(width, tried.patch, f"{'mup' if mup else 'standard'}-x{factor:g}")
            optim = replace(config.optim, lr=config.optim.lr * factor)
            yield Entry(name, TRANSFER, own, replace(config, optim=optim, steps=tried.steps))
    if part := study.held_out:
        for seed in part.seeds:
            yield Entry(
                named(part.width, part.patch), HELD_OUT, own, network(study, base, part.width, part.patch, seed)
            )


def network(study: Study, base: TrainConfig, width: int, patch: int, seed: int) -> TrainConfig:
    """The base with a network of this width, and all that follows from it."""
    model = replace(
        base.model,
        width=width,
        heads=width // study.head_width,
        stages=(replace(base.model.stages[0], depth=study.depth(width)),),
        patch=(patch,) * len(base.model.patch),
    )
    optim = replace(base.optim, lr=study.rate(width), mup_width=study.lr_width if study.mup else 0)
    return replace(base, model=model, optim=optim, seed=seed)


def lengths(study: Study, entry: Entry, space: tuple[int, ...]) -> Iterator[Run]:
    """A run for each of the study's lengths; beside the ladder, for the longest of them."""
    model, sample = entry.config.model, samples_per_step(entry.config)
    cost, size = sum(macs(model, space).values()), parameters(model)
    steps = [
        *study.steps,
        *(count / (sample * tokens(model, space)) for count in study.tokens),
        *(count / training_flops(model, space, sample) for count in study.flops),
    ]
    if entry.role == TRANSFER:
        steps = [entry.config.steps]
    elif entry.role != LADDER:
        steps = [max(study.steps)] if study.steps else steps[-1:]
    for number in (max(1, round(count)) for count in steps):
        made = replace(entry.config, steps=number)
        name = f"{entry.network}-{number}-s{made.seed}"
        yield Run(name, entry.network, entry.role, entry.kind, made, space, size, cost)


def available_memory(device: torch.device) -> int:
    """Bytes that this process may still take; processes that torchrun started beside it get an equal share."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if free.exists():
        lines = dict(line.split(":", 1) for line in free.read_text().splitlines())
        count = 1024 * int(lines["MemAvailable"].split()[0])
    else:
        count = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        count = min(count, int(text))
    return count // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def check_memory(runs: Iterable[Run], available: int) -> None:
    """UserError where a run needs more than there is: better now than after hours of the others."""
    if too_large := [run for run in runs if run.bytes > available]:
        worst = max(too_large, key=lambda run: run.bytes)
        others = f" ({len(too_large)} runs do not fit)" if len(too_large) > 1 else ""
        raise UserError(
            f"{worst.name} needs about {worst.bytes / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free{others}; "
            "take smaller widths, larger patches, a smaller batch_size, or --train.checkpoint_activations true"
        )


def effort(run: Run, samples: int) -> float:
    """All that a run does, in samples trained: its training, its validations, and `samples` drawn in the end."""
    config, samples = run.config, 0 if run.role == TRANSFER else samples
    every = config.log.evaluate_every
    validations = config.steps // every + (config.steps % every > 0) if every else 1
    drawn = samples * config.sample.num_inference_steps * EVALUATIONS.get(config.sample.sampler, 1)
    forward = validations * config.data.validation_size * BINS + drawn
    return run.trained + forward / (1 + BACKWARD)


def seconds(runs: Sequence[Run], study: Study, rates: Mapping[str, float]) -> list[float]:
    """Of each run; `rates`: samples trained a second, by network; NaN where it is not known."""
    return [effort(run, study.samples) / rates.get(run.network, math.nan) for run in runs]


def rates_at(runs: Iterable[Run], flops: float) -> dict[str, float]:
    """Samples a second of every network on a machine that sustains so many FLOP/s."""
    return {run.network: flops / (2 * (1 + BACKWARD) * run.macs) for run in runs}


def plan_table(
    runs: Sequence[Run], times: Sequence[float], *, available: int, done: Sequence[str] = (), budget: float = math.inf
) -> Table:
    """Every run with what it costs. `budget`: seconds; runs in `done` take none of it."""
    rows, total = [], 0.0
    for run, time in zip(runs, times, strict=True):
        ready = run.name in done
        total += 0 if ready else time
        state = "done" if ready else "" if total <= budget else "over budget"
        state = "too large" if run.bytes > available and not ready else state
        rows.append(
            (
                run.name,
                run.role,
                f"{run.parameters:,}",
                brief(run.macs / 1e9),
                str(run.tokens),
                f"{run.config.steps:,}",
                f"{run.flops:.2e}",
                f"{run.bytes / 1e9:.2f}",
                "?" if math.isnan(time) else duration(time),
                "?" if math.isnan(total) else duration(total),
                state,
            )
        )
    return Table(PLANNED, rows)
