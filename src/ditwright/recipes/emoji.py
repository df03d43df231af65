"""Text to image on real drawings, without a download: the emoji of a font under their Unicode names."""

from __future__ import annotations

from dataclasses import replace

from ..experiment import TrainConfig
from .scenes import scenes


def emoji() -> TrainConfig:
    """The network of `scenes`, on 1,356 emoji of 32 x 32 pixels.

    Command: `ditwright demo emoji`, or `ditwright train emoji` and `ditwright sample runs/emoji --prompt "red apple"`.
    Cost: 29 min 25 s on two Xeon cores with AMX, a process on each, compiled (measured 2026-11-26, torch 2.13.0).
    On two AVX2 cores without bf16 a step takes 1.46 s (measured 2026-11-27), which would be 97 min.
    Result (measured): of all real emoji the one so named is nearest to 96.5% of samples; chance is 0.07%. That is
    memory of what was trained on; of eight prompts that no caption has, few are what they say (docs/scenes.md).
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
