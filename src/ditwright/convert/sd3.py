"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): their own layout (mmditx), and diffusers' SD3Transformer2DModel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.config import ProcessConfig, SampleConfig
from ..errors import UserError
from ..model.config import DiTConfig, Positions, Stage
from ..model.weights import State
from . import dit
from .family import Also, Family, Portable
from .folder import write_transformer
from .rules import Layout, Rule, Way, halves, joined, kernel, same, swapped
from .scheduler import read_flow, write_flow
from .source import WITHIN, Source, lists

HEAD = 64  # channels, at every size
ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}

thirds = Way(  # attention, MLP, the image's own attention
    lambda theirs, layout: [third for w in theirs.values() for third in w.chunk(3)],
    lambda ours, layout: [torch.cat(list(ours))],
)


def last(way: Way) -> Way:
    """The same, in the block whose text is read only."""
    return replace(way, where=lambda stage: stage.read_only)


def modulation(image: str, text: str, alone: Way) -> tuple[Rule, ...]:
    """Rules of what the condition regresses; `alone`: of the last block's text, which has no gates and no MLP."""
    joint, mlp = "blocks.{i}.attn.joint.", "blocks.{i}.mlp."
    return (
        Rule(image, ("blocks.{i}.attn.x.mod.lin.{p}", mlp + "x.mod.lin.{p}"), halves),
        Rule(image, (joint + "x.mod.lin.{p}", mlp + "x.mod.lin.{p}", "blocks.{i}.attn.image.x.mod.lin.{p}"), thirds),
        Rule(text, ("blocks.{i}.attn.text.mod.lin.{p}", mlp + "text.mod.lin.{p}"), halves),
        Rule(text, (joint + "text.mod.lin.{p}", mlp + "text.mod.lin.{p}"), halves),
        Rule(text, "blocks.{i}.attn.text.mod.lin.{p}", last(alone)),
        Rule(text, joint + "text.mod.lin.{p}", last(alone)),
    )


def lane(theirs: str, *ours: str) -> tuple[Rule, ...]:
    """Rules of one stream's way through an attention, wherever a block has it."""
    return tuple(
        rule
        for name in ours
        for rule in (
            Rule(theirs + "qkv.{p}", f"blocks.{{i}}.attn.{name}.qkv.{{p}}", same),
            Rule(theirs + "proj.{p}", f"blocks.{{i}}.attn.{name}.proj.{{p}}", same),
            Rule(theirs + "ln_q.weight", f"blocks.{{i}}.attn.{name}.q_norm.weight", same),
            Rule(theirs + "ln_k.weight", f"blocks.{{i}}.attn.{name}.k_norm.weight", same),
        )
    )


def stock_lane(theirs: str, added: bool, *ours: str) -> tuple[Rule, ...]:
    """The same under diffusers' names; `added`: of the text."""
    qkv = ("add_q_proj.{p}", "add_k_proj.{p}", "add_v_proj.{p}") if added else ("to_q.{p}", "to_k.{p}", "to_v.{p}")
    norm = "norm_added" if added else "norm"
    return tuple(
        rule
        for name in ours
        for rule in (
            Rule(tuple(theirs + part for part in qkv), f"blocks.{{i}}.attn.{name}.qkv.{{p}}", joined),
            Rule(
                theirs + ("to_add_out.{p}" if added else "to_out.0.{p}"), f"blocks.{{i}}.attn.{name}.proj.{{p}}", same
            ),
            Rule(theirs + f"{norm}_q.weight", f"blocks.{{i}}.attn.{name}.q_norm.weight", same),
            Rule(theirs + f"{norm}_k.weight", f"blocks.{{i}}.attn.{name}.k_norm.weight", same),
        )
    )


