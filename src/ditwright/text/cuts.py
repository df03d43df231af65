"""Prompts that were cut, in a work of many batches: the first is named, the others are counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .tokenizer import CutWarning


@contextmanager
def cuts_told_once(say: Callable[[str], None]) -> Iterator[None]:
    """`say` hears the first warning of a cut prompt as a note, and at the end how many others there were.

    Whichever thread warns; other warnings go where they went.
    """
    with warnings.catch_warnings():
        show, count = warnings.showwarning, 0

        def first(message: Warning | str, category: type[Warning], *about: Any, **more: Any) -> None:
            nonlocal count
            if not issubclass(category, CutWarning):
                return show(message, category, *about, **more)
            count += 1
            if count == 1:
                say(f"note: {message}")

        warnings.filterwarnings("always", category=CutWarning)
        warnings.showwarning = first
        try:
            yield
        finally:
            if count > 1:
                say(f"note: ... and {count - 1:,} more such cuts")
