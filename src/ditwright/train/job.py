"""A training run and its folder: claimed, gone on with after a stop, saved whole. It knows no network and no data.

RUN/config.yaml               the resolved configuration
RUN/metrics.jsonl             one line per logged step
RUN/checkpoints/step-*/       what `publish` writes (the average: what is used later); train.* (to go on); checksums
"""

from __future__ import annotations

import errno
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..config import from_dict, to_dict
from ..diffusion.objective import Loss
from ..errors import UserError, did_you_mean
from ..files import damage, seal
from ..nn.branch import Runner, run_all
from .config import LogConfig, OptimConfig
from .ema import EMA
from .energy import Estimate, Meter, Span, added, machine_meter, spans_of
from .fit import Batch, NonFinite, Tick, fit
from .folder import claimed, settle
from .keep import SEALED, forget_others, is_among_best, newest_whole, whole_best
from .log import Found, Log
from .optim import schedule_from
from .parallel import World
from .precision import autocast, peak_flops
from .same import check_alike, check_data, on_all
from .saves import Saves
from .state import SHARDS, checkpoint_path, load_state, read_facts, training_state, write_facts
from .stop import stop_asked
from .watch import Watchdog

SLACK = 1.5  # a save may last so many times as long as the one before


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
    find: Callable[[], Found | None]  # called by all processes; None on other ones than the main one
    tells: Sequence[str] = ()  # the names of its numbers, which log.best_by may be


Publish = Callable[[Path, Callable[[Path], None]], None]  # the average into a folder; then the second may add to it


@dataclass
class Job:
    """The parts of a run."""

    config: Any  # a Config
    net: nn.Module
    loss: Loss
    optim: torch.optim.Optimizer
    ema: EMA
    batches: Callable[[int], Iterator[Batch]]  # from a step that is done
    publish: Callable[[], Publish]  # the average of now, to be written by the main process; called by all
    weights: str  # the file that `publish` writes the average to
    preview: Callable[[Path, int], None]  # pictures of a step into the run folder; called by all processes
    world: World
    run: Runner = run_all
    measures: Sequence[Measure] = ()
    flops: float = 0  # of a training sample
    items: Callable[[int], Sequence[int]] | None = None  # of the data, in the batches of a step, over all processes
    saves: Saves = field(default_factory=Saves)
    data: dict[str, Any] = field(default_factory=dict)  # what the data are known by; {}: nothing is


@dataclass(frozen=True)
class Place:
    """How far a run is, and what that took."""

    step: int = 0  # steps that are done
    seconds: float = 0.0
    energy: tuple[Span, ...] = ()
    skipped: int = 0  # steps in a row, the last of them, that moved nothing


