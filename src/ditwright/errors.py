"""What a person did wrong, in one line: what came, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The command line prints it as one line and leaves with exit code 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing when no known name is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is in no table: `raise unknown("sampler", "dpm", SAMPLERS)`."""
    known = sorted(known)
    return UserError(f"unknown {kind} {name!r}; known: {', '.join(known)}{did_you_mean(str(name), known)}")


def lookup(kind: str, name: str, table: dict):
    """`table[name]`, or the error that lists what the table holds."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]
