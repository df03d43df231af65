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
    shutil.rmtree(half, ignore_errors=True)  # left by a process that was killed
    half.mkdir(parents=True)
    try:
        yield half
        for file in half.iterdir():
            _sync(file)
        if path.exists():
            os.replace(path, old)
        os.replace(half, path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
