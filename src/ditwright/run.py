"""Training a network: a configuration made into the parts of a run (`train/job.py` works it off)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .accel.compiling import compile_blocks
from .codec.base import Codec, codec_from, completed
from .codec.config import CodecConfig
from .conditions import Conditions, captions, conditions_of, encoder_for, heard_too
from .config import from_dict
from .data.base import Dataset, Group, batch_items, mirrored, spread, step_items
from .data.known import known_by
from .data.sources import open_dataset
from .diffusion.objective import Loss, SecondMoment, objective_from
from .diffusion.process import Denoiser, process_from
from .diffusion.validation import binned_loss
from .errors import UserError
from .experiment import TrainConfig
from .measure import Gauge, gauge_of
from .model.baseline import UNetConfig
from .model.build import build, parameters
from .model.mup import growth, rescale
from .nn.branch import run_all
from .pictures import grid, save_png
from .pipeline import WEIGHTS, Card, Pipeline
from .pipeline.start import start_from
from .rng import Draws
from .text.base import TextEncoder
from .text.cuts import cuts_told_once
from .text.sd3 import widths_of
from .train.ahead import Made, loaded
from .train.cost import gigabytes, recomputed_within, training_flops
from .train.ema import EMA
from .train.fit import Batch
from .train.job import Job, Measure, Publish, work
from .train.log import Found
from .train.optim import optimizer_from
from .train.parallel import World, arranged, join
from .train.precision import autocast, resolve
from .train.runners import checkpointed
from .train.state import checkpoints


@dataclass
class Parts:
    """The objects that a configuration names, and the configuration as they made it."""

    config: TrainConfig
    denoiser: Denoiser
    loss: Loss
    optim: torch.optim.Optimizer
    ema: EMA
    data: Dataset
    codec: Codec
    world: World
    conditions: Conditions
    encoder: TextEncoder | None = None  # of captions
    held_out: Dataset | None = None
    gauge: Gauge | None = None  # where samples are measured as training goes
    recomputed: int = 0  # of the first blocks: their activations are not kept for the backward pass


def train(config: TrainConfig, output: Path, world: World | None = None) -> Path:
    """Run a configuration to its end, or go on with the run that `output` holds. Returns the last checkpoint.

    Under torchrun every process calls this and they train together, unless `world` says otherwise. SIGTERM and Ctrl-C
    save, say so, and leave by SystemExit.
    """
    world = world or join()
    try:
        world = arranged(world, config.parallel, config.precision)
        new = not checkpoints(output)  # first: what does not fit leaves no trace in the folder
        parts = assemble(config, world, new=new)
        with cuts_told_once(world.say):
            return work(job_of(parts), output)
    finally:
        world.leave()


def agreed_codec(asked: CodecConfig, data: Dataset, source: str) -> CodecConfig:
    """The codec of a run: the one that prepared the data, or the one asked for. UserError where they differ."""
    if asked.source and not asked.fingerprint:  # a resolved configuration needs no weights to be there
        asked = completed(asked)
    made = CodecConfig("pixels") if data.codec is None else from_dict(CodecConfig, dict(data.codec))
    if asked.kind == "auto":
        return made
    if data.codec is None:
        return asked
    if (asked.kind, asked.fingerprint) != (made.kind, made.fingerprint):
        raise UserError(
            f"{source!r} was prepared with the codec {named(made)}, the recipe asks for {named(asked)}; "
            "prepare the pictures with that codec, or leave codec.kind at auto"
        )
    if (asked.channels, asked.factor) != (made.channels, made.factor):
        raise UserError(
            f"codec.channels and factor are {made.channels} and {made.factor} in {source!r}, {asked.channels} and "
            f"{asked.factor} in the recipe; --codec.kind auto takes those of the data"
        )
    return asked


def named(codec: CodecConfig) -> str:
    """A codec for people."""
    mark = f" ({codec.fingerprint[:12]})" if codec.fingerprint else ""
    return f"{codec.kind} {codec.source!r}{mark}" if codec.source else codec.kind + mark


def assemble(config: TrainConfig, world: World, *, new: bool = True) -> Parts:
    """Make every part of a run. UserError where they do not fit each other.

    `new`: false where the weights will come from a checkpoint of the run itself.
    """
    data = open_dataset(config.data.source, image_size=config.data.image_size)
    config = replace(config, codec=agreed_codec(config.codec, data, config.data.source))
    codec, classes = codec_from(config.codec).to(world.device), len(data.class_names)
    if config.model.num_classes not in (0, classes):
        raise UserError(
            f"model.num_classes is {config.model.num_classes}; {config.data.source!r} has {classes} classes"
        )
    if config.model.channels != config.codec.channels:
        known = f"model.channels is {config.model.channels}; the codec gives {config.codec.channels}"
        raise UserError(known + ": `ditwright prepare` makes latents of pictures" * (config.codec.kind == "pixels"))
    text, encoder = encoder_for(config.text, config.model, data)
    config = replace(config, text=text)
    if any(config.data.encoder_drop):
        widths_of(encoder)
    if config.objective.importance and world.size > 1:
        raise UserError("objective.importance keeps a history of losses and runs in one process")
    if (config.checkpoint_activations or config.memory_gb) and isinstance(config.model, UNetConfig):
        raise UserError("checkpoint_activations and memory_gb are for a transformer's blocks; a U-Net takes neither")
    if world.tokens and (isinstance(config.model, UNetConfig) or config.model.heads % world.tokens.size()):
        raise UserError("parallel.sequence is for transformers, and divides their heads; take another, or 1")
    world.share(range(config.data.batch_size))
    recomputed = recomputed_blocks(config, data, world, config.text.length if encoder else 0)
    if data.codec is None:
        codec.moments(data.read(data.groups[0].items[:1], np.array([False])))
    if config.log.preview_every:
        codec.decode(torch.zeros(1, config.codec.channels, 4, 4, device=world.device))  # its weights are there
    process = process_from(config.process)
    net = build(config.model, config.seed)
    slower = growth(config.model, config.optim.mup_width) if config.optim.mup_width else {}
    if slower:
        rescale(net, config.optim.mup_width)
    denoiser = Denoiser(net, process)
    if config.init and new:
        card = Card(config.model, config.process, config.codec, config.sample, text=config.text)
        start_from(config.init, denoiser, card, world.say)
    ema = EMA(denoiser, config.optim.ema)
    if config.compile:
        compile_blocks(denoiser.net.blocks)
    world.place(denoiser, ema.module)
    loss = objective_from(config.objective, process)
    optim = optimizer_from(net, config.optim, slower)
    told = None if encoder is None else encoder.to(world.device)
    conditions = conditions_of(config.model, told, config.seed, guidance=config.data.guidance_scale)
    parts = Parts(config, denoiser, loss, optim, ema, data, codec, world, conditions, encoder, recomputed=recomputed)
    pipe = pipeline_of(parts, ema.module)  # to look at, not to sample with
    for group in data.groups:
        pipe.plan(config.sample, group.size)
    if config.data.validation:
        parts.held_out = open_dataset(config.data.validation, image_size=config.data.image_size)
        if agreed_codec(config.codec, parts.held_out, config.data.validation) != config.codec:
            raise UserError("data.validation and data.source were prepared by different codecs")
        if parts.held_out.class_names != data.class_names:
            raise UserError("data.validation and data.source have different classes")
        heard_too(encoder, parts.held_out)
    if config.measure.every:
        held_out = parts.held_out
        parts.gauge = gauge_of(config.measure, pipe, data, held_out, source=config.data.source, world=world)
    return parts


def recomputed_blocks(config: TrainConfig, data: Dataset, world: World, text: int) -> int:
    """How many of the first blocks compute their activations again; said, where a budget of memory decides on it.

    `text`: tokens of a sample. UserError where the run does not fit the budget.
    """
    depth, most = config.model.depth, config.memory_gb
    if not most:
        return depth if config.checkpoint_activations else 0
    precision = resolve(config.precision, world.device) if world.device.type == "cuda" else config.precision
    size = max((group.size for group in data.groups), key=math.prod)
    blocks, needed = recomputed_within(
        1e9 * most,
        config.model,
        [side // config.codec.factor for side in size],
        len(world.share(range(config.data.batch_size))),
        parameters(config.model),
        text,
        bf16=precision == "bf16",  # auto on a CPU may be either: as fp32, which takes more
        **{name: getattr(config.parallel, name) for name in ("shard", "sequence", "tensor")},
    )
    world.say(f"recomputing {blocks} of {depth} blocks: {gigabytes(sum(needed.values()))} GB of {most:g} GB")
    return blocks


def job_of(parts: Parts) -> Job:
    """The run of some parts."""
    config = parts.config

    def publish() -> Publish:
        pipe = pipeline_of(parts, parts.world.copied(parts.ema.module, later=config.log.async_save))
        return lambda folder, also: pipe.save_pretrained(folder, with_codec=False, also=also)

    return Job(
        config,
        parts.denoiser,
        parts.loss,
        parts.optim,
        parts.ema,
        batches=lambda done: loaded(
            batches(parts, done * config.optim.accumulate), config.data.prefetch, parts.world.device
        ),
        publish=publish,
        weights=WEIGHTS,
        preview=lambda output, step: preview(parts, output, step),
        world=parts.world,
        run=parts.world.runner(partial(checkpointed, count=parts.recomputed) if parts.recomputed else run_all),
        measures=tuple(measures(parts)),
        flops=training_flops(config.model, latent_size(parts), 1, config.text.length if parts.encoder else 0),
        items=lambda step: step_items(
            config.seed, parts.data.groups, config.data.batch_size, step=step, accumulate=config.optim.accumulate
        ).tolist(),
        data=known_by(parts.data),
    )


def latent_size(parts: Parts) -> tuple[int, ...]:
    """Height and width of the latents, of the largest group of sizes."""
    return tuple(side // parts.config.codec.factor for side in largest(parts.data).size)


def largest(data: Dataset) -> Group:
    """The group of sizes that has the most items."""
    return max(data.groups, key=lambda group: len(group.items))


def batches(parts: Parts, first: int) -> Iterator[Batch]:
    """Batches from a number in the endless sequence; each is a pure function of its number.

    A process takes its share of the places, so the sequence of samples does not depend on how many there are.
    """
    config, size = parts.config.data, parts.config.data.batch_size
    for number in count(first):
        _, items = batch_items(parts.config.seed, parts.data.groups, size, number)
        places = parts.world.share(range(number * size, (number + 1) * size))
        items = items[places.start - number * size : places.stop - number * size]
        drop, each = config.label_drop, config.encoder_drop
        batch = batch_of(parts, parts.data, items, places, flip=config.flip, label_drop=drop, encoder_drop=each)
        yield replace(batch, draws=Made(batch.draws, batch.x0))


def batch_of(
    parts: Parts,
    data: Dataset,
    items: np.ndarray,
    places: range,
    *,
    flip: float,
    label_drop: float,
    encoder_drop: Sequence[float] = (),
) -> Batch:
    """Items as the network sees them at places of the sequence, from which all randomness follows."""
    codec, seed, device = parts.codec, parts.config.seed, parts.world.device
    raw = data.read(items, mirrored(flip, seed, places))
    moments = codec.moments(raw) if data.codec is None else torch.from_numpy(raw)
    x0 = codec.latents(moments.to(device), lambda like: Draws(seed, places, "latent").normal(like))
    cond = parts.conditions(data, items, places, label_drop, encoder_drop)
    cond = {name: told.to(device) for name, told in cond.items()}
    return Batch(x0, cond, Draws(seed, places, "train"))


def measures(parts: Parts) -> Iterator[Measure]:
    """What is to be known of the average: its loss on held-out data, and how good its samples are."""
    config, gauge = parts.config, parts.gauge
    if parts.held_out is not None:
        yield Measure(config.log.evaluate_every, lambda: validate(parts), ("val_loss",))
    if gauge is not None:
        yield Measure(config.measure.every, lambda: gauge.measure(sampled_by(parts, everywhere=True)), gauge.tells)


def validate(parts: Parts) -> Found | None:
    """The average's loss on held-out data, whole and by bins of times, with the same noise every time.

    All processes ask, and the main one does it.
    """
    config, data, world, average = parts.config, parts.held_out, parts.world, parts.world.whole(parts.ema.module)
    if not world.main:
        return None
    assert data is not None, "there is held-out data"
    objective = parts.loss.objective if isinstance(parts.loss, SecondMoment) else parts.loss
    items = largest(data).items[: config.data.validation_size]
    found = []
    for start in range(0, len(items), config.data.batch_size):
        places = range(start, min(start + config.data.batch_size, len(items)))
        batch = batch_of(parts, data, items[start : places.stop], places, flip=0.0, label_drop=0.0)
        draws = Draws(config.seed, places, "validation")
        with autocast(config.precision, world.device)():
            found.append(binned_loss(objective, average, batch.x0, batch.cond, draws))
    bins = torch.cat(found).mean(0).cpu()
    line = {"val_loss": bins.mean().item(), "val_loss_bins": bins.tolist()}
    return Found(line, line)


def sampled_by(parts: Parts, *, everywhere: bool = False) -> Pipeline:
    """What samples the averaged weights as they are, on the main process or everywhere; all must ask."""
    return pipeline_of(parts, parts.world.whole(parts.ema.module, everywhere=everywhere))


def pipeline_of(parts: Parts, average: nn.Module) -> Pipeline:
    """The averaged weights, and what a checkpoint says of itself."""
    config, size = parts.config, largest(parts.data).size
    names = parts.data.class_names if config.model.num_classes else ()
    card = Card(config.model, config.process, config.codec, config.sample, names, size, config.text)
    return Pipeline(average, card, parts.codec, parts.encoder)


def preview(parts: Parts, output: Path, step: int) -> None:
    """A grid of samples from the averaged weights, the same noise every time: a row per class, at most ten.

    All processes ask, and the main one draws it.
    """
    pipe, classes = sampled_by(parts), min(10, parts.config.model.num_classes)
    if not parts.world.main:
        return
    columns = 8 if math.prod(pipe.card.image_size) <= 128 * 128 else 4
    asked: list[Any] = [label for label in range(classes) for _ in range(columns)] or [None] * columns**2
    if parts.encoder is not None:
        items = largest(parts.data).items
        asked = captions(parts.data, items[spread(len(items), columns**2)])
    pictures = pipe.draw(asked, seed=parts.config.seed)
    (output / "samples").mkdir(exist_ok=True)
    save_png(grid(pictures, columns=columns), output / "samples" / f"step-{step:08d}.png")