def work(job: Job, output: Path) -> Path:
    """Run a job to its end, or go on with the run that `output` holds. Returns the last checkpoint.

    SIGTERM and Ctrl-C save, say so, and leave by SystemExit.
    """
    world = job.world
    check_alike(job.config, job.data, world)
    check_best(job)
    with claimed(output, world):
        newest = newest_of(job, output)
        before = on_all(world, lambda: read_facts(newest) if newest else {})
        if before.get("step", 0) < job.config.steps:
            on_all(world, lambda: check_data(job.config, job.data, before, output))
        moved = bool(job.data) and job.data == before.get("data")
        config = job.config = settle(job.config, output, world, newest, moved=moved)
        place = resume(job, newest)
        start, done = time.perf_counter() - place.seconds, place.step  # as if the run had never stopped
        if done >= config.steps:
            world.say(f"{output} is at step {done} of {config.steps}: nothing to do (ask for more with --steps)")
            return checkpoint_path(output, done)
        world.say(f"{f'going on at step {done}' if done else 'training'} on {world} in {config.precision}: {output}")
        meter, now, takes = meter_of(world), place.seconds, 0.0  # seconds; of the save before
        log: Log | nullcontext = nullcontext()
        if world.main:
            peak = world.size * peak_flops(config.precision, world.device) if job.flops else 0
            log = Log(
                output,
                config.log,
                done,
                config.steps,
                flops=job.flops,
                peak=peak,
                items=job.items,
                before=before,
            )
        watch = Watchdog(config.log.stall_after, output, rank=world.rank, size=world.size, done=done)
        with log, meter, watch, stop_asked() as asked, job.saves:
            for tick in steps(job, output, place, log):
                watch.beat(tick.step)
                last = tick.step == config.steps
                if isinstance(log, Log):
                    log.write(replace(tick, samples=tick.samples * world.parts))
                scores: dict[str, float] = {}
                if measures := [measure for measure in job.measures if last or _due(tick.step, measure.every)]:
                    watch.beat(tick.step, "measuring")
                for found in measured(measures):
                    scores |= {name: value for name, value in found.curves.items() if isinstance(value, (int, float))}
                    if isinstance(log, Log):
                        log.measured(tick.step, found)
                if _due(tick.step, config.log.preview_every) or (last and config.log.preview_every):
                    watch.beat(tick.step, "drawing previews")
                    job.preview(output, tick.step)  # before the checkpoint: a kill between them repeats it
                due = _due(tick.step, config.log.checkpoint_every) | (bool(measures) and good(job, output, scores))
                leaves = world.any(last or bool(asked))
                if leaves or due:
                    watch.beat(tick.step, "saving")
                    now = max(now, time.perf_counter() - start)
                    spans = added([*place.energy, *spans_of(meter, config.log.watts, now - place.seconds, world.sum)])
                    if leaves and world.any(asked.too_late(config.log.stop_within, SLACK * takes)):
                        break
                    facts = {"step": tick.step, "seconds": now, "energy": to_dict(spans), "skipped": tick.skipped}
                    began = time.monotonic()
                    facts |= log.memory() if isinstance(log, Log) else {}
                    save(job, output, {**facts, "scores": scores, "config": to_dict(config), "data": job.data})
                    took = max(time.monotonic() - began, job.saves.seconds)  # the latter in the background
                    takes, done = world.sum(took if world.main else 0.0), tick.step
                if leaves:
                    break
                watch.beat(tick.step)
        if spans or config.log.pue != 1 or config.log.grams_per_kwh:
            world.say(f"energy: {Estimate(spans, now, config.log.pue, config.log.grams_per_kwh)}")
        if world.any(bool(asked)):
            number = asked[0] if asked else signal.SIGTERM  # another process was asked
            saved = f"saved step {done}"
            if done < tick.step:
                saved = left_out(tick.step, done, takes, config.log.stop_within)
            world.say(f"{signal.Signals(number).name}: {saved} of {config.steps}; the same command goes on")
            raise SystemExit(128 + number)
        return checkpoint_path(output, config.steps)


def left_out(step: int, saved: int, takes: float, within: float) -> str:
    """Why a run leaves without a save, and what it leaves with."""
    there = f"the last one saved is {saved}" if saved else "none is saved yet"
    return f"no time to save step {step} (the save before took {takes:.1f} s, log.stop_within is {within:g} s): {there}"


def steps(job: Job, output: Path, place: Place, log: Log | nullcontext) -> Iterator[Tick]:
    """The steps of a run after a place; where they leave the numbers for good, again from its newest checkpoint."""
    config, net, times, at = job.config, job.world.wrap(job.net), 0, -1
    while True:
        try:
            for tick in ticks(job, place.step, net=net, skipped=place.skipped):
                if tick.why:
                    row = f"{tick.skipped} in a row of at most {config.optim.skip_nonfinite}"
                    job.world.say(f"step {tick.step} is skipped ({row}): {tick.why}")
                yield tick
            return
        except NonFinite as error:
            job.saves.finish()
            newest = newest_of(job, output) if config.optim.rollbacks else None
            step = place.step if newest is None else read_facts(newest)["step"]
            times, at = times + 1 if step == at else 1, step  # a new checkpoint is worth as many again
            if newest is None or times > config.optim.rollbacks:
                raise
            job.world.say(f"{error}; going on from {newest.name} ({times} of at most {config.optim.rollbacks} times)")
            place = resume(job, newest)
            if isinstance(log, Log):
                log.go_back(place.step, str(error), read_facts(newest))


