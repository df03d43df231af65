"""Optional packages: the only place where an optional import may fail."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import UserError


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
