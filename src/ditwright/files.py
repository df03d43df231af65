"""Files and folders that are whole or absent: written beside their place, synced, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to; what was written takes the place of `path` if the block succeeds."""
    half = path.with_name(f".{path.name}.half")
    try:
        yield half
        _sync(half)
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; it becomes `path`, replacing what was there, if the block succeeds."""
    half, old = path.with_name(f".{path.name}.half"), path.with_name(f".{path.name}.old")
    _tidy(path, half, old)  # what a killed process left
    half.mkdir(parents=True)
    try:
        yield half
        for file in half.rglob("*"):
            _sync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(half, path)
        _sync(path.parent)
    finally:
        _tidy(path, half, old)


def _tidy(path: Path, half: Path, old: Path) -> None:
    """Put the old folder back where no new one took its place, and remove what is left over."""
    if old.exists() and not path.exists():
        os.replace(old, path)
    shutil.rmtree(half, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
