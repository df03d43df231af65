"""The format of prepared shards: their files, what each says, and the checks without which nothing of it is believed.

SHARDS/settings.json               what the shards are made with; written first
SHARDS/shard-000012.tar            part 12 of the source: per picture KEY.npy (F, M, h, w) and KEY.json (what is known)
SHARDS/shard-000012-256x320.tar    ... one for each size where there are aspect-ratio buckets
SHARDS/shard-000012.json           what these tars hold; written after them, it makes the part done
SHARDS/report.txt, index.json      what was skipped, for people; the whole, written last
SHARDS/captions/                   the captions encoded, where that was asked for (`text/cache.py`)

KEY is the picture's number in the source. F: as it is, and mirrored (1 without flips). M channels of moments,
h, w their height and width.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from ..config import from_dict, to_dict
from ..errors import UserError
from ..files import whole_file
from .buckets import Buckets
from .tar import BLOCK

T = TypeVar("T")

FORMAT = "ditwright-latents-1"
INDEX, SETTINGS = "index.json", "settings.json"
AGAIN = "delete it and run the same `ditwright prepare` again: only what is missing is made anew"


@dataclass(frozen=True)
class Origin:
    """The source of the pictures."""

    name: str
    count: int | None  # None: it could only be walked
    names: str  # a digest of some of its names, in their order


@dataclass(frozen=True)
class Settings:
    """What must be the same for every part of a prepared set."""

    format: str
    codec: dict
    dtype: Literal["uint8", "float16", "float32"]
    flips: bool
    size: int | None  # side of the centre crop in pixels; None: as they are, or in buckets
    buckets: Buckets | None
    shard_size: int  # pictures of the source in a part
    class_names: tuple[str, ...]
    source: Origin


@dataclass(frozen=True)
class Skipped:
    """A picture that was left out, and why."""

    name: str
    kind: Literal["corrupt", "too small", "too long"]
    reason: str  # what follows its name: "is truncated"


@dataclass(frozen=True)
class Tar:
    """A shard. `shape` is that of an item: (F, M, h, w)."""

    name: str
    size: tuple[int, int]  # of its pictures: height, width in pixels
    count: int
    shape: tuple[int, int, int, int]
    bytes: int
    sha256: str
    contents: str  # the digest of its Contents


@dataclass(frozen=True)
class Sums:
    """Over `count` values of each channel of the latents, as drawn, before scale and shift."""

    count: int = 0
    values: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()

    def __add__(self, other: Sums) -> Sums:
        if not self.count:
            return other
        values, squares = (
            tuple(a + b for a, b in zip(*both, strict=True))
            for both in ((self.values, other.values), (self.squares, other.squares))
        )
        return Sums(self.count + other.count, values, squares)


@dataclass(frozen=True)
class Part:
    """A stretch of the source, done: items = what its tars hold + corrupt + dropped."""

    number: int
    items: int
    tars: tuple[Tar, ...]
    sums: Sums
    corrupt: tuple[Skipped, ...]
    dropped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Contents:
    """Where the items of a tar are."""

    keys: np.ndarray  # (count,) int64: numbers in the source
    labels: np.ndarray  # (count,) int64; 0 where there are none
    offsets: np.ndarray  # (count,) int64: of the moments' first byte

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        return hashlib.sha256(np.stack([self.keys, self.labels, self.offsets]).astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class SizeCount:
    """How many pictures there are of a size (height, width)."""

    size: tuple[int, int]
    count: int


@dataclass(frozen=True)
class Statistics:
    """Of each channel of the latents as drawn, before scale and shift, over all pictures, places and flips."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Index:
    """A finished set."""

    format: str
    settings: Settings
    count: int
    parts: int
    moment_channels: int
    groups: tuple[SizeCount, ...]
    statistics: Statistics
    corrupt: tuple[Skipped, ...]
    dropped: dict  # kind: how many; their names are in report.txt and in the parts
    shards: tuple[Tar, ...]


def part_name(number: int) -> str:
    """shard-000012: what the names of a part's files begin with."""
    return f"shard-{number:06d}"


def tar_name(number: int, size: tuple[int, int], bucketed: bool) -> str:
    """The name of the shard that holds a part's pictures of one size."""
    return f"{part_name(number)}{f'-{size[0]}x{size[1]}' if bucketed else ''}.tar"


def write_json(path: Path, data: Any) -> None:
    """The same data give the same bytes; the file is whole or absent."""
    with whole_file(path) as half:
        half.write_text(json.dumps(data, indent=1) + "\n")


def read_json(cls: type[T], path: Path) -> T:
    """The dataclass that a file holds. UserError where it does not."""
    return _parsed(cls, _read(path), path)


def _parsed(cls: type[T], data: dict, path: Path) -> T:
    if (version := data.get("format", FORMAT)) != FORMAT:
        raise UserError(f"{str(path)!r} is of the format {version!r}; this version reads {FORMAT!r}")
    try:
        return from_dict(cls, data)
    except (UserError, OverflowError) as error:
        raise damaged(path, error) from None


