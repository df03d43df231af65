"""Pictures in a folder: a folder for each class (ImageNet's layout), pictures alone, or with a metadata.jsonl."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..config import parse_json
from ..errors import UserError, unknown
from .base import Record
from .images import EXTENSIONS, read_file
from .labels import numbered

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Folder:
    """A `Source` of files."""

    root: Path
    files: Sequence[str]  # below root
    class_names: tuple[str, ...] = ()
    targets: np.ndarray | None = None  # (N,) int64
    captions: Sequence[str | None] | None = None
    ignored: Mapping[str, int] = field(default_factory=dict)  # extensions that are no picture's, and how many files
    columns: tuple[str, ...] = ()  # fields of metadata.jsonl that hold texts

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Record:
        path = f"{self.root}/{self.files[number]}"
        label = int(self.targets[number]) if self.targets is not None and self.class_names else None
        return Record(path, partial(read_file, path), label, self.captions[number] if self.captions else None)


def open_folder(root: Path, text: str | None = None) -> Folder:
    """Its metadata.jsonl where it has one; else a class for each folder in it; else its pictures without classes.

    `text`: the field of metadata.jsonl that holds the captions; None: text or caption; "none": there are none.
    Classes are numbered in the order of their folders' names, pictures sorted, folders of a class searched to any
    depth. UserError where it is empty or could be meant in several ways.
    """
    if (root / METADATA).is_file():
        return _described(root, text)
    if text is not None:
        raise UserError(
            f"{str(root)!r} has no {METADATA}, from which to take {text!r}; write one, or leave :text={text} out"
        )
    found = open_flat(root)
    loose = next((file for file in found.files if "/" not in file), "")
    names = tuple(dict.fromkeys(file.partition("/")[0] for file in found.files if "/" in file))
    if not names:
        return found
    where, flat = repr(str(root)), f"'flat:{root}' takes all pictures in it without classes"
    if loose:
        raise UserError(f"{where} holds pictures ({loose!r}) and folders of pictures ({names[0]!r}); {flat}")
    if len(names) == 1:
        raise UserError(
            f"{where} holds one class only, {names[0]!r}; for pictures without classes use {str(root / names[0])!r}"
        )
    if SPLITS.issuperset(name.lower() for name in names):
        raise UserError(f"{where} holds splits, not classes; use one of them, such as {str(root / names[0])!r}")
    if bare := [entry.name for entry in _entries(root) if entry.is_dir() and entry.name not in names]:
        raise UserError(f"{where} has folders without pictures, {bare[0]!r} first; remove them, or {flat}")
    number = {name: n for n, name in enumerate(names)}
    targets = np.fromiter((number[file.partition("/")[0]] for file in found.files), np.int64, len(found.files))
    return Folder(root, found.files, names, targets, ignored=found.ignored)


def open_flat(root: Path) -> Folder:
    """All pictures below a folder, without classes."""
    files, ignored = [], Counter[str]()
    for file in _walk(root, (_place(root),)):
        extension = os.path.splitext(file)[1].lower()
        if extension[1:] in EXTENSIONS:
            files.append(file)
        else:
            ignored[extension] += 1
    if not files:
        others = f" among {ignored.total()} files" if ignored else ""
        raise UserError(f"{str(root)!r} holds no pictures{others}; pictures are {', '.join(EXTENSIONS)}")
    return Folder(root, files, ignored=dict(ignored))


def _walk(root: Path | str, above: tuple[tuple[int, int], ...], prefix: str = "") -> Iterator[str]:
    """Files below, sorted at each level, hidden ones left out. Links are followed, though never in a circle."""
    for entry in _entries(root):
        if entry.is_dir():
            if (place := _place(entry)) not in above:
                yield from _walk(entry.path, (*above, place), f"{prefix}{entry.name}/")
        elif entry.is_file() or entry.is_symlink():  # a dead link is a picture that cannot be read, not one less
            yield prefix + entry.name


def _place(folder: Path | os.DirEntry[str]) -> tuple[int, int]:
    """By which a folder is known under any name."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _entries(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {str(folder)!r}: {error.strerror}") from error


def _described(root: Path, text: str | None) -> Folder:
    """The pictures that metadata.jsonl names, one JSON object a line: file_name, and text or caption, and label."""
    path = root / METADATA
    files, captions, labels, numbers = [], [], [], []
    fields: dict[str, bool] = {}  # whether each holds a text somewhere
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    row = _row(root, line, f"line {number} of {str(path)!r}", text)
                    files.append(row["file_name"])
                    captions.append(row.get("text", row.get("caption")) if text is None else row.get(text))
                    for key, value in row.items():
                        fields[key] = fields.get(key, False) or isinstance(value, str)
                    labels.append(row.get("label"))
                    numbers.append(number)
    except UnicodeDecodeError as error:
        raise UserError(f"{str(path)!r} is not UTF-8 text") from error
    if not files:
        raise UserError(f"{str(path)!r} names no pictures")
    if text not in (None, "none", *fields):
        raise unknown(f"field of {str(path)!r}", text, fields)
    names, targets = numbered(labels, lambda n: f"line {numbers[n]} of {str(path)!r}")
    columns = tuple(key for key, holds in fields.items() if holds and key not in ("file_name", "label"))
    return Folder(root, files, names, targets, captions, columns=columns)


def _row(root: Path, line: str, place: str, text: str | None) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({getattr(error, 'msg', error)})") from error
    if not isinstance(row, dict) or not isinstance(file := row.get("file_name"), str):
        raise UserError(f'{place} must be an object with "file_name"; got {line.strip()[:60]!r}')
    inside = PurePosixPath(file)
    if inside.is_absolute() or ".." in inside.parts:
        raise UserError(f"{place}: file_name must lie in the folder; got {file!r}")
    if not (root / inside).is_file():
        raise UserError(f"{place}: there is no {file!r}")
    for key in ("text", "caption") if text is None else (text,):
        if not isinstance(row.get(key), (str, type(None))):
            raise UserError(f"{place}: {key} must be text; got {row[key]!r}")
    return row
