"""What a forward pass costs, counted exactly from the configuration; of a U-Net by torch's own counter.

One multiply-add (MAC) is what the DiT paper calls a flop; a MAC is two floating-point operations.
Counted are matrix products: projections, attention scores and sums, embeddings. Norms, activations and the softmax
(under 1%) are not, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..nn.branch import FEEDS
from ..nn.embed import FREQUENCIES
from ..nn.modulation import MODULATIONS
from ..nn.tokens import patch_grid
from .baseline import NetConfig, UNetConfig
from .config import DiTConfig
from .unet import unet_macs


def tokens(config: NetConfig, space: Sequence[int]) -> int:
    """Tokens of one sample of the given spatial size (latent size, where there is a codec); of a U-Net, its places."""
    return math.prod(space if isinstance(config, UNetConfig) else patch_grid(space, config.patch))


def macs(config: NetConfig, space: Sequence[int]) -> dict[str, int]:
    """Multiply-adds of one forward pass of one sample, by part."""
    return unet_macs(config, tuple(space)) if isinstance(config, UNetConfig) else dit_macs(config, space)


def dit_macs(config: DiTConfig, space: Sequence[int]) -> dict[str, int]:
    """Those of a transformer."""
    d, image = config.width, tokens(config, space)
    condition = 1 + (config.num_classes > 0)  # tokens of the condition: time, label
    length = image + condition * (config.context == "stream")
    parts = dict.fromkeys(("patchify", "time", "modulation", "attention", "cross", "mlp", "head"), 0)
    parts["patchify"] = image * math.prod(config.patch) * config.channels * d
    parts["time"] = FREQUENCIES * d + d * d
    for stage in config.stages:
        branches = 3 if stage.cross else 2
        parts["modulation"] += stage.depth * branches * MODULATIONS[stage.mod].vectors * d * d
        parts["attention"] += stage.depth * (4 * length * d * d + 2 * length * length * d)
        parts["mlp"] += stage.depth * FEEDS[config.mlp].products * length * d * round(d * config.mlp_ratio)
        if stage.cross:
            parts["cross"] += stage.depth * (2 * image * d * d + 2 * condition * d * d + 2 * image * condition * d)
    parts["head"] = image * d * math.prod(config.patch) * config.out_channels
    parts["head"] += 2 * d * d * (config.stages[-1].mod != "plain")
    return parts
