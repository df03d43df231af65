"""What the library warns of, as the command line says it: notes, a line each."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OPTIONS = ("negative_prompt", "true_cfg_scale", "guidance_interval")  # what a call of the library names in its warnings


@contextmanager
def noted(quiet: bool = False) -> Iterator[None]:
    """What is warned of meanwhile is said as a note, at once, in the words of the command line."""

    def note(message: Warning | str, *about: Any, **more: Any) -> None:
        line = str(message)
        if " no effect " in line:
            for option in OPTIONS:
                line = line.replace(option, f"--{option.replace('_', '-')}")
        say(f"note: {line}", quiet)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield


def say(line: str, quiet: bool = False) -> None:
    """A line for people beside what the command puts out; `quiet`: another process says it."""
    if not quiet:
        print(line, file=sys.stderr, flush=True)
