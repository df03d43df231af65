"""Recipes: functions that return a whole TrainConfig. Their docstrings state command, cost and measured result."""

from __future__ import annotations

from collections.abc import Callable

from ..experiment import CodecTrainConfig, TrainConfig
from .digits import digits
from .emoji import emoji
from .imagenet import imagenet
from .photos import photos
from .photos_codec import photos_codec
from .scenes import layout, scenes, three

RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "digits": digits,
    "emoji": emoji,
    "imagenet": imagenet,
    "photos": photos,
    "scenes": scenes,
    "scenes-layout": layout,
    "scenes-3": three,
}
CODEC_RECIPES: dict[str, Callable[[], CodecTrainConfig]] = {"photos": photos_codec}