X, TEXT = "joint_blocks.{i}.x_block.", "joint_blocks.{i}.context_block."
RULES = (
    Rule("pos_embed",                                (),                                             dit.positions),
    Rule("x_embedder.proj.weight",                   "patchify.proj.weight",                         kernel),
    Rule("x_embedder.proj.bias",                     "patchify.proj.bias",                           same),
    Rule("t_embedder.mlp.0.{p}",                     "time.mlp.0.{p}",                               same),
    Rule("t_embedder.mlp.2.{p}",                     "time.mlp.2.{p}",                               same),
    Rule("y_embedder.mlp.0.{p}",                     "vectors.pooled.mlp.0.{p}",                     same),
    Rule("y_embedder.mlp.2.{p}",                     "vectors.pooled.mlp.2.{p}",                     same),
    Rule("context_embedder.{p}",                     "text.mlp.{p}",                                 same),
    *lane(X + "attn.", "x", "joint.x"),
    *lane(X + "attn2.", "image.x"),
    *lane(TEXT + "attn.", "text", "joint.text"),
    *modulation(X + "adaLN_modulation.1.{p}", TEXT + "adaLN_modulation.1.{p}", same),
    Rule(X + "mlp.fc1.{p}",                          "blocks.{i}.mlp.x.fc1.{p}",                     same),
    Rule(X + "mlp.fc2.{p}",                          "blocks.{i}.mlp.x.fc2.{p}",                     same),
    Rule(TEXT + "mlp.fc1.{p}",                       "blocks.{i}.mlp.text.fc1.{p}",                  same),
    Rule(TEXT + "mlp.fc2.{p}",                       "blocks.{i}.mlp.text.fc2.{p}",                  same),
    Rule("final_layer.adaLN_modulation.1.{p}",       "head.mod.lin.{p}",                             same),
    Rule("final_layer.linear.{p}",                   "head.proj.{p}",                                same),
)  # fmt: skip

BLOCKS, TOLD = "transformer_blocks.{i}.", "time_text_embed."
STOCK_RULES = (
    Rule("pos_embed.pos_embed",                      (),                                             dit.positions),
    Rule("pos_embed.proj.weight",                    "patchify.proj.weight",                         kernel),
    Rule("pos_embed.proj.bias",                      "patchify.proj.bias",                           same),
    Rule(TOLD + "timestep_embedder.linear_1.{p}",    "time.mlp.0.{p}",                               same),
    Rule(TOLD + "timestep_embedder.linear_2.{p}",    "time.mlp.2.{p}",                               same),
    Rule(TOLD + "text_embedder.linear_1.{p}",        "vectors.pooled.mlp.0.{p}",                     same),
    Rule(TOLD + "text_embedder.linear_2.{p}",        "vectors.pooled.mlp.2.{p}",                     same),
    Rule("context_embedder.{p}",                     "text.mlp.{p}",                                 same),
    *stock_lane(BLOCKS + "attn.", False, "x", "joint.x"),
    *stock_lane(BLOCKS + "attn2.", False, "image.x"),
    *stock_lane(BLOCKS + "attn.", True, "text", "joint.text"),
    *modulation(BLOCKS + "norm1.linear.{p}", BLOCKS + "norm1_context.linear.{p}", swapped),
    Rule(BLOCKS + "ff.net.0.proj.{p}",               "blocks.{i}.mlp.x.fc1.{p}",                     same),
    Rule(BLOCKS + "ff.net.2.{p}",                    "blocks.{i}.mlp.x.fc2.{p}",                     same),
    Rule(BLOCKS + "ff_context.net.0.proj.{p}",       "blocks.{i}.mlp.text.fc1.{p}",                  same),
    Rule(BLOCKS + "ff_context.net.2.{p}",            "blocks.{i}.mlp.text.fc2.{p}",                  same),
    Rule("norm_out.linear.{p}",                      "head.mod.lin.{p}",                             swapped),
    Rule("proj_out.{p}",                             "head.proj.{p}",                                same),
)  # fmt: skip

KEYS = {  # where a network's shape is told
    "image": "x_embedder.proj.weight",
    "positions": "pos_embed",
    "text": "context_embedder.weight",
    "pooled": "y_embedder.mlp.0.weight",
    "blocks": "joint_blocks",
    "dual": X + "attn2.",
    "norm": "joint_blocks.0.x_block.attn.ln_",
    "mlp": "joint_blocks.0.x_block.mlp.fc1.weight",
    "out": "final_layer.linear.bias",
}
STOCK_KEYS = {
    "image": "pos_embed.proj.weight",
    "positions": "pos_embed.pos_embed",
    "text": "context_embedder.weight",
    "pooled": TOLD + "text_embedder.linear_1.weight",
    "blocks": "transformer_blocks",
    "dual": BLOCKS + "attn2.",
    "norm": "transformer_blocks.0.attn.norm_",
    "mlp": "transformer_blocks.0.ff.net.0.proj.weight",
    "out": "proj_out.bias",
}


