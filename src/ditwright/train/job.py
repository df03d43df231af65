"""A training run and its folder: claimed, gone on with after a stop, saved whole. It knows no network and no data.

RUN/config.yaml               the resolved configuration
RUN/metrics.jsonl             one line per logged step
RUN/checkpoints/step-*/       what `publish` writes (the average: what is used later); train.* (to go on)
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..config import differences, dump_yaml, from_dict, read_yaml, to_dict
from ..diffusion.objective import Loss
from ..errors import UserError
from ..files import whole_file
from ..model.weights import read_safetensors
from ..nn.branch import Runner, run_all
from .config import LogConfig, OptimConfig
from .ema import EMA
from .energy import Estimate, Meter, Span, added, machine_meter, spans_of
from .fit import Batch, Tick, fit
from .log import Found, Log
from .optim import schedule_from
from .parallel import World
from .precision import autocast, peak_flops, resolve
from .state import checkpoint_path, checkpoints, forget_all_but, load_state, save_state

# What a run may be continued with; a codec that was moved has the same fingerprint.
MAY_CHANGE = ("steps", "log.", "sample.", "measure.", "data.prefetch", "codec.source", "codec.revision")


class Config(Protocol):
    """What every run's configuration has."""

    steps: int
    seed: int
    precision: str
    optim: OptimConfig
    log: LogConfig


@dataclass(frozen=True)
class Measure:
    """Something to be known of the average every so many steps (0: not on the way), and after the last."""

    every: int
    find: Callable[[], Found | None]  # None on other processes than the main one
    together: bool = False  # all processes call it, and share its work; otherwise the main one alone


@dataclass
class Job:
    """The parts of a run."""

    config: Any  # a Config
    net: nn.Module
    loss: Loss
    optim: torch.optim.Optimizer
    ema: EMA
    batches: Callable[[int], Iterator[Batch]]  # from a step that is done
    publish: Callable[[Path, Callable[[Path], None]], None]  # the average into a folder; then the second may add to it
    weights: str  # the file that `publish` writes the average to
    preview: Callable[[Path, int], None]  # pictures of a step into the run folder
    world: World
    run: Runner = run_all
    measures: Sequence[Measure] = ()
    flops: float = 0  # of a training sample


def work(job: Job, output: Path) -> Path:
    """Run a job to its end, or go on with the run that `output` holds. Returns the last checkpoint.

    SIGTERM and Ctrl-C save, say so, and leave by SystemExit.
    """
    world = job.world
    with claimed(output, world):
        config = job.config = settle(job.config, output, world)
        done, seconds, before = resume(job, output)
        start = time.perf_counter() - seconds  # as if the run had never stopped
        if done >= config.steps:
            world.say(f"{output} is at step {done} of {config.steps}: nothing to do (ask for more with --steps)")
            return checkpoint_path(output, done)
        world.say(f"{f'going on at step {done}' if done else 'training'} on {world} in {config.precision}: {output}")
        meter = meter_of(world)
        log: Log | nullcontext = nullcontext()
        if world.main:
            peak = world.size * peak_flops(config.precision, world.device) if job.flops else 0
            log = Log(output, config.log, done, config.steps, flops=job.flops, peak=peak)
        with log, meter, stop_asked() as asked:
            for tick in ticks(job, done):
                last = tick.step == config.steps
                if isinstance(log, Log):
                    log.write(replace(tick, samples=tick.samples * world.size))
                for found in measured(job, tick.step):
                    if isinstance(log, Log):
                        log.measured(tick.step, found)
                if world.main and (_due(tick.step, config.log.preview_every) or (last and config.log.preview_every)):
                    job.preview(output, tick.step)  # before the checkpoint: a kill between them repeats it
                leaves = world.any(last or bool(asked))
                if leaves or _due(tick.step, config.log.checkpoint_every):
                    now = time.perf_counter() - start
                    spans = added([*before, *spans_of(meter, config.log.watts, now - seconds, world.sum)])
                    if world.main:
                        save(job, output, {"step": tick.step, "seconds": now, "energy": to_dict(spans)})
                if leaves:
                    break
        if spans or config.log.pue != 1 or config.log.grams_per_kwh:
            world.say(f"energy: {Estimate(spans, now, config.log.pue, config.log.grams_per_kwh)}")
        if world.any(bool(asked)):
            number = asked[0] if asked else signal.SIGTERM  # another process was asked
            name = signal.Signals(number).name
            world.say(f"{name}: saved step {tick.step} of {config.steps}; the same command goes on")
            raise SystemExit(128 + number)
        return checkpoint_path(output, config.steps)


