"""Data sets by name: those that are built in, folders, tar files, and Hugging Face's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..config import parse_json
from ..errors import UserError, did_you_mean
from .base import Dataset, Record, Source
from .decoded import Decoded
from .digits import digits
from .emoji import emoji
from .folder import METADATA, open_flat, open_folder
from .hub import open_hub
from .parts import INDEX, SETTINGS
from .photos import held_out, photos
from .scenes import scenes
from .shards import Shards
from .webdataset import is_pattern, open_tars, shards_of

SOURCES: dict[str, Callable[..., Dataset]] = {  # by image_size, None for the data set's own
    "digits": lambda size=None: digits(),
    "digits-train": lambda size=None: digits("train"),
    "digits-held-out": lambda size=None: digits("held out"),
    "photos": lambda size=None: photos(size or 64),
    "photos-held-out": lambda size=None: held_out(size or 64),
    "scenes": lambda size=None: scenes("train", 40_000, objects=(1, 1, 2), size=size or 32),  # captioned; never mirror
    "scenes-2": lambda size=None: scenes("train", 40_000, objects=(2,), size=size or 32),  # each says a relation
    "scenes-held-out": lambda size=None: scenes("held out", 2000, objects=(1, 2), size=size or 32),
    "scenes-3": lambda size=None: scenes("train", 40_000, size=size or 32),  # of up to three things
    "scenes-3-held-out": lambda size=None: scenes("held out", 2000, size=size or 32),
    "emoji": lambda size=None: emoji(size or 32),  # captioned
}
KINDS = (
    "a folder (of class folders, of pictures, with metadata.jsonl, of .tar shards, or prepared), "
    "a pattern of .tar files, flat:FOLDER, hf:NAME_OR_FOLDER[:SPLIT]; :text=NAME behind it says which field or column "
    "holds the captions, :text=none leaves them out"
)


def open_source(name: str) -> Source:
    """The pictures that a name or a path stands for (KINDS). UserError says what is missing or open to doubt."""
    if name in SOURCES:
        return Known(name, SOURCES[name]())
    kind, colon, rest = name.partition(":")
    if colon and kind == "hf":
        return open_hub(rest)
    name, text = _with_text(name)
    if is_pattern(name) and not Path(name).is_dir():
        return open_tars(shards_of(name), text)
    folder = _folder(name.removeprefix("flat:"))
    if is_prepared(folder):
        raise UserError(f"{name!r} is prepared already: train on it, or give the pictures that it was made from")
    if kind == "flat" and colon:
        if text is not None:
            raise UserError(f"flat: takes pictures alone, without captions; leave :text={text} out")
        return open_flat(folder)
    return open_tars(shards, text) if (shards := _shards_in(folder)) else open_folder(folder, text)


def open_dataset(name: str, image_size: int | None = None) -> Dataset:
    """What training reads: a data set of SOURCES, a prepared folder, or pictures decoded and cropped as they come.

    `image_size` is for the last kind; UserError where another kind has other sizes.
    """
    folder = Path(name).expanduser()
    if name not in SOURCES and not is_prepared(folder):
        return Decoded(open_source(name), image_size)
    data = SOURCES[name](image_size) if name in SOURCES else Shards(folder)
    if image_size is not None and any(group.size != (image_size, image_size) for group in data.groups):
        height, width = data.groups[0].size
        raise UserError(f"{name!r} has pictures of {height} x {width}; leave data.image_size={image_size} out")
    return data


def is_prepared(folder: Path) -> bool:
    """Whether `ditwright prepare` made it, or began to: then `Shards` says what is missing."""
    for file in (SETTINGS, INDEX):
        try:
            told = parse_json((folder / file).read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(told, dict) and str(told.get("format", "")).startswith("ditwright-latents"):
            return True
    return False


def _with_text(name: str) -> tuple[str, str | None]:
    """A name without the :text=NAME behind it, and that; None where there is none, or where it is part of a path."""
    place, mark, text = name.rpartition(":text=")
    if not mark or Path(name).expanduser().exists():
        return name, None
    if not text:
        raise UserError(f"{name!r} names no field or column; captions are told as {place}:text=NAME")
    if place in SOURCES or is_prepared(Path(place).expanduser()):
        raise UserError(f"{place!r} has captions of its own, or none; leave :text={text} out")
    return place, text


@dataclass(frozen=True)
class Known:
    """A data set of SOURCES as a `Source`."""

    name: str
    data: Dataset

    @property
    def class_names(self) -> tuple[str, ...]:
        """() where it has no classes."""
        return self.data.class_names

    def __len__(self) -> int:
        return sum(len(group.items) for group in self.data.groups)

    def __getitem__(self, number: int) -> Record:
        item = np.array([range(len(self))[number]])
        label = int(self.data.labels(item)[0]) if self.class_names else None
        return Record(f"{self.name} {number}", partial(self._read, item), label, self.data.captions(item)[0])

    def _read(self, item: np.ndarray) -> np.ndarray:
        return self.data.read(item, np.array([False]))[0]


def _folder(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{name!r} is a file; data come from {KINDS}")
    known = ", ".join(sorted(SOURCES))
    raise UserError(f"there is no data set or folder {name!r}{did_you_mean(name, SOURCES)}; known: {known}; {KINDS}")


def _shards_in(folder: Path) -> list[Path]:
    """The tar files of a folder that holds nothing else to take for pictures."""
    shards = sorted(folder.glob("*.tar"))
    others = [
        path.name for path in folder.iterdir() if path.name == METADATA or (path.is_dir() and path.name[0] != ".")
    ]
    if shards and others:
        raise UserError(f"{str(folder)!r} holds tar files and {others[0]!r}; give '{folder}/*.tar' or a folder in it")
    return shards
