"""Any Python iterable as a source that can only be walked, once, and has no length."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from .base import Record
from .images import read_file

PICTURES = (bytes, Image.Image, np.ndarray, str, os.PathLike)
WANTED = 'a picture, (picture, label), {"image": ..., "label": ..., "text": ...} or a Record'


@dataclass(frozen=True)
class Stream:
    """What an iterable gives: pictures, pairs with a label, dicts such as `datasets` makes, or `Record`s.

    A picture is an encoded file's bytes, a Pillow picture, an array or a path; a label a number, or one of
    `class_names`.
    """

    items: Iterable[Any]
    class_names: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Record]:
        for number, item in enumerate(self.items):
            yield item if isinstance(item, Record) else self._record(f"item {number}", item)

    def _record(self, name: str, item: Any) -> Record:
        label = caption = None
        if isinstance(item, Mapping):
            label, caption = item.get("label"), item.get("text", item.get("caption"))
            item = item.get("image")
        elif isinstance(item, tuple) and len(item) == 2:
            item, label = item
        if not isinstance(item, PICTURES):
            raise UserError(f"{name} of the iterable is of type {type(item).__name__}; wanted is {WANTED}")
        if not isinstance(caption, (str, type(None))):
            raise UserError(f"{name} of the iterable: a text is wanted; got {caption!r}")
        label = None if label is None else self._number(name, label)
        if isinstance(item, (str, os.PathLike)):
            return Record(str(item), partial(read_file, os.fspath(item)), label, caption)
        return Record(name, partial(_given, item), label, caption)

    def _number(self, name: str, label: Any) -> int:
        if label in self.class_names:
            return self.class_names.index(label)
        count = len(self.class_names)
        if not isinstance(label, (int, np.integer)) or isinstance(label, bool) or not 0 <= label < (count or np.inf):
            known = f"0 ... {count - 1} or one of the class names" if count else "a number from 0"
            raise UserError(f"{name} of the iterable has the label {label!r}; wanted is {known}")
        return int(label)


def _given(picture: Any) -> Any:
    return picture
