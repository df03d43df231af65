"""How samples are drawn to be measured, which is not how they are drawn to be looked at. No torch here.

A checkpoint's own settings have the guidance that pleases; a Frechet distance is ruined by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..diffusion.config import SampleConfig

GUIDANCE = "guidance"  # in the name of every setting of it


@dataclass(frozen=True)
class Preset:
    """Settings of a set of samples, made from those of the checkpoint."""

    count: int  # samples
    config: Callable[[SampleConfig], SampleConfig]


def plain(own: SampleConfig) -> SampleConfig:
    """The checkpoint's sampler and steps, without guidance: what the network itself has learned."""
    free = SampleConfig()
    return replace(own, **{name: getattr(free, name) for name in SampleConfig.__dataclass_fields__ if GUIDANCE in name})


def dit_paper(own: SampleConfig) -> SampleConfig:
    """Peebles & Xie, Sec. 4 and Table 2: 250 DDPM steps, guidance 1.5, on three of the four channels."""
    return SampleConfig("ddpm", 250, guidance_scale=1.5, guidance_channels=3, batch_size=own.batch_size)


def dit_paper_unguided(own: SampleConfig) -> SampleConfig:
    """The same without guidance, as in their ablations and scaling figures."""
    return SampleConfig("ddpm", 250, batch_size=own.batch_size)


PRESETS = {
    "plain": Preset(10_000, plain),
    "dit-paper": Preset(50_000, dit_paper),
    "dit-paper-unguided": Preset(50_000, dit_paper_unguided),
}
