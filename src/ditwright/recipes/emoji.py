"""Text to image on real drawings, without a download: the emoji of a font under their Unicode names."""

from __future__ import annotations

from dataclasses import replace

from ..experiment import TrainConfig
from .scenes import scenes


def emoji() -> TrainConfig:
    """The network of `scenes`, on 1,356 emoji of 32 x 32 pixels.

    Command: `ditwright demo emoji`, or `ditwright train emoji` and `ditwright sample runs/emoji --prompt "red apple"`.
    Cost: 21 min 12 s on one Xeon core with AMX, compiled (measured 2026-11-26, torch 2.13.0).
    Result (measured): kinds and colours are heard, single names hardly: of all real emoji the one so named is nearest
    to 1.4% of samples; chance is 0.07%. It is a start, and takes far more steps to be good.
    Needs Debian's fonts-noto-color-emoji, or the same font elsewhere (DITWRIGHT_EMOJI_FONT).
    """
    config = scenes()
    return replace(
        config,
        steps=4000,
        text=replace(config.text, length=24),
        sample=replace(config.sample, guidance_scale=2.5, guidance_interval=(0.0, 1.0)),  # as measured
        data=replace(config.data, source="emoji"),
        log=replace(config.log, preview_every=1000),
    )
