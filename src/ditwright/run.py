"""A training run: its folder, its going on after a stop, and all that is done between steps.

RUN/config.yaml               the resolved configuration
RUN/metrics.jsonl             one line per logged step
RUN/samples/step-*.png        grids from the averaged weights
RUN/checkpoints/step-*/       card.yaml and model.safetensors (the average: what is sampled); train.* (to go on)
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .codec.base import Codec, codec_from
from .config import differences, dump_yaml, read_yaml, to_dict
from .data.base import Dataset, drop, item
from .data.sources import SOURCES
from .diffusion.objective import Loss, objective_from
from .diffusion.process import Denoiser, process_from
from .errors import UserError, lookup
from .experiment import TrainConfig
from .files import whole_file
from .model.dit import build
from .model.weights import read_safetensors
from .nn.branch import run_all
from .pictures import grid, save_png
from .pipeline import WEIGHTS, Card, Pipeline, best_device
from .rng import Draws
from .train.ema import EMA
from .train.fit import Batch, Tick, fit
from .train.log import Log, say
from .train.optim import adamw, schedule_from
from .train.precision import autocast, resolve
from .train.runners import checkpointed
from .train.state import checkpoint_path, checkpoints, forget_all_but, load_state, save_state

MAY_CHANGE = ("steps", "log.", "sample.")  # what a run may be continued with


@dataclass
class Parts:
    """The objects that a configuration names."""

    denoiser: Denoiser
    loss: Loss
    optim: torch.optim.Optimizer
    ema: EMA
    data: Dataset
    codec: Codec
    device: torch.device


def assemble(config: TrainConfig, device: torch.device) -> Parts:
    """Make every part of a run. UserError where they do not fit each other."""
    data = lookup("data source", config.data.source, SOURCES)()
    codec = codec_from(config.codec)
    classes, channels = len(data.class_names), codec.channels
    if config.model.num_classes not in (0, classes):
        raise UserError(
            f"model.num_classes is {config.model.num_classes}; {config.data.source!r} has {classes} classes"
        )
    if config.model.channels != channels:
        raise UserError(f"model.channels is {config.model.channels}; the codec gives {channels}")
    codec.encode(data.images[:1])
    process = process_from(config.process)
    denoiser = Denoiser(build(config.model, config.seed), process).to(device)
    ema = EMA(denoiser, config.optim.ema)
    if config.compile:
        for block in denoiser.net.blocks:
            block.compile()
    loss = objective_from(config.objective, process)
    parts = Parts(denoiser, loss, adamw(denoiser, config.optim), ema, data, codec, device)
    sampled_by(config, parts).plan(config.sample)
    return parts


def batches(config: TrainConfig, parts: Parts, place: int) -> Iterator[Batch]:
    """Batches from a place in the endless sequence of samples; each is a pure function of its places."""
    images = parts.codec.encode(parts.data.images)
    labels = torch.from_numpy(parts.data.labels)
    null, size = config.model.num_classes, config.data.batch_size
    while True:
        places = range(place, place + size)
        index = torch.tensor([item(config.seed, len(images), p) for p in places])
        label = drop(labels[index], null, config.data.label_drop, config.seed, places)
        cond = {"label": label.to(parts.device)} if null else {}
        yield Batch(images[index].to(parts.device), cond, Draws(config.seed, places, "train"))
        place += size


def train(config: TrainConfig, output: Path) -> Path:
    """Run a configuration to its end, or go on with the run that `output` holds. Returns the last checkpoint.

    SIGTERM and Ctrl-C save, say so, and leave by SystemExit.
    """
    device = best_device()
    parts = assemble(config, device)  # first: what does not fit leaves no trace in the folder
    with claimed(output):
        config = settle(config, output, device)
        done, seconds = resume(parts, output)
        start = time.perf_counter() - seconds  # as if the run had never stopped
        if done >= config.steps:
            say(f"{output} is at step {done} of {config.steps}: nothing to do (ask for more with --steps)")
            return checkpoint_path(output, done)
        say(f"{'going on at step ' + str(done) if done else 'training'} on {device} in {config.precision}: {output}")
        with Log(output, config.log, done, config.steps) as log, stop_asked() as asked:
            for tick in ticks(config, parts, done):
                log.write(tick)
                last = tick.step == config.steps
                if _due(tick.step, config.log.preview_every) or (last and config.log.preview_every):
                    preview(config, parts, output, tick.step)  # before the checkpoint: a kill between them repeats it
                leaves = last or bool(asked)
                if leaves or _due(tick.step, config.log.checkpoint_every):
                    save(config, parts, output, {"step": tick.step, "seconds": time.perf_counter() - start})
                if leaves:
                    break
        if asked:
            say(f"{signal.Signals(asked[0]).name}: saved step {tick.step} of {config.steps}; the same command goes on")
            raise SystemExit(128 + asked[0])
        return checkpoint_path(output, config.steps)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def ticks(config: TrainConfig, parts: Parts, done: int) -> Iterator[Tick]:
    """The steps of a run after `done` of them."""
    place = done * config.data.batch_size * config.optim.accumulate
    return fit(
        parts.denoiser,
        parts.loss,
        batches(config, parts, place),
        parts.optim,
        schedule=schedule_from(config.optim, config.steps),
        ema=parts.ema,
        done=done,
        accumulate=config.optim.accumulate,
        clip=config.optim.clip,
        run=checkpointed if config.checkpoint_activations else run_all,
        autocast=autocast(config.precision, parts.device),
    )


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Hold the run folder for this process alone."""
    output.mkdir(parents=True, exist_ok=True)
    folder = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process trains in {str(output)!r}; wait, or choose another --output") from None
        yield
    finally:
        os.close(folder)