def measured(job: Job, step: int) -> Iterator[Found]:
    """What is found after a step; for the main process to note, and nothing on the others."""
    last = step == job.config.steps
    for measure in job.measures:
        if (last or _due(step, measure.every)) and (measure.together or job.world.main):
            found = measure.find()
            if found is not None:
                yield found


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def ticks(job: Job, done: int) -> Iterator[Tick]:
    """The steps of a run after `done` of them."""
    config = job.config
    return fit(
        job.world.wrap(job.net),
        job.loss,
        job.batches(done),
        job.optim,
        schedule=schedule_from(config.optim, config.steps),
        ema=job.ema,
        done=done,
        accumulate=config.optim.accumulate,
        clip=config.optim.clip,
        run=job.run,
        autocast=autocast(config.precision, job.world.device),
        mean=job.world.mean,
    )


@contextmanager
def claimed(output: Path, world: World) -> Iterator[None]:
    """Hold the run folder for this run alone."""
    output.mkdir(parents=True, exist_ok=True)
    if not world.main:
        yield
        return
    folder = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process trains in {str(output)!r}; wait, or choose another --output") from None
        yield
    finally:
        os.close(folder)


def settle(config: Any, output: Path, world: World) -> Any:
    """The configuration as it will run, kept in the run folder; checked against the one that is there."""
    path = output / "config.yaml"
    there = read_yaml(type(config), path) if path.exists() else None
    if there is not None:
        if config.precision == "auto":
            config = replace(config, precision=there.precision)
        changed = differences(to_dict(there), to_dict(config))
        for key, (old, new) in changed.items():
            if not key.startswith(MAY_CHANGE):
                raise UserError(
                    f"{str(output)!r} holds another run: {key} is {old} there and {new} now; "
                    "choose another --output, or the settings of that run"
                )
        for key, (old, new) in changed.items():
            world.say(f"{key}: {old} -> {new}")
    elif checkpoints(output) or (output / "metrics.jsonl").exists():
        raise UserError(f"{str(output)!r} holds a run without its config.yaml; choose another --output")
    config = replace(config, precision=world.agree(resolve(config.precision, world.device)))
    if world.main:
        with whole_file(path) as half:
            half.write_text(dump_yaml(config))
    return config


def save(job: Job, output: Path, facts: dict[str, Any]) -> None:
    """Write a checkpoint whole, then forget the oldest."""

    def training_state(folder: Path) -> None:
        save_state(folder, job.net, job.optim, job.ema, job.loss, facts)

    job.publish(checkpoint_path(output, facts["step"]), training_state)
    forget_all_but(output, job.config.log.keep)


def meter_of(world: World) -> Meter:
    """What this process counts of the energy that the run takes."""
    cuda = world.device.type == "cuda"
    uuid = str(torch.cuda.get_device_properties(world.device).uuid) if cuda else None
    return machine_meter(uuid, first=world.local == 0)


def resume(job: Job, output: Path) -> tuple[int, float, tuple[Span, ...]]:
    """Bring the parts to the newest checkpoint of a run: the steps that are done, their seconds, their energy."""
    if not (found := checkpoints(output)):
        return 0, 0.0, ()
    average = read_safetensors(found[-1] / job.weights)
    facts = load_state(found[-1], job.net, job.optim, job.ema, job.loss, average)
    return facts["step"], facts["seconds"], spans_in(facts)


def spans_in(facts: dict[str, Any]) -> tuple[Span, ...]:
    """The energy that a checkpoint's facts tell; none in those of before it was counted."""
    return tuple(from_dict(Span, span, "energy") for span in facts.get("energy", []))


@contextmanager
def stop_asked() -> Iterator[list[int]]:
    """A list that holds SIGTERM or SIGINT once it came; a second one acts at once, as without us."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only a main thread hears signals
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(number, old[number])

    for number in old:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
