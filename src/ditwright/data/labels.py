"""Labels as files have them, numbers or names, to class names and numbers. N pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import UserError

MOST_CLASSES = 1_000_000


def numbered(labels: Sequence[Any], place: Callable[[int], str]) -> tuple[tuple[str, ...], np.ndarray]:
    """int, str or None for each picture -> (class names, (N,) int64), or ((), zeros) where none has a label.

    Names are sorted; numbers are the classes 0 ... highest. `place` says where picture n is, for the UserError where
    some have labels and others not, where numbers and names are mixed, or where there is one class only.
    """
    kinds = [type(label) for label in labels]
    first = {kind: kinds.index(kind) for kind in dict.fromkeys(kinds)}
    if first.keys() <= {type(None)}:
        return (), np.zeros(len(labels), np.int64)
    if type(None) in first:
        raise UserError(f"{place(first[type(None)])} has no label, but others have; give all of them one, or none")
    for kind in first.keys() - {int, str}:
        raise UserError(f"{place(first[kind])}: a label is a whole number or a name; got {labels[first[kind]]!r}")
    if len(first) == 2:
        raise UserError(f"labels are numbers or names, not both: {place(first[int])} and {place(first[str])}")
    if int in first:
        targets = _checked(labels, place)
        names = tuple(map(str, range(int(targets.max()) + 1)))
    else:
        names = tuple(sorted(set(labels)))
        number = {name: n for n, name in enumerate(names)}
        targets = np.array([number[label] for label in labels], np.int64)
    if (targets == targets[0]).all():
        raise UserError(
            f"{place(0)} and all others are of one class, {names[targets[0]]!r}; leave the labels out, or have two"
        )
    return names, targets


def _checked(labels: Sequence[int], place: Callable[[int], str]) -> np.ndarray:
    for number, label in enumerate(labels):
        if not 0 <= label < MOST_CLASSES:
            raise UserError(f"{place(number)}: labels number the classes from 0; got {label}")
    return np.array(labels, np.int64)