def stages_of(dual: list[bool]) -> tuple[Stage, ...]:
    """The blocks of a network, equal ones in a stage; `dual`: whether the image attends to itself too, by block."""
    end = len(dual) - 1
    blocks = [Stage(1, lanes="own", read_only=i == end, dual=two) for i, two in enumerate(dual)]
    return tuple(replace(block, depth=len(list(run))) for block, run in groupby(blocks))


def positions_of(table: Tensor) -> Positions:
    """The places of a stored table (1, L, D), whose first row tells the step and the origin, in any number format.

    As published (Esser et al. 2024, Sec. 5.3.2), or as diffusers computes them for a new network: from 0 on.
    """
    largest, share = math.isqrt(table.shape[1]), table.shape[2] // 4  # frequencies of an axis
    if largest < 2 or share < 1:
        return Positions(largest=largest)
    row = table[0, :largest].double()
    waves = torch.complex(row[:, share : 2 * share], row[:, :share])  # (largest, share), the fastest first
    step = (waves[1:, 0] * waves[:-1, 0].conj()).angle().mean().item()
    if step <= 0:
        return Positions(largest=largest)
    start = 0.0
    for j in reversed(range(share)):  # every channel is finer than the one before, and known up to whole turns
        wavelength = 2 * math.pi * 10_000 ** (j / share)
        here = waves[0, j].angle().item() / (2 * math.pi) * wavelength
        start = here + wavelength * round((start - here) / wavelength)
    base, origin = round(step * largest), round(-2 * start / step) / 2
    if abs(step * largest - base) > 0.1:
        return Positions(step, largest=largest, origin=origin)
    return Positions(base / largest, largest=largest, origin=origin) if origin else Positions(1.0, base, largest)


def cells(positions: Positions) -> int:
    """Along a side of the pictures that a table is for: the first of them is at 0."""
    return positions.base or round(positions.largest - 2 * positions.origin)


def layout_of(source: Source, keys: Mapping[str, str], heads: int | None) -> Layout:
    """The network of a checkpoint: every option is told by the keys, but for heads, which are of 64 channels."""
    width, channels, *patch = dit.shape(source, keys["image"], 4)
    dit.shape(source, keys["positions"], 3)
    if heads is None and width % HEAD:
        raise UserError(f"heads of SD3 have {HEAD} channels, of which width {width} is no multiple: pass heads=")
    depth = dit.depth_of(source, keys["blocks"])
    out = dit.shape(source, keys["out"], 1)[0]
    if out != channels * math.prod(patch):
        raise UserError(
            f"the last layer gives {out} values for each patch; the input has {channels * math.prod(patch)}"
        )
    starts = [keys["dual"].format(i=i) for i in range(depth)]
    positions = positions_of(source.state[keys["positions"]])
    model = DiTConfig(
        width=width,
        heads=width // HEAD if heads is None else heads,
        stages=stages_of([any(key.startswith(start) for key in source.state) for start in starts]),
        patch=tuple(patch),
        channels=channels,
        out_channels=channels,
        num_classes=0,
        context="stream",
        text_width=dit.shape(source, keys["text"], 2)[1],
        pooled_width=dit.shape(source, keys["pooled"], 2)[1],
        positions=positions,
        qk_norm=any(key.startswith(keys["norm"]) for key in source.state),
        mlp_ratio=dit.shape(source, keys["mlp"], 2)[0] / width,
    )
    return Layout(model, positions.largest)


def layout(source: Source, heads: int | None = None) -> Layout:
    """The network of a file in their own layout."""
    return layout_of(source, KEYS, heads)


def stock_layout(source: Source, heads: int | None = None) -> Layout:
    """The network of diffusers' weights."""
    told = source.said.get("transformer", {})
    if told.get("qk_norm") not in (None, "rms_norm"):
        raise UserError(f"this SD3 has qk_norm = {told['qk_norm']!r}; only 'rms_norm' or none is known here")
    return layout_of(source, STOCK_KEYS, told.get("num_attention_heads") if heads is None else heads)


