"""A folder of shards in the making: who may write what, what is done, what is still to do, and the end of it.

Any number of processes may work in one folder. Each part is written by the one that holds its lock; the file that makes
a part done is renamed into place after its tars, so a process may be killed anywhere and nothing is doubled or lost.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..config import differences, to_dict
from ..data.parts import (
    INDEX,
    SETTINGS,
    Contents,
    Index,
    Part,
    Settings,
    Skipped,
    Sums,
    index_of,
    part_name,
    read_json,
    read_part,
    tar_name,
    write_json,
    write_part,
)
from ..data.shards import ShardWriter
from ..errors import UserError
from ..files import whole_file
from .census import Census
from .config import Size
from .cut import Cut

REPORT = "report.txt"
MAY_DIFFER = {"source.name", "codec.source", "codec.revision"}  # digests tell whether they are the same
IN_WORDS = {"source.count": "the number of pictures", "source.names": "the digest of the pictures' names"}


def is_still(path: Path, handle: int) -> bool:
    """Whether a path leads to the file that is open."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock file, which is gone afterwards. Yields whether we do: another may, where we do not `wait` for it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if is_still(path, handle):
                break  # and not the one that its last holder has just removed
        except BlockingIOError:
            os.close(handle)
            yield False
            return
        os.close(handle)
    try:
        yield True
    finally:
        try:
            path.unlink(missing_ok=True)
        finally:
            os.close(handle)


class PartWriter:
    """A part while it is made: a tar for each size that comes."""

    def __init__(self, folder: Path, number: int, bucketed: bool, files: ExitStack):
        self.folder, self.number, self.bucketed, self.files = folder, number, bucketed, files
        self.shards: dict[Size, ShardWriter] = {}
        self.skipped: list[Skipped] = []
        self.sums = Sums()

    def add(self, key: int, size: Size, moments: np.ndarray, sums: Sums, facts: dict[str, Any]) -> None:
        """An item: its number in the source, the size of its picture, moments (F, M, h, w), and what is known of it."""
        if size not in self.shards:
            name = tar_name(self.number, size, self.bucketed)
            half = self.files.enter_context(whole_file(self.folder / name))
            file = self.files.enter_context(open(half, "wb"))  # noqa: SIM115 (closed by the stack)
            self.shards[size] = ShardWriter(file, name, size)
        self.shards[size].add(key, moments, facts)
        self.sums = self.sums + sums

    def finish(self) -> tuple[Part, dict[str, Contents]]:
        """End the tars. Returns what the part's own file is to say."""
        done = [self.shards[size].finish() for size in sorted(self.shards)]
        tars = tuple(tar for tar, _ in done)
        corrupt = tuple(one for one in self.skipped if one.kind == "corrupt")
        dropped = tuple(one for one in self.skipped if one.kind != "corrupt")
        items = sum(tar.count for tar in tars) + len(self.skipped)
        part = Part(self.number, items, tars, self.sums, corrupt, dropped)
        return part, {tar.name: contents for tar, contents in done}


