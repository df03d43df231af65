"""What the loader of a training run gives, by one thread: order, flips, reading shards, drawing latents.

B batch, F as they are and mirrored, M channels of moments, h, w their height and width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..codec.base import codec_from
from ..codec.config import CodecConfig
from ..config import to_dict
from ..rng import Draws, generator
from .contest import Contest, Entry, Turn
from .peers import OURS
from .plan import Plan

ITEMS, BATCH, SIDE = 512, 64, 32
CODEC = CodecConfig("kl", 4, 8, scale=(0.18215,), shift=(0.0,), fingerprint="none")  # shaped as Stable Diffusion's
LOADED = "prepared latents"


def loader(plan: Plan, device: torch.device) -> Contest:
    """Ours alone: no peer reads prepared shards."""
    entry = Entry(OURS, turn, what=LOADED, samples=BATCH)
    settings = {"batch_size": BATCH, "items": ITEMS, "moments": [2, 2 * CODEC.channels, SIDE, SIDE]}
    notes = ("A call is a batch, from shards in memory to latents; made-up moments of pictures of 256 x 256.",)
    return Contest("loader", "shards", [entry], plan.rounds, plan.seconds, notes=notes, settings=settings)


def turn() -> Turn:
    """A call is a batch."""
    each = batches()
    return Turn(lambda: next(each))


def batches() -> Iterator[Tensor]:
    """Latents (B, C, h, w) for ever, from a folder that is made first and gone afterwards."""
    from ..data.base import batch_items, mirrored
    from ..data.shards import Shards

    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name), ITEMS)
        data, codec = Shards(name), codec_from(CODEC)
        for number in count():
            _, items = batch_items(0, data.groups, BATCH, number)
            places = range(number * BATCH, (number + 1) * BATCH)
            raw = data.read(items, mirrored(0.5, 0, places))
            data.labels(items)
            yield codec.latents(torch.from_numpy(raw), Draws(0, places, "latent").normal)


def write_shards(folder: Path, items: int) -> None:
    """A finished folder of one part, as `ditwright prepare` leaves it, of random moments (F, M, h, w)."""
    from ..data.parts import (
        FORMAT,
        INDEX,
        SETTINGS,
        Origin,
        Part,
        Settings,
        Sums,
        index_of,
        tar_name,
        write_json,
        write_part,
    )
    from ..data.shards import ShardWriter

    size = (SIDE * CODEC.factor, SIDE * CODEC.factor)
    origin = Origin("made up", items, "")
    settings = Settings(FORMAT, to_dict(CODEC), "float16", True, size[0], None, items, ("all",), origin)
    name, shape = tar_name(0, size, False), (2, 2 * CODEC.channels, SIDE, SIDE)
    with open(folder / name, "wb") as file:
        writer = ShardWriter(file, name, size)
        for key in range(items):
            moments = generator(0, key, "bench").standard_normal(shape, dtype=np.float32).astype(np.float16)
            writer.add(key, moments, {"name": str(key), "label": 0, "caption": None, "size": list(size)})
        tar, contents = writer.finish()
    sums = Sums(1, (0.0,) * CODEC.channels, (1.0,) * CODEC.channels)
    part = Part(0, items, (tar,), sums, (), ())
    write_json(folder / SETTINGS, to_dict(settings))
    write_part(folder, part, {name: contents})
    write_json(folder / INDEX, to_dict(index_of(settings, [part])))
