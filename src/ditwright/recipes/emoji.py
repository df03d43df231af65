"""Text to image on real drawings, without a download: the emoji of a font under their Unicode names."""

from __future__ import annotations

from dataclasses import replace

from ..experiment import TrainConfig
from .scenes import scenes


def emoji() -> TrainConfig:
    """The network of `scenes`, on 1,356 emoji of 32 x 32 pixels.

    Command: `ditwright demo emoji`, or `ditwright train emoji` and `ditwright sample runs/emoji --prompt "red apple"`.
    Needs Debian's fonts-noto-color-emoji, or the same font elsewhere (DITWRIGHT_EMOJI_FONT).
    """
    config = scenes()
    return replace(
        config,
        steps=1500,
        text=replace(config.text, length=24),
        data=replace(config.data, source="emoji"),
        log=replace(config.log, preview_every=500),
    )
