"""Prompts for sets of samples: the captions of a data set, or the lines of a text file. No picture is opened.

N samples, M prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import whole_file
from .base import Dataset, spread, uncaptioned
from .sources import SOURCES, is_prepared, open_dataset, open_source

SOURCE = "a data set with captions, a prepared folder, or a text file of one prompt a line"


@dataclass(frozen=True)
class Prompts:
    """M prompts in a fixed order, which as many samples as are wanted hear in turn."""

    source: str  # for people
    texts: tuple[str, ...]

    def of(self, samples: range) -> list[str]:
        """Sample i hears prompt i modulo M."""
        return [self.texts[i % len(self.texts)] for i in samples]


def prompts_from(source: str, most: int) -> Prompts:
    """At most `most` prompts, evenly spread over a source (SOURCE), in its order. UserError where one is missing.

    Line breaks within a caption become spaces, so that a prompt is always a line.
    """
    path = Path(source).expanduser()
    if source not in SOURCES and path.is_file() and path.suffix != ".tar":
        texts = [text for text in lines(path) if text.strip()]
        if not texts:
            raise UserError(f"{source!r} holds no prompts; it takes one a line")
        return Prompts(source, tuple(texts[i] for i in spread(len(texts), most)))
    if source not in SOURCES and is_prepared(path):
        captions: Sequence[str] = captions_of(open_dataset(source), most, source)
    else:
        try:
            pictures = open_source(source)
        except UserError as error:
            raise UserError(f"no prompts in {source!r}: {error}; prompts come from {SOURCE}") from error
        numbers = spread(len(pictures), most)
        captions = _all_there([pictures[i].caption for i in numbers.tolist()], numbers, source, pictures)
    return Prompts(source, tuple(" ".join(text.splitlines()) for text in captions))


def captions_of(data: Dataset, most: int, source: str) -> tuple[str, ...]:
    """At most `most` captions, evenly spread over a data set that is called `source`."""
    items = np.sort(np.concatenate([group.items for group in data.groups]))
    items = items[spread(len(items), most)]
    return tuple(_all_there(data.captions(items), items, source, getattr(data, "source", data)))


def has_captions(data: Dataset) -> bool:
    """Whether pictures come with captions, by the first of them."""
    return data.captions(data.groups[0].items[:1])[0] is not None


def _all_there(found: Sequence[str | None], items: np.ndarray, source: str, of: object) -> list[str]:
    texts = [text for text in found if text is not None]
    if len(texts) < len(found):
        why = uncaptioned(f"picture {items[found.index(None)]}", of)
        raise UserError(f"{source!r} has pictures without captions: {why}; or give {SOURCE}")
    return texts


def beside(npz: Path) -> Path:
    """Where the prompts of a set of samples lie, a line for each."""
    return npz.with_suffix(".txt")


def write_lines(path: Path, texts: Sequence[str]) -> None:
    """A line for each, the file whole or not at all."""
    with whole_file(path) as half, open(half, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{text}\n" for text in texts)


def lines(path: Path) -> list[str]:
    """The lines of a text file, empty ones too. UserError where it is missing or no text."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is no text in UTF-8 ({error.reason}); prompts come from {SOURCE}") from error
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror})") from error
