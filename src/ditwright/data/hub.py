"""Data sets of Hugging Face's `datasets`: folders of `save_to_disk`, folders that it can read, names on its hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, lookup, unknown
from ..extras import need
from .base import Record
from .images import Unreadable, read_file
from .labels import numbered

OPTIONS = ("image", "label", "text", "config", "revision")


@dataclass(frozen=True)
class Hub:
    """A `Source` of rows."""

    name: str
    pictures: Any  # datasets.Dataset of one column, pictures not decoded
    column: str
    class_names: tuple[str, ...]
    targets: np.ndarray  # (N,) int64
    captions: Sequence[str | None]
    columns: tuple[str, ...] = ()  # that hold texts

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> Record:
        label = int(self.targets[number]) if self.class_names else None
        return Record(f"{self.name} row {number}", partial(self._read, number), label, self.captions[number])

    def _read(self, number: int) -> bytes:
        picture = self.pictures[number][self.column]
        if picture is None:
            raise Unreadable("is missing")
        return picture["bytes"] if picture["bytes"] is not None else read_file(picture["path"])


def open_hub(words: str) -> Hub:
    """`NAME[:SPLIT][:COLUMN=NAME ...]`, NAME a folder or a name on the hub: `cifar100:train:label=fine_label`.

    Columns are found by their kind, or told as image=, label= and text= (`label=none`: leave it out); config= is
    the hub's name for one of several versions, revision= a branch, tag or commit there. UserError where a choice is
    open.
    """
    name, *rest = words.split(":")
    options = dict(word.split("=", 1) for word in rest if "=" in word)
    splits = [word for word in rest if "=" not in word]
    for key in options.keys() - set(OPTIONS):
        raise unknown("option", key, OPTIONS)
    if len(splits) > 1 or not name:
        raise UserError(f"'hf:{words}' should read hf:NAME[:SPLIT][:image=COLUMN][:label=COLUMN][:text=COLUMN]")
    data = _split(_loaded(name, options.get("config"), options.get("revision")), splits[0] if splits else None, name)
    if not len(data):
        raise UserError(f"'hf:{name}' holds no rows")
    return _columns(data, f"hf:{name}", options)


def _loaded(name: str, config: str | None, revision: str | None) -> Any:
    datasets = need("datasets", extra="data")
    folder = Path(name).expanduser()
    if folder.exists() and revision is not None:
        raise UserError(f"revision= is for names on the hub; {name!r} is a folder here")
    if not folder.exists() and (name[0] in "./~" or name.count("/") > 1):
        raise UserError(f"there is no folder {name!r}; a name on the hub reads OWNER/NAME")
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            return datasets.load_from_disk(str(folder))
        pinned = {"revision": revision} if revision is not None else {}
        return datasets.load_dataset(str(folder) if folder.exists() else name, config, **pinned)
    except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        if folder.exists():
            raise UserError(f"`datasets` finds no data set with rows in {name!r} ({reason})") from error
        raise UserError(
            f"cannot fetch the data set {name!r} ({reason}); without the network bring here what "
            f"`datasets.load_dataset({name!r}).save_to_disk(FOLDER)` writes elsewhere and use hf:FOLDER"
        ) from error


def _split(data: Any, split: str | None, name: str) -> Any:
    """One of several splits: as asked, the only one, or train."""
    if not isinstance(data, dict):
        if split is not None:
            raise UserError(f"'hf:{name}' is saved without splits; leave {split!r} out")
        return data
    if split is None:
        split = next(iter(data)) if len(data) == 1 else "train"
    return lookup(f"split of 'hf:{name}'", split, data)


def _columns(data: Any, name: str, options: dict[str, str]) -> Hub:
    datasets = need("datasets", extra="data")
    data, kinds = data.with_format(None), dict(data.features)
    strings = [key for key, kind in kinds.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
    classes = [key for key, kind in kinds.items() if isinstance(kind, datasets.ClassLabel) or key == "label"]
    pictures = [key for key, kind in kinds.items() if isinstance(kind, datasets.Image)]

    def choose(role: str, fits: Sequence[str], usual: Sequence[str]) -> str | None:
        told = options.get(role)
        if told is not None and told != "none" and told not in kinds:
            raise unknown(f"column of {name!r}", told, kinds)
        if told is not None:
            return told if told != "none" else None
        best = next((key for key in usual if key in fits), None)
        if best is None and len(fits) > 1:
            raise UserError(f"{name!r} has several {role} columns, {', '.join(fits)}; choose: {name}:{role}={fits[0]}")
        return best or next(iter(fits), None)

    picture = choose("image", pictures, ("image", "img"))
    if picture is None or picture not in pictures:
        raise UserError(f"{name!r} needs a column of pictures; it has {', '.join(kinds)}")
    label = choose("label", classes, ("label",))
    text = choose("text", [key for key in ("text", "caption") if key in strings], ("text",))
    if text is not None and text not in strings:
        there = f"those are {', '.join(strings)}" if strings else "it has none"
        raise UserError(f"{name!r}: {text!r} is not a column of text; {there}")
    names, targets = _labels(data, label, name) if label else ((), np.zeros(len(data), np.int64))
    undecoded = data.select_columns([picture]).cast_column(picture, datasets.Image(decode=False))
    captions = data.select_columns([text])[:][text] if text else [None] * len(data)
    return Hub(name, undecoded, picture, names, targets, captions, tuple(key for key in strings if key != label))


def _labels(data: Any, column: str, name: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names and numbers; a column of `ClassLabel` knows the names of classes that no row has."""
    labels = data.select_columns([column])[:][column]
    kind = data.features[column]
    if not hasattr(kind, "names"):
        return numbered(labels, lambda n: f"{name!r} row {n}")
    hidden = next((n for n, label in enumerate(labels) if label in (None, -1)), None)
    if hidden is not None:
        raise UserError(f"{name!r} row {hidden} has no label, as in test splits; leave them out with {name}:label=none")
    if len(kind.names) == 1:
        raise UserError(f"{name!r} has one class only, {kind.names[0]!r}; leave it out with {name}:label=none")
    return tuple(kind.names), np.array(labels, np.int64)
