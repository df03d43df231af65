"""Prepared shards written, and read as a data set: raw moments by item number, straight from the tars.

B batch, F flips, M channels of moments, h, w their height and width.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import UserError
from .base import Group
from .parts import (
    INDEX,
    SETTINGS,
    Contents,
    Index,
    Part,
    Settings,
    Statistics,
    Tar,
    damaged,
    index_of,
    read_json,
    read_part,
)
from .tar import BLOCK, Opened, TarWriter

OPEN_FILES = 512  # a process may often have 1024


class ShardWriter:
    """A shard while it is filled: items of one size, in the order of their numbers in the source."""

    def __init__(self, file: BinaryIO, name: str, size: tuple[int, int]):
        self.tar, self.name, self.size = TarWriter(file), name, size
        self.shape: tuple[int, ...] = ()
        self.keys: list[int] = []
        self.labels: list[int] = []
        self.offsets: list[int] = []

    def add(self, key: int, moments: np.ndarray, facts: dict[str, Any]) -> None:
        """Append an item: its moments (F, M, h, w), and what is known of the picture."""
        assert self.shape in ((), moments.shape), "a shard holds items of one shape"
        self.shape = moments.shape
        array = BytesIO()
        np.save(array, moments, allow_pickle=False)
        start = self.tar.add(f"{key:09d}.npy", array.getvalue())
        self.tar.add(f"{key:09d}.json", json.dumps(facts).encode())
        self.keys.append(key)
        self.labels.append(facts["label"] or 0)
        self.offsets.append(start + len(array.getbuffer()) - moments.nbytes)

    def finish(self) -> tuple[Tar, Contents]:
        """End the file. Returns what it is, and where its items are."""
        digest = self.tar.finish()
        contents = Contents(*(np.array(values, np.int64) for values in (self.keys, self.labels, self.offsets)))
        tar = Tar(self.name, self.size, len(self.keys), self.shape, self.tar.size, digest, contents.digest)
        return tar, contents


class Shards:
    """A data set over a folder that `ditwright prepare` finished. Any number of threads may read it at once.

    Items are numbered as their pictures follow in the source, whatever the size of a shard. On opening, every file
    must be there with the size it was written with; `verify` looks at every byte.
    """

    def __init__(self, folder: str | Path):
        """UserError for a folder that is not finished, or a file that is missing, cut or damaged."""
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        settings = self.index.settings
        parts = [read_part(self.folder, number, settings) for number in range(self.index.parts)]
        self.tars = tuple(tar for part, _ in parts for tar in part.tars)
        if not self.tars or not _agree(self.folder, self.index, [part for part, _ in parts]):
            raise damaged(self.folder / INDEX, "it, the parts and the settings do not agree")
        contents = [one for _, several in parts for one in several]
        order = np.argsort(np.concatenate([one.keys for one in contents]), kind="stable")
        self._tar = np.repeat(np.arange(len(self.tars)), [tar.count for tar in self.tars])[order]
        self._labels = np.concatenate([one.labels for one in contents])[order]
        self._offsets = np.concatenate([one.offsets for one in contents])[order]
        self._open = lru_cache(OPEN_FILES)(lambda number: Opened(self.folder / self.tars[number].name))
        self.class_names, self.codec = settings.class_names, settings.codec
        self.groups = tuple(map(self._group, sorted({tar.size for tar in self.tars})))

    def _group(self, size: tuple[int, int]) -> Group:
        if len({tar.shape for tar in self.tars if tar.size == size}) != 1:
            raise damaged(self.folder / INDEX, f"pictures of {size[0]} x {size[1]} have moments of several shapes")
        of_size = np.array([tar.size == size for tar in self.tars])
        return Group(size, np.flatnonzero(of_size[self._tar]))

    def _opened(self, number: int) -> Opened:
        try:
            return self._open(number)
        except OSError as error:
            path = self.folder / self.tars[number].name
            raise UserError(
                f"the shard {str(path)!r} cannot be opened ({error.strerror}): bring it back, then run the same "
                "command again; a run goes on from what it saved"
            ) from error

    def __reduce__(self) -> tuple[type[Shards], tuple[Path]]:
        return Shards, (self.folder,)  # a worker process opens its own files

    def __len__(self) -> int:
        return len(self._tar)

    @property
    def statistics(self) -> Statistics:
        """Of each channel of the latents before scale and shift."""
        return self.index.statistics

    def labels(self, items: np.ndarray) -> np.ndarray:
        """(B,) item numbers -> (B,) int64; 0 where the source has no labels."""
        return self._labels[items]

    def read(self, items: np.ndarray, flips: np.ndarray) -> np.ndarray:
        """(B,) items of one group, (B,) bool which are mirrored -> raw moments (B, M, h, w), in their stored dtype."""
        numbers = self._tar[items]
        shape, *others = {self.tars[number].shape for number in set(numbers.tolist())}
        assert not others, "the items of a batch are of one group"
        if flips.any() and shape[0] == 1:
            raise UserError(
                f"{str(self.folder)!r} was prepared with --no-flip and has no mirrored pictures; "
                "set data.flip to 0, or prepare them without --no-flip"
            )
        moments = np.empty((len(items), *shape[1:]), self.index.settings.dtype)
        length = moments[0].nbytes
        starts = self._offsets[items] + length * flips
        for number, start, view in zip(numbers.tolist(), starts.tolist(), moments, strict=True):
            try:
                self._opened(number).fill(memoryview(view).cast("B"), start)
            except EOFError as error:
                raise damaged(self.folder / self.tars[number].name, error) from None
        return moments

    def facts(self, items: np.ndarray) -> list[dict[str, Any]]:
        """What was known of each picture: its "name", "label", "caption" and "size" (height, width) in the source."""
        found = []
        for item in np.asarray(items).tolist():
            tar = self.tars[number := int(self._tar[item])]
            end = int(self._offsets[item]) + math.prod(tar.shape) * np.dtype(self.index.settings.dtype).itemsize
            try:
                facts = json.loads(self._opened(number).member(end + -end % BLOCK, tar.bytes))
                if not isinstance(facts, dict):
                    raise ValueError(f"item {item} has no facts")
            except (EOFError, ValueError, RecursionError) as error:
                raise damaged(self.folder / tar.name, error) from None
            found.append(facts)
        return found

    def captions(self, items: np.ndarray) -> list[str | None]:
        """The captions, None where there is none."""
        return [facts.get("caption") for facts in self.facts(items)]


def _agree(folder: Path, index: Index, parts: Sequence[Part]) -> bool:
    """Whether the files of a set, read one by one, tell the same."""
    settings = folder / SETTINGS
    if settings.is_file() and read_json(Settings, settings) != index.settings:
        return False
    try:
        with np.errstate(all="ignore"):
            return index_of(index.settings, parts) == index
    except (ArithmeticError, ValueError):
        return False


def read_index(folder: Path) -> Index:
    """The index of a finished set. UserError for one that is not finished, or is none."""
    if (folder / INDEX).is_file():
        return read_json(Index, folder / INDEX)
    if (folder / SETTINGS).is_file():
        done = len(list(folder.glob("shard-*.json")))
        raise UserError(f"{str(folder)!r} is not finished (parts done: {done}); run the same `ditwright prepare` again")
    raise UserError(f"{str(folder)!r} holds no prepared shards; make them with `ditwright prepare SOURCE --output ...`")


def verify(folder: Path) -> Iterator[tuple[str, bool]]:
    """The name of each shard of a finished set, and whether its bytes are those that were written."""
    for tar in read_index(folder).shards:
        path = folder / Path(tar.name).name
        if not path.is_file():
            yield tar.name, False
            continue
        with open(path, "rb") as file:
            yield tar.name, hashlib.file_digest(file, "sha256").hexdigest() == tar.sha256
