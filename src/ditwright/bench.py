"""How fast this device runs networks beside what it can do at all: measured in turns, so that a busy moment slows all.

B batch, C channels.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .diffusion.config import ObjectiveConfig, ProcessConfig
from .diffusion.objective import objective_from
from .diffusion.process import Cond, Denoiser, process_from
from .diffusion.target import Prediction
from .errors import UserError
from .model.baseline import NetConfig
from .model.build import build
from .model.config import DiTConfig
from .model.flops import macs
from .rng import Draws
from .train.config import OptimConfig
from .train.cost import training_flops
from .train.ema import EMA
from .train.fit import Batch, fit
from .train.optim import adamw, schedule_from
from .train.precision import autocast, peak_flops

WARM = 2  # times that work is done before it is timed
PASSES = ("forward", "training step")
Work = Callable[[], object]


@dataclass(frozen=True)
class Subject:
    """A network, and the size of its input."""

    config: NetConfig
    space: tuple[int, ...]
    text: int = 0  # tokens, where the network hears text

    def flops(self) -> dict[str, int]:
        """Of one sample in each pass, 2 to a multiply-add. UserError where the size does not fit the network."""
        forward = 2 * sum(macs(self.config, self.space, self.text).values())
        return dict(zip(PASSES, (forward, training_flops(self.config, self.space, 1, self.text)), strict=True))


@dataclass(frozen=True)
class Bench:
    """What is measured and for how long."""

    subjects: Mapping[str, Subject]
    precision: str  # fp32 or bf16, of matrix products
    batch_size: int
    rounds: int = 5
    seconds: float = 1.0  # of each measurement in a round, at least

    def __post_init__(self) -> None:
        if min(self.batch_size, self.rounds) < 1 or not 0 < self.seconds < float("inf"):
            raise UserError(
                "--batch-size and --rounds are at least 1, --seconds above 0; "
                f"got {self.batch_size}, {self.rounds}, {self.seconds:g}"
            )


@dataclass(frozen=True)
class Speed:
    """Samples a second, in every round."""

    name: str
    what: str  # one of PASSES
    flops: int  # of a sample
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def as_dict(self, ceiling: float) -> dict[str, Any]:
        """For JSON, beside the FLOP/s of the largest rate of products."""
        achieved = self.flops * self.median
        return {
            "network": self.name,
            "pass": self.what,
            "flops_per_sample": self.flops,
            "samples_per_second": {"median": self.median, "min": min(self.rounds), "max": max(self.rounds)},
            "rounds": list(self.rounds),
            "tflops": achieved / 1e12,
            "share_of_ceiling": achieved / ceiling,
        }


@dataclass(frozen=True)
class Report:
    """What was measured, where and when."""

    machine: dict[str, Any]
    bench: Bench
    products: dict[str, float]  # FLOP/s of large matrix products, by precision: the best of all rounds
    copying: float  # bytes a second read and written, likewise
    speeds: tuple[Speed, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        bench = self.bench
        return {
            **self.machine,
            "precision": bench.precision,
            "batch_size": bench.batch_size,
            "rounds": bench.rounds,
            "seconds": bench.seconds,
            "input_sizes": {name: list(subject.space) for name, subject in bench.subjects.items()},
            "ceilings": {
                **{f"{precision}_tflops": flops / 1e12 for precision, flops in self.products.items()},
                "copy_gb_per_second": self.copying / 1e9,
            },
            "results": [speed.as_dict(self.products[bench.precision]) for speed in self.speeds],
        }


def measure(bench: Bench, device: torch.device, tell: Callable[[str], object] = str) -> Report:
    """Ceilings and networks, in turns of all in every round. `tell` hears what was done, `steps(bench)` times.

    UserError where a network does not fit into the device's memory, or an input does not fit the network.
    """
    flops, where = {name: subject.flops() for name, subject in bench.subjects.items()}, machine(device)
    ceilings: dict[str, Callable[[], float]] = {
        precision: lambda precision=precision: peak_flops(precision, device) for precision in precisions(device)
    }
    ceilings["copying"] = lambda: copy_rate(device)
    works: dict[tuple[str, str], Work] = {}
    for name, subject in bench.subjects.items():
        try:
            made = works_of(subject, bench, device)
            for what, work in made.items():
                works[name, what] = work
                for _ in range(WARM):
                    work()
                tell(f"{name}, {what}, warm")
        except torch.OutOfMemoryError as error:
            raise UserError(f"{name} at --batch-size {bench.batch_size} does not fit into memory; take less") from error
    best = dict.fromkeys(ceilings, 0.0)
    found: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for number in range(1, bench.rounds + 1):
        for name, ceiling in ceilings.items():
            best[name] = max(best[name], ceiling())
            tell(f"round {number}, {name}")
        for (name, what), work in works.items():
            found[name, what].append(bench.batch_size * times_a_second(work, device, bench.seconds))
            tell(f"round {number}, {name}, {what}")
    speeds = tuple(Speed(name, what, flops[name][what], tuple(rates)) for (name, what), rates in found.items())
    return Report(where, bench, best, best.pop("copying"), speeds)


def steps(bench: Bench, device: torch.device) -> int:
    """How often `measure` tells what it did."""
    works = len(PASSES) * len(bench.subjects)
    return works + bench.rounds * (works + len(precisions(device)) + 1)


def precisions(device: torch.device) -> tuple[str, ...]:
    """Those of matrix products that a device has."""
    return ("fp32", "bf16") if device.type != "cuda" or torch.cuda.is_bf16_supported() else ("fp32",)


def copy_rate(device: torch.device, size: int = 2**28) -> float:
    """Bytes a second, read and written, in copying a buffer of `size` bytes: the best of a few tries."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size * max(times_a_second(lambda: target.copy_(source), device, 0) for _ in range(4))


