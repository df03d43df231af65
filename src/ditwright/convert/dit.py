"""The original DiT layout (facebookresearch/DiT)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.config import ProcessConfig, SampleConfig
from ..errors import UserError
from ..files import whole_file
from ..model.config import DiTConfig, Stage
from ..model.presets import LIGHTNING, SIZES
from ..model.weights import State, write_safetensors
from ..nn.position import placed, sincos
from ..nn.tokens import grid_positions
from .family import Also, Family, Portable, square
from .rules import Layout, Rule, first_half, halves, kernel, same, stored
from .source import Source


def sincos_table(layout: Layout) -> Tensor:
    """(1, L, D)"""
    grid, model = (layout.side, layout.side), layout.model
    return sincos(placed(grid_positions(grid), grid, **vars(model.positions)), model.width, model.sincos)


positions = stored(sincos_table, "the sin-cos table of a square grid", when=lambda model: bool(model.sincos))

RULES = (
    Rule("pos_embed",                              (),                                               positions),
    Rule("x_embedder.proj.weight",                 "patchify.proj.weight",                           kernel),
    Rule("x_embedder.proj.bias",                   "patchify.proj.bias",                             same),
    Rule("t_embedder.mlp.0.{p}",                   "time.mlp.0.{p}",                                 same),
    Rule("t_embedder.mlp.2.{p}",                   "time.mlp.2.{p}",                                 same),
    Rule("y_embedder.embedding_table.weight",      "vectors.label.table.weight",                     same),
    Rule("blocks.{i}.attn.qkv.{p}",                "blocks.{i}.attn.x.qkv.{p}",                      same),
    Rule("blocks.{i}.attn.proj.{p}",               "blocks.{i}.attn.x.proj.{p}",                     same),
    Rule("blocks.{i}.mlp.fc1.{p}",                 "blocks.{i}.mlp.x.fc1.{p}",                       same),
    Rule("blocks.{i}.mlp.fc2.{p}",                 "blocks.{i}.mlp.x.fc2.{p}",                       same),
    Rule("blocks.{i}.adaLN_modulation.1.{p}",
         ("blocks.{i}.attn.x.mod.lin.{p}", "blocks.{i}.mlp.x.mod.lin.{p}"),                          halves),
    Rule("final_layer.linear.{p}",                 "head.proj.{p}",                                  first_half),
    Rule("final_layer.adaLN_modulation.1.{p}",     "head.mod.lin.{p}",                               same),
)  # fmt: skip


def shape(source: Source, key: str, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that tells what the network is."""
    if key not in source.state:
        raise UserError(f"the checkpoint lacks the key {key!r}; it starts with {sorted(source.state)[:3]}")
    if source.state[key].ndim != axes:
        name, got = source.called.get(key, key), tuple(source.state[key].shape)
        raise UserError(f"the checkpoint's tensor {name!r} must have {axes} axes; it has shape {got}")
    return tuple(source.state[key].shape)


def heads_of(width: int, heads: int | None) -> int:
    """The number of heads, which no weight tells: as given, or the papers' of that width."""
    known = {w: h for _, w, h in SIZES.values()} | {w: h for _, w, h, _ in LIGHTNING.values()}
    if heads is None and width not in known:
        raise UserError(
            f"a checkpoint does not say how many heads it has; width {width} is not the paper's: pass heads="
        )
    return known[width] if heads is None else heads


def depth_of(source: Source, blocks: str = "blocks") -> int:
    """How many blocks there are. UserError where their numbers have gaps."""
    parts = [key.split(".") for key in source.state if key.startswith(f"{blocks}.")]
    numbers = {int(part[1]) for part in parts if part[1].isdecimal()}
    if numbers != set(range(len(numbers))) or not numbers:
        raise UserError(f"the checkpoint's blocks are not numbered 0, 1, 2 ...: {sorted(numbers)[:5]}")
    return len(numbers)


def outputs_of(source: Source, key: str, channels: int, patch: Sequence[int]) -> int:
    """Channels that the last layer gives. UserError unless they are the input's, once or twice."""
    outputs = shape(source, key, 1)[0] / math.prod(patch)
    if outputs not in (channels, 2 * channels):
        raise UserError(
            f"the last layer gives {outputs:g} channels; the input has {channels}: "
            "expected as many, or twice as many where the variance is learned"
        )
    return int(outputs)


