"""Weights from and for other projects: one engine (rules.py), a table per family."""

from .diffusers import pad_classes
from .family import Portable
from .load import FAMILIES, check_place, load, read, write

__all__ = ["FAMILIES", "Portable", "check_place", "load", "pad_classes", "read", "write"]
