"""WebDataset shards: tar files in which neighbours of one name, but for the extension, are parts of one sample.

KEY.jpg (or .png, .webp, ...) is the picture; KEY.cls its class, KEY.txt its caption, and KEY.json may hold "label" and
"caption". A caption may be told to be elsewhere: in KEY.prompt, or under "prompt" in KEY.json. Headers are read once;
pictures are then read in place, in any order. Nothing is unpacked. N samples.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..config import parse_json
from ..errors import UserError, unknown
from .base import Record
from .images import EXTENSIONS, Unreadable
from .labels import numbered

_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)")  # the key, which holds no dot in its last part, and the extension


@dataclass(frozen=True)
class Tars:
    """A `Source` of samples in tar files."""

    shards: Sequence[Path]
    names: Sequence[str]  # of the pictures, in their shards
    places: np.ndarray  # (N, 3) int64: shard, offset, size
    class_names: tuple[str, ...]
    targets: np.ndarray  # (N,) int64
    captions: Sequence[str | None]
    columns: tuple[str, ...] = ()  # extensions and keys of .json that hold texts

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Record:
        shard, offset, size = self.places[number].tolist()
        path = self.shards[shard]
        label = int(self.targets[number]) if self.class_names else None
        name = f"{path}:{self.names[number]}"
        return Record(name, partial(_picture, path, offset, size), label, self.captions[number])


class Member(NamedTuple):
    """A file in a tar file."""

    name: str
    offset: int
    size: int


class Sample(NamedTuple):
    """What a shard holds under one key."""

    picture: Member  # of size 0 where there is none
    label: int | str | None
    caption: str | None


def open_tars(shards: Sequence[Path], text: str | None = None) -> Tars:
    """Read the headers, labels and captions of all shards. UserError where one is truncated or has no pictures.

    `text`: the extension, or the key in .json, that holds the captions; "none": there are none. UserError where no
    sample has it. A sample without a picture stays in the list, as one that cannot be read.
    """
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    labels, captions = [], []
    fields: dict[str, bool] = {}  # extensions and keys of .json: whether each holds a text somewhere
    for number, shard in enumerate(shards):
        before = len(names)
        for sample in _samples(shard, text, fields):
            names.append(sample.picture.name)
            places.append((number, sample.picture.offset, sample.picture.size))
            labels.append(sample.label)
            captions.append(sample.caption)
        if not any(size for _, _, size in places[before:]):
            raise UserError(f"{str(shard)!r} holds no pictures; pictures are {', '.join(EXTENSIONS)}")
    if text not in (None, "none", *fields):
        raise unknown(f"extension or .json key of {str(shards[0])!r}", text, fields)
    class_names, targets = numbered(labels, lambda n: f"{str(shards[places[n][0]])!r}: {names[n]!r}")
    columns = tuple(key for key, holds in fields.items() if holds and key != "label")
    return Tars(shards, names, np.array(places, np.int64), class_names, targets, captions, columns)


def is_pattern(name: str) -> bool:
    """Whether a name means tar files: it ends in .tar, whatever wildcards and braces it has."""
    return name.endswith((".tar", ".tar}"))


def shards_of(pattern: str) -> list[Path]:
    """The files of `train-{000..127}.tar`, `*.tar` or one name, sorted. UserError where one is missing."""
    found: list[Path] = []
    pattern = os.path.expanduser(pattern)
    for name in [pattern] if os.path.exists(pattern) else _braces(pattern):
        matches = sorted(filter(os.path.isfile, [name] if os.path.exists(name) else glob.glob(name)))
        if not matches:
            raise UserError(f"there is no tar file {name!r}")
        found += map(Path, matches)
    return found


def _braces(pattern: str) -> Iterator[str]:
    """`a{0..2}` -> a0 a1 a2; `{x,y}` -> x y."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        yield pattern
        return
    first, dots, last = match[1].partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        parts = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        parts = match[1].split(",")
    for part in parts:
        yield from _braces(pattern[: match.start()] + part + pattern[match.end() :])


def _samples(shard: Path, text: str | None, fields: dict[str, bool]) -> Iterator[Sample]:
    with shard.open("rb") as file:
        named = ((match, member) for member in _members(file, shard) if (match := _NAME.fullmatch(member.name)))
        for key, group in groupby(named, lambda pair: pair[0][1]):
            parts = {match[2].lower(): member for match, member in group}
            pictures = [member for kind, member in parts.items() if kind in EXTENSIONS]
            label, caption = _told(file, parts, f"{str(shard)!r}: {key!r}", text, fields)
            if pictures or label is not None or caption is not None:
                yield Sample(pictures[0] if pictures else Member(key, 0, 0), label, caption)


def _members(file: BinaryIO, shard: Path) -> Iterator[Member]:
    """The regular files of a whole tar file. tarfile itself takes a damaged header, or none, for the end.

    Links, devices and sparse files, whose size need not be that of what is there, are passed over.
    """
    end, length = 0, os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
                if not end < tar.offset <= length or member.size < 0:
                    raise tarfile.ReadError(f"the member at byte {member.offset} has no end in it")
                end = tar.offset
                if member.isreg() and not member.issparse():
                    yield Member(member.name, member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no mark of its end at byte {tar.offset}")
    except (tarfile.TarError, ValueError, OverflowError, MemoryError) as error:  # what hostile headers do to it too
        raise UserError(f"{str(shard)!r} is not a whole, uncompressed .tar file ({error}); fetch it again") from error


def _told(
    file: BinaryIO, parts: dict[str, Member], place: str, text: str | None, fields: dict[str, bool]
) -> tuple[Any, str | None]:
    """The label and the caption of a sample, where it has them; bytes that are not UTF-8 become question marks.

    `fields` comes to know what else there is.
    """

    def read(member: Member) -> str:
        file.seek(member.offset)
        return file.read(member.size).decode(errors="replace").strip()

    label, caption, found = None, None, {}
    if "json" in parts:
        try:
            found = parse_json(read(parts["json"]))
        except ValueError as error:
            raise UserError(f"{place} has a .json that is not JSON ({error})") from error
        if not isinstance(found, dict):
            raise UserError(f"{place} has a .json that is not an object")
        label = found.get("label")
        caption = found.get("caption", found.get("text")) if text is None else found.get(text)
        if not isinstance(caption, (str, type(None))):
            raise UserError(f"{place}: a caption is text; got {caption!r}")
    if "cls" in parts:
        word = read(parts["cls"])
        label = int(word) if re.fullmatch(r"-?\d{1,18}", word) else word
        if label is word and re.fullmatch(r"-?\d+", word):
            raise UserError(f"{place} has a .cls that is no class: a number of {len(word)} digits")
    others = parts.keys() - {*EXTENSIONS, "json", "cls"}
    if (own := "txt" if text is None else text) in others:
        caption = read(parts[own])
    for key in sorted(others):
        fields[key] = fields.get(key, False) or key == "txt"
    for key, value in found.items():
        fields[key] = fields.get(key, False) or isinstance(value, str)
    return label, caption


def _picture(shard: Path, offset: int, size: int) -> bytes:
    if not size:
        raise Unreadable("has no picture, or an empty one")
    try:
        with shard.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror or error})") from error
    if len(data) < size:
        raise Unreadable("is truncated")
    return data