def times_a_second(work: Work, device: torch.device, seconds: float) -> float:
    """How often some work is done in a second: over `seconds` or once, whichever is longer."""
    wait(device)
    start, number, passed = time.perf_counter(), 0, 0.0
    while not number or passed < seconds:
        work()
        wait(device)
        number, passed = number + 1, time.perf_counter() - start
    return number / passed


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def works_of(subject: Subject, bench: Bench, device: torch.device) -> dict[str, Work]:
    """A forward pass as samplers ask for it, and a step of the training loop, on made-up latents and labels."""
    config, optim = subject.config, OptimConfig()
    learned = config.out_channels == 2 * config.channels
    named = ProcessConfig("ddpm", "noise", learned_var=True) if learned else ProcessConfig()
    process = process_from(named)
    denoiser = Denoiser(build(config), process).to(device)
    ema = EMA(denoiser, optim.ema)
    x = Draws(0, range(bench.batch_size), "bench").normal(
        torch.empty(bench.batch_size, config.channels, *subject.space)
    )
    x, t = x.to(device), torch.full((bench.batch_size,), 0.5, device=device)  # (B, C, *space), (B,)
    cond = {name: told.to(device) for name, told in made_up(config, bench.batch_size, subject.text).items()}
    products = autocast(bench.precision, device)

    @torch.inference_mode()
    def forward() -> Prediction:
        with products():
            return ema.module(x, t, cond)

    ticks = fit(
        denoiser,
        objective_from(ObjectiveConfig(times="discrete" if learned else "uniform"), process),
        batches(x, cond),
        adamw(denoiser, optim),
        schedule=schedule_from(optim, 1),
        ema=ema,
        autocast=products,
    )
    return dict(zip(PASSES, (forward, lambda: next(ticks)), strict=True))


def made_up(config: NetConfig, count: int, text: int) -> Cond:
    """Conditions of so many samples, of `text` tokens where the network hears text: as it asks for, and meaningless."""
    draws, cond = Draws(0, range(count), "conditions"), dict[str, torch.Tensor]()
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
    return cond


def batches(x: torch.Tensor, cond: Cond) -> Iterator[Batch]:
    """The same samples for ever, with the noise and the times of their places in an endless sequence."""
    for number in count():
        yield Batch(x, cond, Draws(0, range(number * len(x), (number + 1) * len(x)), "train"))


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],  # processes that want a core, a mean over the last minute
        "torch": torch.__version__,
        "python": platform.python_version(),
        "ditwright": __version__,
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name."""
    lines: Sequence[str] = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
