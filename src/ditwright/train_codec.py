"""Training an autoencoder on pictures: random crops in, a folder that `--codec` takes out.

RUN/config.yaml, metrics.jsonl      as of every run
RUN/samples/step-*.png              held-out pictures above what became of them
RUN/checkpoints/step-*/             config.json and weights as stock diffusers reads them; train.* (to go on)
RUN/codec/                          the finished autoencoder, its scale and shift measured; checksums
RUN/report.json, codec.png          what it does to pictures that it never saw
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from .codec.base import Codec, codec_from, find_codec
from .codec.config import CodecConfig
from .codec.folder import WEIGHTS, write
from .codec.learn import Reconstruct, Reconstruction, Spread, build, psnr, spread
from .codec.pixels import channels_first, to_float, to_uint8
from .data.base import Dataset, Group, batch_items, mirrored, step_items
from .data.known import known_by
from .data.sources import open_dataset
from .errors import UserError
from .experiment import CodecTrainConfig
from .files import seal, whole_file, whole_folder
from .pictures import save_png, sheet
from .rng import Draws, generator
from .train.ahead import loaded
from .train.ema import EMA
from .train.fit import Batch
from .train.job import Job, work
from .train.optim import adamw
from .train.parallel import World, join

EVERY = 20  # where nothing else is held out, every so manieth picture is
MEASURED = 256  # crops from which latents' statistics are taken
JUDGED = 1000  # held-out pictures at most
SHOWN = 20


@dataclass(frozen=True)
class Held:
    """Pictures that are kept from training, cut to the size of the crops."""

    data: Dataset
    items: np.ndarray  # (N,) of one group
    crop: int

    def read(self, items: np.ndarray) -> np.ndarray:
        """(N,) items -> their centres (N, crop, crop, C) uint8."""
        images = self.data.read(items, np.zeros(len(items), dtype=bool))
        top, left = ((side - self.crop) // 2 for side in images.shape[1:3])
        return images[:, top : top + self.crop, left : left + self.crop]

    def some(self, most: int) -> np.ndarray:
        """At most so many items, from all over: (N,) int64."""
        return self.items[np.linspace(0, len(self.items) - 1, min(most, len(self.items))).round().astype(int)]


@dataclass
class Parts:
    """The objects that a configuration names."""

    made: nn.Module  # diffusers' AutoencoderKL, whose parts `net` trains
    net: Reconstruct
    ema: EMA
    data: Dataset
    groups: tuple[Group, ...]  # what is trained on
    held: Held
    world: World


@dataclass(frozen=True)
class Report:
    """What a trained autoencoder does to pictures that it never saw."""

    folder: Path
    psnr: float  # dB, the mean over pictures
    pictures: int
    latents: Spread


def train(config: CodecTrainConfig, output: Path) -> Report | None:
    """Run a configuration to its end, or go on with the run that `output` holds; then measure what came out.

    Under torchrun every process calls this, and the first one reports. SIGTERM and Ctrl-C save, say so, and leave by
    SystemExit.
    """
    world = join()
    try:
        parts = assemble(config, world)  # first: what does not fit leaves no trace in the folder
        work(job_of(config, parts), output)
        return finish(config, parts, output) if world.main else None
    finally:
        world.leave()


def assemble(config: CodecTrainConfig, world: World) -> Parts:
    """Make every part of a run. UserError where they do not fit each other."""
    data, crop = open_dataset(config.data.source, image_size=config.data.image_size), config.data.crop
    if data.codec is not None:
        raise UserError(f"{config.data.source!r} holds latents; an autoencoder is trained on pictures")
    for group in data.groups:
        if min(group.size) < crop:
            raise UserError(f"{config.data.source!r} has pictures of {group.size}; data.crop {crop} does not fit in")
    groups, held = apart(config, data)
    world.share(range(config.data.batch_size))
    channels = held.read(held.items[:1]).shape[-1]
    if channels != config.model.image_channels:
        raise UserError(f"model.image_channels is {config.model.image_channels}; the pictures have {channels}")
    made = build(config.model, crop, config.seed).to(world.device)
    net = Reconstruct(made)
    return Parts(made, net, EMA(net, config.optim.ema), data, groups, held, world)


def apart(config: CodecTrainConfig, data: Dataset) -> tuple[tuple[Group, ...], Held]:
    """What is trained on, and what is kept to measure with: a data set of its own, or every twentieth picture."""
    crop = config.data.crop
    if config.data.held_out:
        other = open_dataset(config.data.held_out, image_size=crop)
        return data.groups, Held(other, other.groups[0].items, crop)
    largest = max(data.groups, key=lambda group: len(group.items))
    if len(largest.items) < 2:
        raise UserError(
            f"{config.data.source!r} has one picture, and one to measure with is needed besides: add pictures, or "
            "name them with data.held_out"
        )
    kept = largest.items[::EVERY]
    groups = tuple(Group(group.size, np.setdiff1d(group.items, kept)) for group in data.groups)
    return groups, Held(data, kept, crop)


def job_of(config: CodecTrainConfig, parts: Parts) -> Job:
    """The run of some parts."""
    loss = Reconstruction(config.model, config.loss.l1, config.loss.mse, config.loss.kl)

    def write(folder: Path, also: Callable[[Path], None]) -> None:
        with whole_folder(folder) as half:
            write_average(config, parts, half)
            also(half)

    return Job(
        config,
        parts.net,
        loss,
        adamw(parts.net, config.optim),
        parts.ema,
        batches=lambda done: loaded(
            batches(config, parts, done * config.optim.accumulate), config.data.prefetch, parts.world.device
        ),
        publish=lambda: write,
        weights=WEIGHTS,
        preview=lambda output, step: preview(parts, output, step),
        world=parts.world,
        items=lambda step: step_items(
            config.seed, parts.groups, config.data.batch_size, step=step, accumulate=config.optim.accumulate
        ).tolist(),
        data=known_by(parts.data),
    )


def batches(config: CodecTrainConfig, parts: Parts, first: int, world: World | None = None) -> Iterator[Batch]:
    """Random crops from a number in the endless sequence of batches; each is a pure function of its number."""
    world, size = world or parts.world, config.data.batch_size
    for number in count(first):
        _, items = batch_items(config.seed, parts.groups, size, number)
        places = world.share(range(number * size, (number + 1) * size))
        items = items[places.start - number * size : places.stop - number * size]
        images = parts.data.read(items, mirrored(config.data.flip, config.seed, places))
        crops = [cut(image, config.data.crop, config.seed, place) for image, place in zip(images, places, strict=True)]
        x0 = to_float(channels_first(np.stack(crops))).to(world.device)
        yield Batch(x0, {}, Draws(config.seed, places, "train"))


def cut(image: np.ndarray, side: int, seed: int, place: int) -> np.ndarray:
    """A square of (H, W, C) at a position that follows from seed and place: (side, side, C)."""
    draws = generator(seed, place, "crop")
    top, left = (int(draws.integers(0, length - side + 1)) for length in image.shape[:2])
    return image[top : top + side, left : left + side]


@torch.no_grad()
def measure(config: CodecTrainConfig, parts: Parts) -> Spread:
    """Statistics of the average's latents on the first crops of the training sequence."""
    alone = World(parts.world.device)  # the same crops whatever the number of processes
    rounds = range(-(-MEASURED // config.data.batch_size))
    crops = zip(rounds, batches(config, parts, 0, alone), strict=False)
    return spread(parts.ema.module.moments(batch.x0) for _, batch in crops)


def write_average(config: CodecTrainConfig, parts: Parts, folder: Path) -> Spread:
    """The averaged weights as a folder of diffusers, with the scale and shift that its latents have."""
    found = measure(config, parts)
    made = CodecConfig("kl", config.model.channels, config.model.factor, (found.scale,), (found.shift,))
    write(parts.made, parts.ema.module.state_dict(), folder, made)
    return found


@torch.no_grad()
def preview(parts: Parts, output: Path, step: int) -> None:
    """Held-out pictures above what the averaged weights make of them; all processes ask, and the main one draws."""
    if not parts.world.main:
        return
    images = parts.held.read(parts.held.some(SHOWN))
    x = to_float(channels_first(images)).to(parts.world.device)
    mean, _ = parts.ema.module.moments(x)
    made = parts.ema.module.decoder(parts.ema.module.post_quant_conv(mean))
    (output / "samples").mkdir(exist_ok=True)
    save_png(before_after(images, to_uint8(made)), output / "samples" / f"step-{step:08d}.png")


def before_after(images: np.ndarray, others: np.ndarray, columns: int = 10, **style: Any) -> Image.Image:
    """Pictures in rows, each above what became of it."""
    rows, names = [], []
    for start in range(0, len(images), columns):
        rows += [list(images[start : start + columns]), list(others[start : start + columns])]
        names += ["before", "after"]
    return sheet(rows, row_names=names, cell=96, **style)


def finish(config: CodecTrainConfig, parts: Parts, output: Path) -> Report:
    """Write RUN/codec, and judge it as anybody would use it: found by its folder, encoding, decoding."""
    folder = output / "codec"
    with whole_folder(folder) as half:
        latents = write_average(config, parts, half)
        seal(half)
    codec, held = codec_from(find_codec(str(folder))).to(parts.world.device), parts.held
    items = held.some(JUDGED)
    portions = np.array_split(items, -(-len(items) // config.data.batch_size))
    scores = np.concatenate([psnr(images, remade(codec, images)) for images in map(held.read, portions)])
    report = Report(folder, float(scores.mean()), len(items), latents)
    facts = {
        "psnr": round(report.psnr, 3),
        "psnr_of_bicubic_resizing": round(resized_psnr(held, items, config.model.factor), 3),
        "psnr_of_each_class": by_class(held.data, items, scores),
        "pictures": len(items),
        "held_out": config.data.held_out or f"every {EVERY}th picture",
        "latent_mean": latents.mean.tolist(),
        "latent_std": latents.std.tolist(),
        "shift_factor": latents.shift,
        "scaling_factor": latents.scale,
    }
    with whole_file(output / "report.json") as half:
        half.write_text(json.dumps(facts, indent=1) + "\n")
    shown = held.read(held.some(SHOWN))
    title = f"pictures held out, {report.psnr:.1f} dB on average"
    save_png(before_after(shown, remade(codec, shown), title=title), output / "codec.png")
    return report


def remade(codec: Codec, images: np.ndarray) -> np.ndarray:
    """Pictures through a codec and back, by the means of their latents: (B, H, W, C) uint8."""
    return codec.decode(codec.encode(images))


def resized_psnr(held: Held, items: np.ndarray, factor: int) -> float:
    """What no learning does: pictures made smaller by the factor and larger again, bicubically. The mean, in dB."""
    bicubic = Image.Resampling.BICUBIC
    found = []
    for image in held.read(items):
        small = Image.fromarray(image.squeeze()).resize((image.shape[1] // factor, image.shape[0] // factor), bicubic)
        found.append(np.asarray(small.resize(image.shape[1::-1], bicubic)).reshape(image.shape))
    return float(psnr(held.read(items), np.stack(found)).mean())


def by_class(data: Dataset, items: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """The mean score of each class that has any items."""
    labels = data.labels(items)
    return {
        name: round(float(scores[labels == label].mean()), 3)
        for label, name in enumerate(data.class_names)
        if (labels == label).any()
    }