class Making:
    """The folder, seen from one of the processes that work in it."""

    def __init__(self, folder: Path, settings: Settings, cut: Cut, max_corrupt: float):
        self.folder, self.settings, self.cut, self.max_corrupt = folder, settings, cut, max_corrupt
        self.parts: dict[int, Part] = {}  # that are known to be done
        self._expected: tuple[Size, str] | None = None

    def settle(self) -> None:
        """Make the folder, or see that it is of the same settings. UserError where it is not."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{str(self.folder)!r} is a file; name a folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SETTINGS
        with locked(self.folder / ".settings.lock", wait=True):
            if path.is_file() and (self._begun() or (self.folder / INDEX).exists()):
                return self._compare(read_json(Settings, path))
            if not path.is_file() and (others := [p.name for p in self.folder.iterdir() if not p.name.startswith(".")]):
                raise UserError(
                    f"{str(self.folder)!r} holds other things ({sorted(others)[0]!r}); name a new or an empty folder"
                )
            write_json(path, to_dict(self.settings))

    def _begun(self) -> bool:
        """Whether a part is done, or somebody is at it."""
        if any(self.folder.glob("shard-*.json")):
            return True
        for lock in self.folder.glob(".shard-*.lock"):
            with locked(lock, wait=False) as free:
                if not free:
                    return True
        return False

    def _compare(self, there: Settings) -> None:
        for key, (old, new) in differences(to_dict(there), to_dict(self.settings)).items():
            if key not in MAY_DIFFER:
                raise UserError(
                    f"{str(self.folder)!r} holds shards of other settings: {IN_WORDS.get(key, key)} is {old} there "
                    f"and {new} now; choose another folder, or the settings of that one"
                )
        self.settings = there

    def hear(self, number: int) -> Part | None:
        """A part that is done, whoever did it, or None."""
        if number not in self.parts:
            try:
                part, _ = read_part(self.folder, number, self.settings)
            except UserError:
                return None  # missing, or damaged since: it is made anew
            for tar in part.tars:
                self.expect(tar.size, str(self.folder / tar.name))
            self.parts[number] = part
        return self.parts[number]

    def hear_all(self) -> None:
        """Look which parts other processes have done since."""
        for path in self.folder.glob("shard-*.json"):
            number = path.stem.removeprefix("shard-")
            if number.isdecimal():
                self.hear(int(number))

    @contextmanager
    def part(self, number: int) -> Iterator[PartWriter | None]:
        """Yields what to fill, and makes the part done; None where another process is at it, or was."""
        with locked(self.folder / f".{part_name(number)}.lock", wait=False) as ours:
            if not ours or self.hear(number):
                yield None
                return
            (self.folder / INDEX).unlink(missing_ok=True)
            (self.folder / f"{part_name(number)}.json").unlink(missing_ok=True)
            for pattern in (f"{part_name(number)}[.-]*", f".{part_name(number)}[.-]*.half"):
                for left in self.folder.glob(pattern):
                    left.unlink()
            with ExitStack() as files:
                writer = PartWriter(self.folder, number, self.settings.buckets is not None, files)
                yield writer
                part, contents = writer.finish()
            write_part(self.folder, part, contents)
            self.parts[number] = part

    def expect(self, size: Size, name: str) -> None:
        """Where pictures are taken as they are, they are of one size. UserError where they are not."""
        if self.settings.size is not None or self.settings.buckets is not None:
            return
        first, whose = self._expected = self._expected or (size, name)
        if size != first:
            raise UserError(
                f"the pictures are of mixed sizes: {whose!r} is {first[0]} x {first[1]}, {name!r} is "
                f"{size[0]} x {size[1]}; give a size to crop them to (--size N), or --buckets beside it"
            )

    def check(self, more: Sequence[Skipped] = ()) -> None:
        """UserError as soon as too many pictures are corrupt, in parts that are done and in the one that is begun."""
        corrupt = [one for number in sorted(self.parts) for one in self.parts[number].corrupt]
        corrupt += [one for one in more if one.kind == "corrupt"]
        total = self.cut.count
        if total is None or len(corrupt) <= (most := math.floor(self.max_corrupt * total)):
            return
        named = ", ".join(f"{one.name} {one.reason}" for one in corrupt[:3])
        raise UserError(
            f"{len(corrupt)} of {total:,} pictures are corrupt, more than the {most} that --max-corrupt "
            f"{self.max_corrupt:g} allows: {named}{', ...' if len(corrupt) > 3 else ''}; mend or remove them and start "
            "in another folder, or allow more (what is done is kept)"
        )

    def finish(self) -> Index | None:
        """Write the report and the index if every part is done, whoever did them; None where some are not."""
        total, size = self.cut.count or 0, self.settings.shard_size
        if not total:
            raise UserError(f"{self.settings.source.name!r} holds no pictures")
        found = [self.hear(number) for number in range(math.ceil(total / size))]
        self.check()
        parts = [part for part in found if part is not None]
        if len(parts) < len(found):
            return None
        if sum(part.items for part in parts) != total or self.hear(len(parts)) is not None:
            raise UserError(
                f"{self.settings.source.name!r} has other pictures than when {str(self.folder)!r} was begun; "
                "start in another folder"
            )
        census = Census.begun(self.settings.buckets)
        for part in parts:
            census.add(part)
        if not any(part.tars for part in parts):
            raise UserError(f"not one of the pictures can be used: {census.skipped[0].name} {census.skipped[0].reason}")
        index = index_of(self.settings, parts)
        with locked(self.folder / ".index.lock", wait=True):
            for left in [*self.folder.glob(".shard-*.half"), *self.folder.glob(".shard-*.lock")]:
                left.unlink(missing_ok=True)
            with whole_file(self.folder / REPORT) as half:
                half.write_text(census.text(examples=None), errors="backslashreplace")
            write_json(self.folder / INDEX, to_dict(index))
        return index
