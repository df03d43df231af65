"""Tar files as WebDataset reads them, the same bytes whoever writes them and whenever."""

from __future__ import annotations

import hashlib
import os
import tarfile
from typing import BinaryIO

BLOCK = 512  # everything in a tar begins at a multiple of it


class TarWriter:
    """Adds members to an open file and keeps count: no clock, no owner, so equal members give equal bytes."""

    def __init__(self, file: BinaryIO):
        self.file, self.size, self._hash = file, 0, hashlib.sha256()

    def add(self, name: str, data: bytes) -> int:
        """Append a member. Returns where its first byte lies in the file."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        start = self.size
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return start

    def finish(self) -> str:
        """Write the end mark. Returns the SHA-256 of the whole file."""
        self._write(bytes(2 * BLOCK))
        return self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self._hash.update(data)
        self.size += len(data)


class Opened:
    """A file that any number of threads read by position; it closes when nobody holds it any more."""

    def __init__(self, path: os.PathLike):
        self.handle = os.open(path, os.O_RDONLY)

    def fill(self, buffer: memoryview, offset: int) -> None:
        """Read as many bytes as the buffer takes, from an offset on. EOFError where the file ends before."""
        done = 0
        while done < len(buffer):
            got = os.preadv(self.handle, [buffer[done:]], offset + done)
            if got == 0:
                raise EOFError(f"it ends {len(buffer) - done} bytes too early")
            done += got

    def member(self, offset: int, limit: int) -> bytes:
        """What the member whose header lies at an offset holds. ValueError for what is none, or over `limit` bytes."""
        header = bytearray(BLOCK)
        self.fill(memoryview(header), offset)
        try:
            size = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "strict").size
        except tarfile.HeaderError as error:
            raise ValueError(f"no tar header at byte {offset}: {error}") from None
        if not 0 <= size <= limit:
            raise ValueError(f"a member of {size} bytes at byte {offset}")
        data = bytearray(size)
        self.fill(memoryview(data), offset + BLOCK)
        return bytes(data)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)
