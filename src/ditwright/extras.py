"""Optional packages: the only place where an optional import may fail, and how to bear with them; the hub's names."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import UserError


def at_revision(name: str) -> tuple[str, str]:
    """`OWNER/NAME@REVISION` of a hub as that name and its branch, tag or commit, "" where none is told or of a path."""
    found = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)@(\w[\w./-]*)", name)
    return (found[1], found[2]) if found and not Path(name).exists() else (name, "")


def need(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra of ditwright brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is there, but something that it needs is broken: not ours to hide
        raise UserError(
            f"the package {module.split('.')[0]!r} is not installed; run: pip install 'ditwright[{extra}]'"
        ) from error


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """transformers lists weights that are left unread, and draws bars."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """What an error of another package says, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
