"""The original DiT layout (facebookresearch/DiT)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..diffusion.config import ProcessConfig
from ..errors import UserError
from ..model.config import DiTConfig, Stage
from ..model.presets import SIZES
from ..nn.position import sincos
from ..nn.tokens import grid_positions
from .rules import Family, Rule, State


def halves(tensor: Tensor) -> tuple[Tensor, ...]:
    """One regression of six vectors -> three for attention, three for the MLP; both orders are shift, scale, gate."""
    return tensor.chunk(2)


RULES: list[Rule] = [
    (r"pos_embed",                             None,                                                        None),
    (r"x_embedder\.proj\.weight",              r"patchify.proj.weight",                      lambda w: w.flatten(1)),
    (r"x_embedder\.proj\.bias",                r"patchify.proj.bias",                                        None),
    (r"t_embedder\.mlp\.([02])\.(weight|bias)", r"time.mlp.\1.\2",                                           None),
    (r"y_embedder\.embedding_table\.weight",   r"vectors.label.table.weight",                                None),
    (r"blocks\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)",  r"blocks.\1.attn.x.\2.\3",                          None),
    (r"blocks\.(\d+)\.mlp\.(fc[12])\.(weight|bias)",     r"blocks.\1.mlp.x.\2.\3",                           None),
    (r"blocks\.(\d+)\.adaLN_modulation\.1\.(weight|bias)",
     (r"blocks.\1.attn.x.mod.lin.\2", r"blocks.\1.mlp.x.mod.lin.\2"),                                      halves),
    (r"final_layer\.linear\.(weight|bias)",    r"head.proj.\1",                                              None),
    (r"final_layer\.adaLN_modulation\.1\.(weight|bias)", r"head.mod.lin.\1",                                 None),
]  # fmt: skip


def process(config: DiTConfig) -> ProcessConfig:
    """DDPM's 1000 linear steps, the noise predicted, the variance where there are channels for it."""
    return ProcessConfig("ddpm", "noise", learned_var=config.out_channels == 2 * config.channels)


def heads_of(width: int, heads: int | None) -> int:
    """The number of heads, which no weight tells: as given, or the paper's of that width."""
    known = {w: h for _, w, h in SIZES.values()}
    if heads is None and width not in known:
        raise UserError(
            f"a checkpoint does not say how many heads it has; width {width} is not the paper's: pass heads="
        )
    return known[width] if heads is None else heads


def infer(state: State, heads: int | None = None) -> DiTConfig:
    """The network that a state dict belongs to. The number of heads is not in the weights: the paper's, or `heads`."""

    def shape(key: str) -> torch.Size:
        if key not in state:
            raise UserError(f"a DiT checkpoint needs the key {key!r}; this one starts with {sorted(state)[:3]}")
        return state[key].shape

    if len(shape("x_embedder.proj.weight")) != 4 or len(shape("y_embedder.embedding_table.weight")) != 2:
        raise UserError("'x_embedder.proj.weight' must have 4 axes and 'y_embedder.embedding_table.weight' 2")
    if len(shape("final_layer.linear.bias")) != 1 or len(shape("blocks.0.mlp.fc1.weight")) != 2:
        raise UserError("'final_layer.linear.bias' must have 1 axis and 'blocks.0.mlp.fc1.weight' 2")
    width, channels, *patch = shape("x_embedder.proj.weight")
    numbers = {int(key.split(".")[1]) for key in state if key.startswith("blocks.") and key.split(".")[1].isdecimal()}
    if numbers != set(range(len(numbers))) or not numbers:
        raise UserError(f"the checkpoint's blocks are not numbered 0, 1, 2 ...: {sorted(numbers)[:5]}")
    return DiTConfig(
        width=width,
        heads=heads_of(width, heads),
        stages=(Stage(len(numbers)),),
        patch=tuple(patch),
        channels=channels,
        out_channels=shape("final_layer.linear.bias")[0] // math.prod(patch),
        num_classes=shape("y_embedder.embedding_table.weight")[0] - 1,
        mlp_ratio=shape("blocks.0.mlp.fc1.weight")[0] / width,
    )


def expected(config: DiTConfig) -> list[str]:
    """Every key that a checkpoint of this layout must have."""
    parts = ["x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2"]
    branches = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
    parts += [f"blocks.{i}.{branch}" for i in range(config.depth) for branch in branches]
    parts += ["final_layer.linear", "final_layer.adaLN_modulation.1"]
    return ["y_embedder.embedding_table.weight", *(f"{part}.{end}" for part in parts for end in ("weight", "bias"))]


def check_table(key: str) -> Callable[[State, DiTConfig], None]:
    """The stored table of positions is dropped, because it is computed; but only if it is the one that we compute."""

    def check(state: State, config: DiTConfig) -> None:
        if (stored := state.get(key)) is None:
            return
        side = math.isqrt(stored.shape[1]) if stored.ndim == 3 else 0
        ours = sincos(grid_positions((side, side)), config.width, config.sincos)
        tolerance = max(1e-4, torch.finfo(stored.dtype).eps)
        if ours.shape != stored.shape or (ours - stored.float()).abs().max() > tolerance:
            raise UserError(f"{key!r} is not the sin-cos table of a square grid; this checkpoint is of another family")

    return check


DIT = Family(RULES, infer, expected, check_table("pos_embed"), process)
