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
from .config import DiTConfig, Stage
from .unet import unet_macs


def tokens(config: NetConfig, space: Sequence[int]) -> int:
    """Tokens of one sample of the given spatial size (latent size, where there is a codec); of a U-Net, its places."""
    return math.prod(space if isinstance(config, UNetConfig) else patch_grid(space, config.patch))


def macs(config: NetConfig, space: Sequence[int], text: int = 0) -> dict[str, int]:
    """Multiply-adds of one forward pass of one sample, by part; `text`: tokens of it, where the network reads any."""
    return unet_macs(config, tuple(space)) if isinstance(config, UNetConfig) else dit_macs(config, space, text)


def dit_macs(config: DiTConfig, space: Sequence[int], text: int = 0) -> dict[str, int]:
    """Those of a transformer."""
    d, image = config.width, tokens(config, space)
    context = text if config.text_width else 1 + vectors(config)
    parts = dict.fromkeys(("patchify", "time", "text", "modulation", "attention", "cross", "mlp", "head"), 0)
    parts["patchify"] = image * math.prod(config.patch) * config.channels * d
    parts["time"] = (1 + config.guidance) * (FREQUENCIES * d + d * d)
    parts["time"] += config.sizes * (FREQUENCIES * d + 3 * (d // 3) ** 2)
    parts["text"] = text * (config.text_width * d + d * d * config.text_mlp) * (config.text_width > 0)
    if config.text_vocab:
        tower = 12 * text * config.text_width**2 + 2 * text * text * config.text_width
        parts["text"] += config.text_depth * tower
    parts["text"] += config.pooled_width * d + d * d * (config.pooled_width > 0)
    for stage in config.stages:
        for name, count in stage_macs(config, stage, image, context).items():
            parts[name] += stage.depth * count
    if config.stages[-1].mod == "adaln_single":
        parts["modulation"] += 6 * d * d  # once for all blocks
    parts["head"] = image * d * math.prod(config.patch) * config.out_channels
    parts["head"] += 2 * d * d * (config.stages[-1].mod in ("adaln", "adaln_zero"))
    return parts


def vectors(config: DiTConfig) -> int:
    """How many vectors the network is told beside the time."""
    return sum((config.num_classes > 0, config.pooled_width > 0, config.guidance, config.sizes))


def stage_macs(config: DiTConfig, stage: Stage, image: int, context: int) -> dict[str, int]:
    """Of one block of a stage; `image` and `context`: tokens of each."""
    d, hidden, square = config.width, round(config.width * config.mlp_ratio), config.width**2
    beside = context * (config.context == "stream")  # tokens in the stream with the image's
    length, changed = image + beside, image + beside * (not stage.read_only)  # read, and written to
    heard, scores = MODULATIONS[stage.mod].vectors, 2 * length * length * d
    if stage.parallel:
        attention, mlp = 4 * length * square + scores, 2 * length * d * hidden
        return {"modulation": heard * square, "attention": attention, "mlp": mlp}
    streams = 2 if config.context == "stream" else 1  # each is modulated by itself, from shared weights too
    parts = {"modulation": 2 * (streams - stage.read_only) * heard * square + 2 * square * stage.read_only}
    parts["attention"] = 3 * length * square + changed * square + scores
    parts["mlp"] = FEEDS[config.mlp].products * changed * d * hidden
    if stage.dual:
        parts["modulation"] += heard * square
        parts["attention"] += 4 * image * square + 2 * image * image * d
    if stage.cross:
        parts["modulation"] += heard * square * stage.cross_norm
        parts["cross"] = 2 * image * square + 2 * context * square + 2 * image * context * d
    return parts