def check_best(job: Job) -> None:
    """UserError, on all processes alike, where nothing measures what the best checkpoints are to be kept by."""
    log, told = job.config.log, [name for measure in job.measures for name in measure.tells]
    if log.keep_best and not job.measures:
        raise UserError(
            f"log.keep_best is {log.keep_best}, but nothing is measured: give data.validation or measure.every"
        )
    if log.keep_best and log.best_by not in told:
        near = did_you_mean(log.best_by, told)
        raise UserError(f"log.best_by {log.best_by!r} is not measured; measured: {', '.join(told)}{near}")


def good(job: Job, output: Path, scores: dict[str, float]) -> bool:
    """Whether what was measured now is worth a checkpoint; the same for all processes."""
    log = job.config.log
    if not log.keep_best:
        return False
    return job.world.any(job.world.main and is_among_best(output, log, scores.get(log.best_by, math.nan)))


def measured(measures: Sequence[Measure]) -> Iterator[Found]:
    """What is found; for the main process to note, and nothing on the others."""
    for measure in measures:
        found = measure.find()
        if found is not None:
            yield found


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def ticks(job: Job, done: int, net: nn.Module | None = None, skipped: int = 0) -> Iterator[Tick]:
    """The steps of a run after `done` of them, the last `skipped` of which moved nothing. `net`: wrapped already."""
    config = job.config
    return fit(
        net or job.world.wrap(job.net),
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
        norm=job.world.norm,
        gather=job.world.gather,
        skip=config.optim.skip_nonfinite,
        skipped=skipped,
    )


def newest_of(job: Job, output: Path) -> Path | None:
    """The newest whole checkpoint of a run, None where there is none yet; found by the main process, told to all."""
    found, error = "", ""
    if job.world.main:
        try:
            newest = newest_whole(output, job.weights, job.world.say)
            if newest is not None:
                whole_best(output, job.config.log, job.weights, job.world.say, newest)
            found = str(newest or "")
        except UserError as wrong:
            error = str(wrong)
    if error := job.world.agree(error):
        raise UserError(error)
    return Path(found) if (found := job.world.agree(found)) else None


def save(job: Job, output: Path, facts: dict[str, Any]) -> None:
    """Write a checkpoint whole and read it back; only then forget others. Called by all processes.

    OSError where the disk does not give back what it was given.
    """
    job.saves.finish()
    world, path, later = job.world, checkpoint_path(output, facts["step"]), job.config.log.async_save
    told = {**facts, SEALED: True, "ema_updates": job.ema.updates}
    beside = path.with_name(f".{path.name}.{SHARDS}")
    put = world.keep(training_state(job.net, job.optim, job.loss), beside, later=later)
    publish = job.publish()

    def add(folder: Path) -> None:
        put(folder)
        write_facts(folder, told)
        seal(folder)

    def write() -> None:
        if not world.main:
            return put(path)
        publish(path, add)
        if why := damage(path, afresh=True):
            raise OSError(
                errno.EIO, f"the disk does not give back what was written ({why}); older ones are kept", str(path)
            )
        forget_others(output, job.config.log, facts.get("spikes", {}).get("told", ()), world.say)

    job.saves.start(write, later=later)


def meter_of(world: World) -> Meter:
    """What this process counts of the energy that the run takes."""
    cuda = world.device.type == "cuda"
    uuid = str(torch.cuda.get_device_properties(world.device).uuid) if cuda else None
    return machine_meter(uuid, first=world.local == 0)


def resume(job: Job, newest: Path | None) -> Place:
    """Bring the parts to a checkpoint of the run, if it has any: where that is."""
    if newest is None:
        return Place()
    read = partial(job.world.read, net=job.net)
    facts = load_state(newest, job.net, job.optim, job.ema, job.loss, read(newest / job.weights), read)
    return Place(facts["step"], facts["seconds"], spans_in(facts), facts.get("skipped", 0))


def spans_in(facts: dict[str, Any]) -> tuple[Span, ...]:
    """The energy that a checkpoint's facts tell; none in those of before it was counted."""
    return tuple(from_dict(Span, span, "energy") for span in facts.get("energy", []))
