"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable

from .base import Dataset
from .digits import digits

SOURCES: dict[str, Callable[[], Dataset]] = {"digits": digits}
