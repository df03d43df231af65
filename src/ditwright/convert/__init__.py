"""Weights from and for other projects: one engine (rules.py), a table per family."""

from .load import FAMILIES, load

__all__ = ["FAMILIES", "load"]