def about(source: Source, layout: Layout) -> dict[str, Any]:
    """Straight lines and their velocity; 40 Euler steps at guidance 4.5, their times and shift 3, as released."""
    model, said = layout.model, source.said
    shift = read_flow(said.get("scheduler", {}), {"shift": 3.0})
    side = cells(model.positions) * model.patch[0] * 8
    return {
        "process": ProcessConfig("linear", "velocity"),
        "sample": SampleConfig("euler", 40, guidance_scale=4.5, timestep_spacing="linspace", **shift),
        "image_size": (side, side),
        "codec": str(source.folder) if said.get("vae") else "",
        "text": text_of(source),
    }


def text_of(source: Source) -> dict[str, Any]:
    """The three text encoders, where the folder is a pipeline's; those that it leaves out are dropped."""
    absent = tuple(part for part, place in ENCODERS.items() if not lists(source, place))
    if len(absent) == len(ENCODERS):
        return {"kind": "sd3"}
    return {"kind": "sd3", "source": str(source.folder), "drop": absent}


def stock_needs(model: DiTConfig) -> dict[str, tuple[Any, ...]]:
    """What their code has and does not ask a file for."""
    return {
        "process.path": ("linear",),
        "process.target": ("velocity",),
        "process.reversed_time": (False,),
        "process.span": (None,),
        "model.patch": (model.patch[:1] * 2,),
        "model.out_channels": (model.channels,),
        "model.num_classes": (0,),
        "model.context": ("stream",),
        "model.text_width": (model.text_width or 4096,),
        "model.text_vocab": (0,),
        "model.text_mlp": (False,),
        "model.pooled_width": (model.pooled_width or 2048,),
        "model.guidance": (False,),
        "model.sizes": (False,),
        "model.sincos": ((1, 0),),
        "model.rope": ((),),
        "model.norm": ("layer",),
        "model.mlp": ("gelu",),
        "model.mlp_ratio": (4.0,),
        "model.mlp_norm_eps": (1e-6,),
        "model.time_shift": (0,),
    }


def needs(model: DiTConfig) -> dict[str, tuple[Any, ...]]:
    """Their own code takes heads of 64 channels, and as many blocks as heads."""
    return stock_needs(model) | {"model.heads": (model.depth,), "model.width": (HEAD * model.depth,)}


def fits(portable: Portable, name: str) -> None:
    """UserError unless a network has SD3's blocks and positions."""
    model = portable.model
    blocks = [replace(stage, depth=1) for stage in model.stages for _ in range(stage.depth)]
    if tuple(blocks) != tuple(
        replace(stage, depth=1) for stage in stages_of([block.dual for block in blocks]) for _ in range(stage.depth)
    ):
        raise UserError(
            f"{name} has blocks of adaln_zero with lanes of their own, read_only the last; train such stages"
        )
    if min(cells(model.positions), model.positions.largest) < 1:
        raise UserError(f"{name} has a table of positions (model.positions.largest); this network has none")


def written(portable: Portable) -> Layout:
    """What their code loads."""
    return Layout(portable.model, portable.model.positions.largest)


def save(portable: Portable, theirs: State, path: Path, also: Also) -> list[str]:
    """As DiT's, under the prefix of files that may hold more than the network."""
    return dit.save(portable, {WITHIN + key: tensor for key, tensor in theirs.items()}, path, also)


def stock_save(portable: Portable, theirs: State, path: Path, also: Also) -> list[str]:
    """A folder whose transformer/ StableDiffusion3Pipeline takes."""
    model = portable.model
    duals = [stage.dual for stage in model.stages for _ in range(stage.depth)]
    config = {
        "_class_name": "SD3Transformer2DModel",
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "in_channels": model.channels,
        "out_channels": model.out_channels,
        "num_layers": model.depth,
        "joint_attention_dim": model.text_width,
        "caption_projection_dim": model.width,
        "pooled_projection_dim": model.pooled_width,
        "patch_size": model.patch[0],
        "sample_size": cells(model.positions) * model.patch[0],
        "pos_embed_max_size": model.positions.largest,
        "dual_attention_layers": [i for i, dual in enumerate(duals) if dual],
        "qk_norm": "rms_norm" if model.qk_norm else None,
    }
    return write_transformer(path, theirs, config, write_flow(portable.sample), also)


SD3 = Family(RULES, layout, about, needs, {}, written, save, (".pt", ".safetensors"), fits)
STOCK = Family(STOCK_RULES, stock_layout, about, stock_needs, {}, written, stock_save, fits=fits)
