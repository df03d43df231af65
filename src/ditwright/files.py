"""Files and folders that are whole or absent: written beside their place, synced, then renamed; and checked later."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

CHECKSUMS = "checksums.json"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to; what was written takes the place of `path` if the block succeeds."""
    half = path.with_name(f".{path.name}.half")
    try:
        yield half
        _sync(half)
        os.replace(half, path)
        _sync(path.parent)
    finally:
        half.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; it becomes `path`, replacing what was there, if the block succeeds."""
    half, old = path.with_name(f".{path.name}.half"), path.with_name(f".{path.name}.old")
    _put_back(path, old)
    for left in (half, old):  # by a killed process
        remove(left)
    half.mkdir(parents=True)
    try:
        yield half
        for file in [*half.rglob("*"), half]:
            _sync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(half, path)
        _sync(path.parent)
    finally:
        _put_back(path, old)
        for left in (half, old):  # what does not go now is told by the next one, in whose way it is
            shutil.rmtree(left, ignore_errors=True)


def _put_back(path: Path, old: Path) -> None:
    """The old folder, where no new one took its place."""
    if old.exists() and not path.exists():
        os.replace(old, path)


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it, if it is there. OSError where it stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def seal(folder: Path) -> None:
    """Note the size and the SHA-256 of every file below a folder in its `checksums.json`, for `damage` to compare."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CHECKSUMS)
    noted = {path.relative_to(folder).as_posix(): _mark(path) for path in files}
    (folder / CHECKSUMS).write_text(json.dumps(noted, indent=1) + "\n")


def damage(folder: Path, *, afresh: bool = False, only: Collection[str] = ()) -> str:
    """The first file that is not as it was sealed, and how it differs; "" where all are, or where nothing was sealed.

    Files are read in pieces, however large. `afresh`: from the disk, where the system allows, not from its cache.
    `only`: the names of those to look at, which must have been sealed; (): all.
    """
    if not os.path.lexists(folder / CHECKSUMS):
        return ""
    try:
        noted = json.loads((folder / CHECKSUMS).read_bytes(), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        return f"{CHECKSUMS} is damaged: {error}"
    if not isinstance(noted, dict):
        return f"{CHECKSUMS} is damaged: it holds no names"
    for name in only:
        if name not in noted:
            return f"{CHECKSUMS} is damaged: it lacks {name}"
    for name, mark in noted.items():
        if only and name not in only:
            continue
        try:
            found = _mark(folder / name, afresh)
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as error:  # ValueError: a name that is none
            return f"{name!r} cannot be read: {error}"
        if found != mark:
            return f"{name} is damaged: its {found['bytes']:,} bytes are not those that were written"
    return ""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _mark(path: Path, afresh: bool = False) -> dict[str, int | str]:
    with open(path, "rb") as file:
        if afresh and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}


def _sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
