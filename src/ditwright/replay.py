"""One step of a run done again, alone: what was in its batches, and what each sample lost. Nothing is written.

All that a step needs besides the weights before it is a function of (seed, place). Where no checkpoint has just those
weights, the steps since the nearest one are done again too. B batch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import run, train_codec
from .config import load_yaml
from .data.base import Dataset, Group, dropped, mirrored, step_items
from .data.decoded import Decoded
from .data.known import known_by
from .data.shards import Shards
from .diffusion.objective import Loss
from .diffusion.process import Cond
from .errors import UserError
from .experiment import CodecTrainConfig, DataConfig, MeasureConfig, TrainConfig
from .rng import Draws
from .train.config import ParallelConfig
from .train.fit import NonFinite, Tick
from .train.folder import read_config
from .train.job import Job, resume, ticks
from .train.keep import doubt, fault
from .train.parallel import World
from .train.same import check_data
from .train.state import checkpoints, read_facts

MOST = 1000  # steps that are done again without being asked twice


@dataclass(frozen=True)
class Sample:
    """A sample of a step, and what the network lost on it."""

    place: int  # in the endless sequence of samples
    item: int  # of the data set
    name: str | None  # of the picture in its source, where there is one
    label: int | None  # its class, where the network hears classes
    class_name: str | None
    caption: str | None  # where it hears captions
    dropped: bool  # it was told neither
    mirrored: bool  # left to right
    t: float | None  # the time drawn: 0 data, 1 noise; None where no times are drawn
    loss: float


@dataclass(frozen=True)
class Replay:
    """A step done again."""

    run: Path
    step: int
    checkpoint: int  # the step whose checkpoint it began with; 0: the weights that the run began with
    weights: int  # the step that the weights are of: the one before for those that the step had
    loss: float
    grad_norm: float | None  # None where the step has left the numbers
    logged: float | None  # the loss in metrics.jsonl; None where this step was not logged
    flaw: str  # what left the numbers, and where
    samples: tuple[Sample, ...]  # in the order of their places

    @property
    def same_weights(self) -> bool:
        """Whether the weights are those that the step had."""
        return self.weights == self.step - 1


@dataclass(frozen=True)
class Subject:
    """A run as far as a step needs it."""

    job: Job
    data: Dataset
    groups: tuple[Group, ...]
    hears: bool  # classes or captions
    captioned: bool
    label_drop: float
    flip: float


class Noted:
    """A loss that remembers what it was asked for: of each call the loss per sample (B,) and the times (B,)."""

    def __init__(self, loss: Loss):
        self.loss = loss
        self.calls: list[tuple[Tensor, Tensor | None]] = []

    def __call__(self, ask: Any, x0: Tensor, cond: Cond, draws: Draws) -> Tensor:
        seen: list[Tensor] = []

        def watched(*asked: Any, **more: Any) -> Any:
            seen.extend(asked[1:2])  # the second thing a denoiser is told; an autoencoder's is noise
            return ask(*asked, **more)

        value = self.loss(watched, x0, cond, draws)
        t = seen[0].detach().cpu() if seen and seen[0].shape == value.shape else None
        self.calls.append((value.detach().cpu(), t))
        return value


def replay(
    folder: Path,
    step: int,
    *,
    recompute: bool = True,
    checkpoint: int | None = None,
    most: int = MOST,
    say: Callable[[str], None] = lambda line: None,
) -> Replay:
    """Do one step, 1 first, of the run in a folder again, in this process alone.

    It begins with the nearest checkpoint before the step, or that of step `checkpoint`, and does the steps between
    again in memory, at most so many; without `recompute` it takes the checkpoint's weights as they are. On a CPU, for
    a run of one process, the loss is the logged one to the last digit. UserError says what is missing.
    """
    config = config_of(folder, step, say)
    if not 1 <= step <= config.steps:
        raise UserError(f"--step must be from 1 to {config.steps}, the steps of {str(folder)!r}; got {step}")
    start, path = beginning(folder, step, checkpoint, recompute=recompute)
    between = step - 1 - start if recompute else 0
    if between > most:
        raise UserError(
            f"step {step} is {between} steps after the checkpoint of step {start}, and at most {most} are done again: "
            f"give --most {between}, or --from-checkpoint to take its weights as they are"
        )
    subject = subject_of(config, new=path is None)
    job, noted = subject.job, Noted(subject.job.loss)
    if (sure := path or newest_sure(folder)) is not None and not doubt(sure):
        check_data(config, known_by(subject.data), read_facts(sure), folder)
    if path is not None:
        if why := fault(path, job.weights):
            raise UserError(f"{str(path)!r} is damaged ({why}); --checkpoint STEP begins with another one")
        resume(job, path)
    if between:
        say(f"doing {between} steps after the checkpoint of step {start} again")
    steps = ticks(replace(job, loss=noted), start if recompute else step - 1)
    try:
        for _ in islice(steps, between):
            noted.calls.clear()
    except NonFinite as error:
        raise UserError(f"on the way to step {step}: {error}; --from-checkpoint leaves the way out") from error
    tick, flaw = last(steps)
    losses, times = gathered(noted, config.optim.accumulate)
    samples = tuple(samples_of(subject, step, losses, times))
    loss = tick.loss if tick else float(losses.mean())
    logged = logged_loss(folder, step)
    return Replay(
        folder, step, start, step - 1 if recompute else start, loss, tick and tick.grad_norm, logged, flaw, samples
    )


def config_of(folder: Path, step: int, say: Callable[[str], None]) -> TrainConfig | CodecTrainConfig:
    """The configuration that a step of a run was done with, by its file and its checkpoints; nothing is written.

    A run may have been given another number of steps later, which its rates follow.
    """
    path, newest = folder / "config.yaml", newest_sure(folder)
    if not path.is_file() and newest is None:
        raise UserError(f"{str(folder)!r} holds no run; name the folder that `ditwright train` wrote")
    told = read_facts(newest).get("config") if newest else None  # not in those of before
    kind = TrainConfig if "codec" in (told or load_yaml(path)) else CodecTrainConfig
    config, wrong = read_config(kind, path, newest)
    if wrong and config is None:
        raise UserError(f"{path} {wrong}")
    if wrong:
        say(f"{path} {wrong}: taken as {newest} has it")
    after = [one for one in checkpoints(folder) if int(one.name[5:]) >= step and not doubt(one)]
    steps = read_facts(after[0]).get("config", {}).get("steps") if after else None
    return config if steps is None else replace(config, steps=steps)


def newest_sure(folder: Path) -> Path | None:
    """The newest checkpoint of a run whose facts are as they were written."""
    return next((path for path in reversed(checkpoints(folder)) if not doubt(path)), None)


def beginning(folder: Path, step: int, asked: int | None, *, recompute: bool) -> tuple[int, Path | None]:
    """The checkpoint that a step is done again from: its step, and its folder; (0, None) for the first weights."""
    saved: dict[int, Path | None] = {0: None, **{int(path.name[5:]): path for path in checkpoints(folder)}}
    if asked is None:
        asked = max(at for at in saved if at < step)
    if asked not in saved:
        raise UserError(f"{str(folder)!r} has no checkpoint of step {asked}; it has {', '.join(map(str, saved))}")
    if recompute and asked >= step:
        raise UserError(f"the checkpoint of step {asked} has seen step {step}; --from-checkpoint takes it as it is")
    return asked, saved[asked]


def subject_of(config: TrainConfig | CodecTrainConfig, *, new: bool) -> Subject:
    """The parts of a run, on this machine's own device. `new`: its first weights are needed."""
    world = World(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(config, CodecTrainConfig):
        config = replace(config, data=replace(config.data, prefetch=0))
        made = train_codec.assemble(config, world)
        job = train_codec.job_of(config, made)
        return Subject(job, made.data, made.groups, False, False, 0.0, config.data.flip)
    data = replace(config.data, prefetch=0, validation="", validation_size=DataConfig.validation_size)
    log = replace(config.log, preview_every=0, tensorboard=False)
    config = replace(config, data=data, log=log, measure=MeasureConfig(), parallel=ParallelConfig())
    if config.memory_gb:  # of devices that may have been others, and more of them: as little as there can be
        config = replace(config, memory_gb=0.0, checkpoint_activations=True)
    parts = run.assemble(config, world, new=new)
    captioned = parts.encoder is not None
    hears = captioned or config.model.num_classes > 0
    return Subject(run.job_of(parts), parts.data, parts.data.groups, hears, captioned, data.label_drop, data.flip)


def last(steps: Iterator[Tick]) -> tuple[Tick | None, str]:
    """The next step; or None and what was wrong, where it leaves the numbers."""
    try:
        tick = next(steps)
    except NonFinite as error:
        return None, str(error)
    return (None if tick.why else tick), tick.why


def gathered(noted: Noted, accumulate: int) -> tuple[Tensor, Tensor | None]:
    """Loss per sample and times of a step's batches, until one leaves the numbers: it was asked again to find where."""
    losses, times = [], []
    for loss, t in noted.calls[:accumulate]:
        losses.append(loss)
        times += [] if t is None else [t]
        if not loss.isfinite().all():
            break
    return torch.cat(losses), torch.cat(times) if times else None


def samples_of(subject: Subject, step: int, losses: Tensor, times: Tensor | None) -> Iterator[Sample]:
    """Every sample of a step; where it left the numbers in one of its batches, those until then."""
    config, data = subject.job.config, subject.data
    size, accumulate = config.data.batch_size, config.optim.accumulate
    items = step_items(config.seed, subject.groups, size, step=step, accumulate=accumulate)[: len(losses)]
    first = (step - 1) * accumulate * size
    places = range(first, first + len(losses))
    labels, classes = data.labels(items).tolist(), data.class_names
    captions = data.captions(items) if subject.captioned else [None] * len(items)
    lost, turned = dropped(subject.label_drop, config.seed, places), mirrored(subject.flip, config.seed, places)
    for n, (place, item, name) in enumerate(zip(places, items.tolist(), names_of(data, items), strict=True)):
        label = labels[n] if subject.hears and not subject.captioned else None
        yield Sample(
            place=place,
            item=item,
            name=name,
            label=label,
            class_name=classes[label] if label is not None and classes else None,
            caption=captions[n],
            dropped=subject.hears and bool(lost[n]),
            mirrored=bool(turned[n]),
            t=None if times is None else times[n].item(),
            loss=losses[n].item(),
        )


def names_of(data: Dataset, items: np.ndarray) -> list[str | None]:
    """What pictures are called in their source; None of data sets that are not made of files."""
    if isinstance(data, Shards):
        return [facts.get("name") for facts in data.facts(items)]
    if isinstance(data, Decoded):
        return [data.source[item].name for item in items.tolist()]
    return [None] * len(items)


def logged_loss(folder: Path, step: int) -> float | None:
    """The loss of a step as the run noted it; None where it did not, or not to the end of the line."""
    path = folder / "metrics.jsonl"
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            told = json.loads(line)
        except (ValueError, RecursionError):  # the last one, of a run that goes on or was killed; or a damaged one
            continue
        loss = told.get("loss") if isinstance(told, dict) and told.get("step") == step else None
        if isinstance(loss, float) and math.isfinite(loss):
            return loss
    return None
