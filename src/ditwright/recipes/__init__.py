"""Recipes: functions that return a whole TrainConfig. Their docstrings state command, cost and measured result."""

from __future__ import annotations

from collections.abc import Callable

from ..experiment import TrainConfig
from .digits import digits

RECIPES: dict[str, Callable[[], TrainConfig]] = {"digits": digits}