def side_of(table: Tensor | None, axis: int = 1) -> int:
    """The side of the square grid that a stored table is for; 0 where there is none."""
    return 0 if table is None or table.ndim <= axis else math.isqrt(table.shape[axis])


def model_of(source: Source, heads: int | None, *, hidden: int, **options: Any) -> DiTConfig:
    """The network that tensors in this layout belong to; `hidden` of its MLP."""
    width, channels, *patch = shape(source, "x_embedder.proj.weight", 4)
    rows = shape(source, "y_embedder.embedding_table.weight", 2)[0]
    if source.said.get("num_classes") == rows:
        raise UserError(f"this checkpoint has {rows} classes and no null class: it was trained without dropping labels")
    return DiTConfig(
        width=width,
        heads=heads_of(width, heads),
        stages=(Stage(depth_of(source)),),
        patch=tuple(patch),
        channels=channels,
        out_channels=outputs_of(source, "final_layer.linear.bias", channels, patch),
        num_classes=rows - 1,
        mlp_ratio=hidden / width,
        **options,
    )


def layout(source: Source, heads: int | None = None) -> Layout:
    """The network of a DiT checkpoint."""
    hidden = shape(source, "blocks.0.mlp.fc1.weight", 2)[0]
    return Layout(model_of(source, heads, hidden=hidden), side_of(source.state.get("pos_embed")))


def single(layout: Layout) -> Layout:
    """The layout whose last layer gives what is used; SiT's `learn_sigma` adds as much again, which nothing reads."""
    model = layout.model
    doubled = model.out_channels == 2 * model.channels
    return replace(layout, model=replace(model, out_channels=model.channels), doubled=doubled)


def picture(source: Source, layout: Layout, factor: int = 8) -> dict[str, Any]:
    """Picture size and autoencoder of a network on Stable Diffusion's latents, as train.py has them."""
    side = layout.side * layout.model.patch[0] * factor
    codec = f"stabilityai/sd-vae-ft-{'mse' if source.said.get('vae') == 'mse' else 'ema'}"
    return {
        "image_size": (side, side) if side else None,
        "codec": codec if layout.model.channels == 4 else "",
        "factor": factor,
    }


def guidance(model: DiTConfig, scale: float) -> dict[str, Any]:
    """Guidance of the first three channels, as the originals' sample.py has it."""
    return {"guidance_scale": scale, "guidance_channels": 3 if model.channels > 3 else None}


def about(source: Source, layout: Layout) -> dict[str, Any]:
    """DDPM's 1000 linear steps, the noise predicted, the variance where there are channels for it."""
    model = layout.model
    return {
        "process": ProcessConfig("ddpm", "noise", learned_var=model.out_channels == 2 * model.channels),
        "sample": SampleConfig("ddpm", num_inference_steps=250, **guidance(model, 4.0)),
        **picture(source, layout),
    }


PLAIN = {
    "model.context": ("none",),
    "model.sincos": ((1, 0),),
    "model.positions.scale": (1.0,),
    "model.positions.base": (0,),
    "model.positions.largest": (0,),
    "model.positions.origin": (0.0,),
    "model.pooled_width": (0,),
    "model.guidance": (False,),
    "model.sizes": (False,),
}
NEEDS = PLAIN | {
    "model.rope": ((),),
    "model.qk_norm": (False,),
    "model.norm": ("layer",),
    "model.mlp": ("gelu",),
}


def needs(model: DiTConfig) -> dict[str, tuple[Any, ...]]:
    """What DiT's sample.py samples."""
    ddpm = {"process.path": ("ddpm",), "process.target": ("noise",), "process.steps": (1000,)}
    return ddpm | {"process.span": (None,)} | NEEDS


def written(portable: Portable) -> Layout:
    """What DiT's code loads."""
    return Layout(portable.model, square(portable, "the original layout") // portable.model.patch[0])


def save(portable: Portable, theirs: State, path: Path, also: Also) -> list[str]:
    """A plain state dict, as published: `.safetensors`, or `.pt` that holds nothing but tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as half:
        if path.suffix == ".safetensors":
            write_safetensors(half, theirs)
        else:
            torch.save({key: alone(tensor) for key, tensor in theirs.items()}, half)
    return []


def alone(tensor: Tensor) -> Tensor:
    """A tensor that shares its memory with no other."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


VALUES = {"time_shift": 0, "mlp_norm_eps": 1e-6}

DIT = Family(RULES, layout, about, needs, VALUES, written, save, suffixes=(".pt", ".safetensors"))