def _read(path: Path) -> dict:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{str(path)!r} is missing; run the same `ditwright prepare` again") from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise damaged(path, f"it holds {type(data).__name__}, not keys and values")
    return data


def damaged(path: Path, why: object) -> UserError:
    """The error for a file of a prepared set that is not as it was written."""
    return UserError(f"{str(path)!r} is damaged: {why}; {AGAIN}")


def write_part(folder: Path, part: Part, contents: Mapping[str, Contents]) -> None:
    """The file that makes a part done. Its tars must be there."""
    lists = {
        name: {key: values.tolist() for key, values in vars(lists).items()} for name, lists in sorted(contents.items())
    }
    with whole_file(folder / f"{part_name(part.number)}.json") as half:
        half.write_text(json.dumps(to_dict(part) | {"contents": lists}) + "\n")


def read_part(folder: Path, number: int, settings: Settings) -> tuple[Part, tuple[Contents, ...]]:
    """A part that is done, and the contents of each of its tars. UserError for a damaged, cut or missing file."""
    path = folder / f"{part_name(number)}.json"
    data = _read(path)
    lists = data.pop("contents", None)
    part = _parsed(Part, data, path)
    held = sum(tar.count for tar in part.tars) + len(part.corrupt) + len(part.dropped)
    if part.number != number or not 0 < part.items == held <= settings.shard_size:
        raise damaged(path, "its numbers do not agree")
    if not isinstance(lists, dict) or set(lists) != {tar.name for tar in part.tars} or len(lists) != len(part.tars):
        raise damaged(path, "its tars and their contents do not agree")
    try:
        for tar in part.tars:
            _check_tar(folder, tar, number, settings)
        return part, tuple(_contents(lists[tar.name], tar, number, settings) for tar in part.tars)
    except ValueError as error:
        raise error if isinstance(error, UserError) else damaged(path, error) from None


def _check_tar(folder: Path, tar: Tar, number: int, settings: Settings) -> None:
    if tar.name != tar_name(number, tar.size, settings.buckets is not None):
        raise ValueError(f"{tar.name!r} is no name of a shard of {tar.size[0]} x {tar.size[1]}")
    if min(tar.size) < 1 or min(tar.shape) < 1 or tar.shape[0] != 1 + settings.flips or tar.count < 1:
        raise ValueError(f"{tar.name!r} cannot hold {tar.count} items of the shape {tar.shape}")
    path = folder / tar.name
    if not path.is_file():
        raise UserError(f"the shard {str(path)!r} is missing; put it back, or run the same `ditwright prepare` again")
    if (there := path.stat().st_size) != tar.bytes:
        raise UserError(f"the shard {str(path)!r} has {there} bytes, not {tar.bytes}: it was cut or changed; {AGAIN}")


def _contents(lists: Any, tar: Tar, number: int, settings: Settings) -> Contents:
    first, classes = number * settings.shard_size, len(settings.class_names)
    last = tar.bytes - math.prod(tar.shape) * np.dtype(settings.dtype).itemsize
    limits = {"keys": (first, first + settings.shard_size - 1), "labels": (0, classes - 1 if classes else 2**31)}
    found = {}
    for name, (low, high) in {**limits, "offsets": (BLOCK, last)}.items():
        values = lists.get(name) if isinstance(lists, dict) else None
        if not isinstance(values, list) or len(values) != tar.count:
            raise ValueError(f"the {name} of {tar.name!r} are not {tar.count} numbers")
        if not all(type(value) is int and low <= value <= high for value in values):
            raise ValueError(f"the {name} of {tar.name!r} are not all whole numbers from {low} to {high}")
        found[name] = np.array(values, np.int64)
    contents = Contents(**found)
    if contents.digest != tar.contents or (np.diff(contents.keys) <= 0).any():
        raise ValueError(f"the places or labels of {tar.name!r} are not those that were written")
    return contents


def index_of(settings: Settings, parts: Sequence[Part]) -> Index:
    """What a finished set says of itself: the same whoever made the parts, and in which order."""
    sizes: Counter = Counter()
    for tar in (tars := [tar for part in parts for tar in part.tars]):
        sizes[tar.size] += tar.count
    sums = sum((part.sums for part in parts if part.tars), Sums())
    mean, square = (np.array(total) / sums.count for total in (sums.values, sums.squares))
    return Index(
        format=FORMAT,
        settings=settings,
        count=sum(sizes.values()),
        parts=len(parts),
        moment_channels=tars[0].shape[1],
        groups=tuple(SizeCount(size, sizes[size]) for size in sorted(sizes)),
        statistics=Statistics(tuple(mean.tolist()), tuple(np.sqrt(np.maximum(square - mean**2, 0)).tolist())),
        corrupt=tuple(skipped for part in parts for skipped in part.corrupt),
        dropped=dict(Counter(skipped.kind for part in parts for skipped in part.dropped)),
        shards=tuple(tars),
    )
