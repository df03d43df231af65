"""Class labels as people give them."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import UserError, did_you_mean

Labels = int | str | Sequence[int | str | tuple[str, ...] | None] | None  # a tuple: a prompt of several texts


def numbers(given: Sequence[int | str | None], count: int, names: Sequence[str]) -> list[int]:
    """Numbers of classes, of which there are `count`, from numbers, names or synonyms. UserError for one not known."""
    if count == 0:
        if any(label is not None for label in given):
            raise UserError("this network is unconditional: it takes no class labels")
        return [0] * len(given)
    known = {part.strip(): i for i, name in reversed([*enumerate(names)]) for part in name.split(",")}
    known |= {name: i for i, name in reversed([*enumerate(names)])}  # whole names before synonyms, the first of equals
    return [_number(label, count, known, names) for label in given]


def _number(label: Any, count: int, known: dict[str, int], names: Sequence[str]) -> int:
    if isinstance(label, str) and label in known:
        return known[label]
    if str(label).isdecimal() and int(label) < count:
        return int(label)
    allowed = f"0 to {count - 1}" + (f", or names such as {', '.join(names[:5])}" if names else "")
    near = "" if str(label).isdecimal() else did_you_mean(str(label), known)
    raise UserError(f"class label {label!r} is not known; allowed: {allowed}{near}")


def repeated(given: Labels, times: int = 1) -> list[int | str | None]:
    """A label for each picture, `times` pictures beside each other for each label given. UserError where none is."""
    if hasattr(given, "tolist"):  # of NumPy or torch
        given = given.tolist()
    labels = [None] if given is None else several(given, "prompt or class label")
    if not labels:
        raise UserError("nothing to sample: give a prompt or a class label for each picture")
    if (times := whole(times, "num_images_per_prompt")) < 1:
        raise UserError(f"num_images_per_prompt must be at least 1; got {times}")
    return [label for label in labels for _ in range(times)]


def several(given: Any, name: str) -> list[Any]:
    """One label or text, or several of them, as a list. UserError, by its `name`, for what is neither."""
    if isinstance(given, (int, str)):
        return [given]
    if not isinstance(given, Iterable):
        raise UserError(f"give one {name}, or a list of them; got {given!r}")
    return list(given)


def whole(number: Any, name: str) -> int:
    """A whole number, of Python, NumPy or torch. UserError, by its `name`, for what is none."""
    try:
        return operator.index(number)
    except TypeError:
        raise UserError(f"{name} must be a whole number; got {number!r}") from None
