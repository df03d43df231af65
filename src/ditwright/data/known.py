"""What a data set is known by later: a run that was stopped must not go on with other items under the same numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from .base import Dataset, Pictures
from .decoded import Decoded
from .shards import Shards


def known_by(data: Dataset) -> dict[str, Any]:
    """How many items it has, of which sizes and classes, and the SHA-256 of what they are called, as plain data.

    No picture is opened, so one that was replaced under its name is not seen. A million names take about a second; of
    data sets of other kinds than those of this package only the numbers are looked at.
    """
    told = hashlib.sha256()
    for part in _told(data):
        told.update(part)
    return {
        "items": sum(len(group.items) for group in data.groups),
        "sizes": {f"{group.size[0]}x{group.size[1]}": len(group.items) for group in data.groups},
        "classes": len(data.class_names),
        "names": told.hexdigest(),
    }


def _told(data: Dataset) -> Iterator[bytes]:
    yield from _texts(data.class_names)
    if isinstance(data, Shards):
        for tar in data.tars:
            yield f"{tar.sha256} {tar.contents}".encode()
    elif isinstance(data, Pictures):
        yield data.targets.astype("<i8").tobytes()
        yield from _texts(data.texts)
    elif isinstance(data, Decoded):  # names as they are within the source, which may have been moved
        yield from _texts(getattr(data.source, "files", getattr(data.source, "names", ())))
        targets = getattr(data.source, "targets", None)
        yield b"" if targets is None else targets.astype("<i8").tobytes()
        yield from _texts(getattr(data.source, "captions", None) or ())


def _texts(texts: Iterable[str | None]) -> Iterator[bytes]:
    """Each with its end, so that two lists are the same only where all texts are; None is none."""
    for text in texts:
        yield b"\1" if text is None else text.encode(errors="surrogatepass") + b"\0"
    yield b"\2"