def settle(config: TrainConfig, output: Path, device: torch.device) -> TrainConfig:
    """The configuration as it will run, kept in the run folder; checked against the one that is there."""
    path = output / "config.yaml"
    if path.exists():
        there = read_yaml(TrainConfig, path)
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
            say(f"{key}: {old} -> {new}")
    elif checkpoints(output) or (output / "metrics.jsonl").exists():
        raise UserError(f"{str(output)!r} holds a run without its config.yaml; choose another --output")
    config = replace(config, precision=resolve(config.precision, device))
    with whole_file(path) as half:
        half.write_text(dump_yaml(config))
    return config


def sampled_by(config: TrainConfig, parts: Parts) -> Pipeline:
    """The averaged weights, and what a checkpoint says of itself."""
    names, (height, width) = parts.data.class_names, parts.data.images.shape[1:3]
    card = Card(config.model, config.process, config.codec, config.sample, names, (height, width))
    return Pipeline(parts.ema.module, card)


def save(config: TrainConfig, parts: Parts, output: Path, facts: dict[str, Any]) -> None:
    """Write a checkpoint whole, then forget the oldest."""

    def training_state(folder: Path) -> None:
        save_state(folder, parts.denoiser, parts.optim, parts.ema, parts.loss, facts)

    sampled_by(config, parts).save_pretrained(checkpoint_path(output, facts["step"]), also=training_state)
    forget_all_but(output, config.log.keep)


def resume(parts: Parts, output: Path) -> tuple[int, float]:
    """Bring the parts to the newest checkpoint of a run: how many steps are done, in how many seconds."""
    if not (found := checkpoints(output)):
        return 0, 0.0
    average = read_safetensors(found[-1] / WEIGHTS)
    facts = load_state(found[-1], parts.denoiser, parts.optim, parts.ema, parts.loss, average)
    return facts["step"], facts["seconds"]


def preview(config: TrainConfig, parts: Parts, output: Path, step: int) -> None:
    """A grid of samples from the averaged weights, the same noise every time: a row per class, at most ten."""
    classes = min(10, config.model.num_classes)
    labels = [label for label in range(classes) for _ in range(8)] or [None] * 64
    pictures = sampled_by(config, parts)(labels, seed=config.seed)
    (output / "samples").mkdir(exist_ok=True)
    save_png(grid(pictures, columns=8), output / "samples" / f"step-{step:08d}.png")


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
