"""Sets of pictures, by whatever people have: files of samples, folders, data sets, arrays.

N pictures, B batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..codec.base import codec_from
from ..codec.config import CodecConfig
from ..config import from_dict, parse_json
from ..data.base import Dataset, Group, spread
from ..data.sources import open_dataset
from ..errors import UserError
from ..metrics.npz import read_samples

LABELLED_BYTES = 2**31  # of pictures that `labelled` holds in memory
READ = 256  # pictures that it reads together


@dataclass(frozen=True)
class Images:
    """Pictures in a fixed order, read when they are needed."""

    name: str  # for people
    count: int
    batches: Callable[[int, int, int], Iterator[np.ndarray]]  # (size, start, stop) -> (B, H, W, C) uint8, ...
    origin: Mapping[str, Any] = field(default_factory=dict)  # the settings that drew them, where they are known
    like: np.ndarray | None = None  # (1, H, W, C) of their size, where making the first is dear

    def first(self) -> np.ndarray:
        """(1, H, W, C): the first, or one like it."""
        return next(iter(self.batches(1, 0, 1))) if self.like is None else self.like


def images_from(given: str | Path | np.ndarray | Images, size: int | None = None) -> Images:
    """A set by its name or path: an .npz of samples (`arr_0`), or whatever `open_dataset` takes; an array as it is.

    `size`: side to which pictures are cropped; UserError where those of an .npz or an array are of another one.
    """
    if isinstance(given, (str, Path)) and Path(given).suffix != ".npz":
        return _of_dataset(open_dataset(str(given), size), str(given))
    if isinstance(given, Images):
        found = given
    else:
        found = _of_array(given) if isinstance(given, np.ndarray) else in_npz(Path(given).expanduser())
    if size is not None and (came := found.first().shape[1:3]) != (size, size):
        raise UserError(f"{found.name!r} has pictures of {came[0]} x {came[1]}, not {size}; only folders are cropped")
    return found


def in_npz(path: Path) -> Images:
    """The samples of a file, with the settings that lie beside it if `ditwright sample` drew them."""
    samples = read_samples(path)
    return Images(str(path), len(samples), samples.batches, _settings_beside(path, len(samples)))


def labelled(name: str, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, H, W, C) uint8 of a data set with their classes (N,): all, or as many as 2 GB hold, evenly spread.

    UserError where it has no classes.
    """
    data = open_dataset(name, size)
    if len(data.class_names) < 2:
        raise UserError(f"{name!r} has no classes for a judge to tell apart; give a folder with one for each class")
    group = _only_group(data, name)
    read = _reader(data, name)
    most = max(1, LABELLED_BYTES // read(group.items[:1]).nbytes)
    items = group.items[spread(len(group.items), most)]
    images = np.concatenate([read(items[i : i + READ]) for i in range(0, len(items), READ)])
    return _without_colour(images), data.labels(items)


def _of_array(array: np.ndarray) -> Images:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape:
        raise UserError(f"pictures are uint8 (number, height, width, 1 or 3); got {array.dtype} {array.shape}")

    def batches(size: int, start: int, stop: int) -> Iterator[np.ndarray]:
        return (array[i : min(i + size, stop)] for i in range(start, min(stop, len(array)), size))

    return Images("an array", len(array), batches)


def _of_dataset(data: Dataset, name: str) -> Images:
    items, read = _only_group(data, name).items, _reader(data, name)

    def batches(size: int, start: int, stop: int) -> Iterator[np.ndarray]:
        places = range(start, min(stop, len(items)), size)
        return (_without_colour(read(items[i : min(i + size, stop)])) for i in places)

    return Images(name, len(items), batches)


def _only_group(data: Dataset, name: str) -> Group:
    if len(data.groups) != 1:
        sizes = ", ".join(f"{height} x {width}" for height, width in (group.size for group in data.groups[:3]))
        raise UserError(f"{name!r} holds pictures of several sizes ({sizes}, ...); prepare them with --size N")
    return data.groups[0]


def _reader(data: Dataset, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Item numbers (B,) -> pictures (B, H, W, C) uint8. UserError for latents."""
    config = from_dict(CodecConfig, dict(data.codec)) if data.codec is not None else CodecConfig("pixels")
    if config.kind != "pixels":
        raise UserError(
            f"{name!r} holds latents (codec {config.kind}), and metrics look at pictures: give those that it was "
            "prepared from, or shards prepared with --codec pixels"
        )
    codec = codec_from(config)

    def read(items: np.ndarray) -> np.ndarray:
        raw = data.read(items, np.zeros(len(items), bool))
        return raw if data.codec is None else codec.decode(codec.latents(torch.from_numpy(raw)))

    return read


def _without_colour(images: np.ndarray) -> np.ndarray:
    """Grey pictures with one channel: decoders make three of them, and features are the same, but for grey judges."""
    return images[..., :1] if images.shape[-1] == 3 and (images == images[..., :1]).all() else images


def _settings_beside(path: Path, count: int) -> dict[str, Any]:
    """What `pipeline/fid.py` writes beside a set; nothing where another program made it."""
    try:
        told = parse_json(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return {}
    ours = isinstance(told, dict) and told.get("num_samples") == count and "sampler" in told
    return told if ours else {}
