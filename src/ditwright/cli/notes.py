"""What this package warns of, as the command line says it: notes, a line each."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]  # of this package
PACKAGE = __name__.partition(".")[0]
OPTIONS = ("negative_prompt", "true_cfg_scale", "guidance_interval")  # what a call of the library names in its warnings


@contextmanager
def noted(quiet: bool = False) -> Iterator[None]:
    """What this package warns of meanwhile is said as a note, at once, in the words of the command line.

    Warnings of others come and go as Python has it.
    """
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], filename: str, *about: Any, **more: Any) -> None:
            if not (issubclass(category, UserWarning) and Path(filename).is_relative_to(HERE)):
                return show(message, category, filename, *about, **more)
            line = str(message)
            if " no effect " in line:
                for option in OPTIONS:
                    line = line.replace(option, f"--{option.replace('_', '-')}")
            say(f"note: {line}", quiet)

        warnings.filterwarnings("always", category=UserWarning, module=rf"{PACKAGE}\.")
        warnings.showwarning = note
        yield


def say(line: str, quiet: bool = False) -> None:
    """A line for people beside what the command puts out; `quiet`: another process says it."""
    if not quiet:
        print(line, file=sys.stderr, flush=True)
