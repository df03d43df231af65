"""FLUX.1 (Black Forest Labs 2024): their own layout, and diffusers' FluxTransformer2DModel.

Both number the blocks with lanes of their own and the parallel ones apart, and pack a latent's 2x2 patches channel
first, on the way out as on the way in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.config import ProcessConfig, SampleConfig
from ..errors import UserError
from ..model.config import DiTConfig, Stage
from ..model.presets import rope_of
from ..model.weights import State
from . import dit
from .family import Also, Family, Portable
from .folder import write_transformer
from .rules import Layout, Rule, Way, halves, joined, same, swapped
from .scheduler import DYNAMIC, read_flow, write_flow
from .source import Source, lists

ENCODERS = ("text_encoder", "text_encoder_2")
PATCH = (2, 2)  # by which latents are packed before the network


def unpacked(w: Tensor, layout: Layout) -> Tensor:
    """Rows of the last layer from (channel, row, column) to (row, column, channel)."""
    return w.unflatten(0, (-1, math.prod(layout.model.patch))).transpose(0, 1).flatten(0, 1)


def packed(w: Tensor, layout: Layout) -> Tensor:
    """The way back."""
    return w.unflatten(0, (math.prod(layout.model.patch), -1)).transpose(0, 1).flatten(0, 1)


def parts(layout: Layout) -> list[int]:
    """Rows of a parallel block's first matrix: queries, keys, values, MLP."""
    width = layout.model.width
    return [width, width, width, round(width * layout.model.mlp_ratio)]


pixels = Way(
    lambda theirs, layout: [unpacked(w, layout) for w in theirs.values()],
    lambda ours, layout: [packed(w, layout) for w in ours],
)
fused = Way(
    lambda theirs, layout: [torch.cat(list(theirs.values()))], lambda ours, layout: ours[0].split(parts(layout))
)

RULES = (
    Rule("img_in.{p}",                                   "patchify.proj.{p}",                        same),
    Rule("txt_in.{p}",                                   "text.mlp.{p}",                             same),
    Rule("time_in.in_layer.{p}",                         "time.mlp.0.{p}",                           same),
    Rule("time_in.out_layer.{p}",                        "time.mlp.2.{p}",                           same),
    Rule("vector_in.in_layer.{p}",                       "vectors.pooled.mlp.0.{p}",                 same),
    Rule("vector_in.out_layer.{p}",                      "vectors.pooled.mlp.2.{p}",                 same),
    Rule("guidance_in.in_layer.{p}",                     "vectors.guidance.mlp.0.{p}",               same),
    Rule("guidance_in.out_layer.{p}",                    "vectors.guidance.mlp.2.{p}",               same),
    Rule("double_blocks.{j}.img_mod.lin.{p}",
         ("blocks.{i}.attn.x.mod.lin.{p}", "blocks.{i}.mlp.x.mod.lin.{p}"),                          halves),
    Rule("double_blocks.{j}.img_attn.qkv.{p}",           "blocks.{i}.attn.x.qkv.{p}",                same),
    Rule("double_blocks.{j}.img_attn.norm.query_norm.scale", "blocks.{i}.attn.x.q_norm.weight",      same),
    Rule("double_blocks.{j}.img_attn.norm.key_norm.scale",   "blocks.{i}.attn.x.k_norm.weight",      same),
    Rule("double_blocks.{j}.img_attn.proj.{p}",          "blocks.{i}.attn.x.proj.{p}",               same),
    Rule("double_blocks.{j}.img_mlp.0.{p}",              "blocks.{i}.mlp.x.fc1.{p}",                 same),
    Rule("double_blocks.{j}.img_mlp.2.{p}",              "blocks.{i}.mlp.x.fc2.{p}",                 same),
    Rule("double_blocks.{j}.txt_mod.lin.{p}",
         ("blocks.{i}.attn.text.mod.lin.{p}", "blocks.{i}.mlp.text.mod.lin.{p}"),                    halves),
    Rule("double_blocks.{j}.txt_attn.qkv.{p}",           "blocks.{i}.attn.text.qkv.{p}",             same),
    Rule("double_blocks.{j}.txt_attn.norm.query_norm.scale", "blocks.{i}.attn.text.q_norm.weight",   same),
    Rule("double_blocks.{j}.txt_attn.norm.key_norm.scale",   "blocks.{i}.attn.text.k_norm.weight",   same),
    Rule("double_blocks.{j}.txt_attn.proj.{p}",          "blocks.{i}.attn.text.proj.{p}",            same),
    Rule("double_blocks.{j}.txt_mlp.0.{p}",              "blocks.{i}.mlp.text.fc1.{p}",              same),
    Rule("double_blocks.{j}.txt_mlp.2.{p}",              "blocks.{i}.mlp.text.fc2.{p}",              same),
    Rule("single_blocks.{j}.modulation.lin.{p}",         "blocks.{i}.both.mod.lin.{p}",              same),
    Rule("single_blocks.{j}.linear1.{p}",                "blocks.{i}.both.lin1.{p}",                 same),
    Rule("single_blocks.{j}.linear2.{p}",                "blocks.{i}.both.lin2.{p}",                 same),
    Rule("single_blocks.{j}.norm.query_norm.scale",      "blocks.{i}.both.q_norm.weight",            same),
    Rule("single_blocks.{j}.norm.key_norm.scale",        "blocks.{i}.both.k_norm.weight",            same),
    Rule("final_layer.adaLN_modulation.1.{p}",           "head.mod.lin.{p}",                         same),
    Rule("final_layer.linear.{p}",                       "head.proj.{p}",                            pixels),
)  # fmt: skip

OWN, ONE, TOLD = "transformer_blocks.{j}.", "single_transformer_blocks.{j}.", "time_text_embed."
STOCK_RULES = (
    Rule("x_embedder.{p}",                               "patchify.proj.{p}",                        same),
    Rule("context_embedder.{p}",                         "text.mlp.{p}",                             same),
    Rule(TOLD + "timestep_embedder.linear_1.{p}",        "time.mlp.0.{p}",                           same),
    Rule(TOLD + "timestep_embedder.linear_2.{p}",        "time.mlp.2.{p}",                           same),
    Rule(TOLD + "text_embedder.linear_1.{p}",            "vectors.pooled.mlp.0.{p}",                 same),
    Rule(TOLD + "text_embedder.linear_2.{p}",            "vectors.pooled.mlp.2.{p}",                 same),
    Rule(TOLD + "guidance_embedder.linear_1.{p}",        "vectors.guidance.mlp.0.{p}",               same),
    Rule(TOLD + "guidance_embedder.linear_2.{p}",        "vectors.guidance.mlp.2.{p}",               same),
    Rule(OWN + "norm1.linear.{p}",
         ("blocks.{i}.attn.x.mod.lin.{p}", "blocks.{i}.mlp.x.mod.lin.{p}"),                          halves),
    Rule((OWN + "attn.to_q.{p}", OWN + "attn.to_k.{p}", OWN + "attn.to_v.{p}"),
         "blocks.{i}.attn.x.qkv.{p}",                                                                joined),
    Rule(OWN + "attn.norm_q.weight",                     "blocks.{i}.attn.x.q_norm.weight",          same),
    Rule(OWN + "attn.norm_k.weight",                     "blocks.{i}.attn.x.k_norm.weight",          same),
    Rule(OWN + "attn.to_out.0.{p}",                      "blocks.{i}.attn.x.proj.{p}",               same),
    Rule(OWN + "ff.net.0.proj.{p}",                      "blocks.{i}.mlp.x.fc1.{p}",                 same),
    Rule(OWN + "ff.net.2.{p}",                           "blocks.{i}.mlp.x.fc2.{p}",                 same),
    Rule(OWN + "norm1_context.linear.{p}",
         ("blocks.{i}.attn.text.mod.lin.{p}", "blocks.{i}.mlp.text.mod.lin.{p}"),                    halves),
    Rule((OWN + "attn.add_q_proj.{p}", OWN + "attn.add_k_proj.{p}", OWN + "attn.add_v_proj.{p}"),
         "blocks.{i}.attn.text.qkv.{p}",                                                             joined),
    Rule(OWN + "attn.norm_added_q.weight",               "blocks.{i}.attn.text.q_norm.weight",       same),
    Rule(OWN + "attn.norm_added_k.weight",               "blocks.{i}.attn.text.k_norm.weight",       same),
    Rule(OWN + "attn.to_add_out.{p}",                    "blocks.{i}.attn.text.proj.{p}",            same),
    Rule(OWN + "ff_context.net.0.proj.{p}",              "blocks.{i}.mlp.text.fc1.{p}",              same),
    Rule(OWN + "ff_context.net.2.{p}",                   "blocks.{i}.mlp.text.fc2.{p}",              same),
    Rule(ONE + "norm.linear.{p}",                        "blocks.{i}.both.mod.lin.{p}",              same),
    Rule((ONE + "attn.to_q.{p}", ONE + "attn.to_k.{p}", ONE + "attn.to_v.{p}", ONE + "proj_mlp.{p}"),
         "blocks.{i}.both.lin1.{p}",                                                                 fused),
    Rule(ONE + "proj_out.{p}",                           "blocks.{i}.both.lin2.{p}",                 same),
    Rule(ONE + "attn.norm_q.weight",                     "blocks.{i}.both.q_norm.weight",            same),
    Rule(ONE + "attn.norm_k.weight",                     "blocks.{i}.both.k_norm.weight",            same),
    Rule("norm_out.linear.{p}",                          "head.mod.lin.{p}",                         swapped),
    Rule("proj_out.{p}",                                 "head.proj.{p}",                            pixels),
)  # fmt: skip


def model_of(source: Source, keys: Mapping[str, str], heads: int | None) -> DiTConfig:
    """The network of a checkpoint; `keys`: where its parts are, by the names that `layout` gives them."""
    width, packed_in = dit.shape(source, keys["image"], 2)
    told = source.said.get("transformer", {})
    head = dit.shape(source, keys["norm"], 1)[0]
    if width % head or (heads is not None and heads * head != width):
        raise UserError(f"this checkpoint has heads of {head} channels at width {width}; heads = {heads} is not it")
    if packed_in % math.prod(PATCH):
        raise UserError(f"FLUX packs latents by 2 x 2; this checkpoint takes {packed_in} channels, no multiple of 4")
    if not any(key.startswith(f"{keys['one']}.") for key in source.state):
        raise UserError(f"FLUX has blocks of two kinds; this checkpoint has no {keys['one']}")
    out = dit.shape(source, keys["out"], 1)[0]
    if out != packed_in:
        raise UserError(
            f"the last layer gives {out} channels and the first takes {packed_in}: "
            "a network that is told a picture beside the noisy one is not known here"
        )
    return DiTConfig(
        width=width,
        heads=width // head,
        stages=(
            Stage(dit.depth_of(source, keys["own"]), lanes="own"),
            Stage(dit.depth_of(source, keys["one"]), parallel=True),
        ),
        patch=PATCH,
        channels=packed_in // 4,
        out_channels=packed_in // 4,
        num_classes=0,
        context="stream",
        text_width=dit.shape(source, keys["text"], 2)[1],
        pooled_width=dit.shape(source, keys["pooled"], 2)[1],
        guidance=told.get("guidance_embeds", keys["guidance"] in source.state),
        sincos=(),
        rope=tuple(told.get("axes_dims_rope", rope_of(head))),
        qk_norm=True,
        mlp_ratio=dit.shape(source, keys["mlp"], 2)[0] / width,
    )


def layout(source: Source, heads: int | None = None) -> Layout:
    """The network of a file in their own layout. Every option is told by the keys, but for the axes of rotation."""
    keys = {
        "image": "img_in.weight",
        "text": "txt_in.weight",
        "pooled": "vector_in.in_layer.weight",
        "guidance": "guidance_in.in_layer.weight",
        "own": "double_blocks",
        "one": "single_blocks",
        "norm": "double_blocks.0.img_attn.norm.query_norm.scale",
        "mlp": "double_blocks.0.img_mlp.0.weight",
        "out": "final_layer.linear.bias",
    }
    return Layout(model_of(source, keys, heads))


def stock_layout(source: Source, heads: int | None = None) -> Layout:
    """The network of diffusers' weights."""
    keys = {
        "image": "x_embedder.weight",
        "text": "context_embedder.weight",
        "pooled": TOLD + "text_embedder.linear_1.weight",
        "guidance": TOLD + "guidance_embedder.linear_1.weight",
        "own": "transformer_blocks",
        "one": "single_transformer_blocks",
        "norm": "transformer_blocks.0.attn.norm_q.weight",
        "mlp": "transformer_blocks.0.ff.net.0.proj.weight",
        "out": "proj_out.bias",
    }
    return Layout(model_of(source, keys, heads))


PROCESS = ProcessConfig("linear", "velocity")


def about(source: Source, layout: Layout) -> dict[str, Any]:
    """Straight lines and their velocity; 50 steps shifted by the picture's size (dev), or 4 even ones (schnell).

    dev imitates guidance: the scale is a condition of the network ("guidance", 3.5 as released), and none is added.
    """
    model = layout.model
    steps, moving = (50, {"dynamic_shift": tuple(DYNAMIC.values())}) if model.guidance else (4, {})
    shift = read_flow(source.said.get("scheduler", {}), moving)
    guess = "axes_dims_rope" not in source.said.get("transformer", {}) and model.rope != rope_of(128)
    note = f"the checkpoint does not tell its axes of rotation; {model.rope} are taken, in FLUX.1's proportion"
    return {
        "process": PROCESS,
        "sample": SampleConfig("euler", steps, guidance_scale=3.5 if model.guidance else 1.0, **shift),
        "image_size": (1024, 1024) if model.channels == 16 else None,
        "codec": str(source.folder) if source.said.get("vae") else "",
        "text": {
            "kind": "flux",
            "source": str(source.folder) if all(lists(source, place) for place in ENCODERS) else "",
            "t5_length": 512 if model.guidance else 256,
        },
        "notes": (note,) if guess else (),
    }


def needs(model: DiTConfig) -> dict[str, tuple[Any, ...]]:
    """What their code has and does not ask a file for."""
    return {
        "process.path": ("linear",),
        "process.target": ("velocity",),
        "process.reversed_time": (False,),
        "process.span": (None,),
        "model.patch": (PATCH,),
        "model.out_channels": (model.channels,),
        "model.num_classes": (0,),
        "model.context": ("stream",),
        "model.text_vocab": (0,),
        "model.text_mlp": (False,),
        "model.sizes": (False,),
        "model.sincos": ((),),
        "model.rope": (rope_of(model.width // model.heads),),
        "model.qk_norm": (True,),
        "model.norm": ("layer",),
        "model.mlp": ("gelu",),
        "model.mlp_norm_eps": (1e-6,),
        "model.time_shift": (0,),
    }


def stock_needs(model: DiTConfig) -> dict[str, tuple[Any, ...]]:
    """Of diffusers: any axes of rotation, three as its pipelines give positions, and an MLP of four times the width."""
    fixed = round(model.width * model.mlp_ratio) == 4 * model.width
    axes = (model.rope,) if len(model.rope) == 3 else needs(model)["model.rope"]
    return needs(model) | {"model.rope": axes, "model.mlp_ratio": (model.mlp_ratio,) if fixed else (4.0,)}


def fits(portable: Portable, name: str) -> None:
    """UserError unless blocks with lanes of their own come first and parallel ones after them, and text is read."""
    model = portable.model
    kinds = [replace(stage, depth=1) for stage in model.stages]
    order = [kind for kind in (Stage(1, lanes="own"), Stage(1, parallel=True)) for _ in range(kinds.count(kind))]
    if kinds != order or len(set(kinds)) < 2:
        raise UserError(
            f"{name} has blocks of lanes=own, then of parallel=true, each of them adaln_zero and nothing else; "
            f"this network has {model}: train a network of such stages"
        )
    if not (model.text_width and model.pooled_width):
        raise UserError(f"{name} reads text and its pooled vector; train with model.text_width and model.pooled_width")


def written(portable: Portable) -> Layout:
    """All of it is in the configuration."""
    return Layout(portable.model)


def save(portable: Portable, theirs: State, path: Path, also: Also) -> list[str]:
    """diffusers' transformer/ and scheduler/."""
    model = portable.model
    own = sum(stage.depth for stage in model.stages if not stage.parallel)
    config = {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": 4 * model.channels,
        "out_channels": None,
        "num_layers": own,
        "num_single_layers": model.depth - own,
        "attention_head_dim": model.width // model.heads,
        "num_attention_heads": model.heads,
        "joint_attention_dim": model.text_width,
        "pooled_projection_dim": model.pooled_width,
        "guidance_embeds": model.guidance,
        "axes_dims_rope": model.rope,
    }
    return write_transformer(path, theirs, config, write_flow(portable.sample), also)


FLUX = Family(RULES, layout, about, needs, {}, written, dit.save, suffixes=(".pt", ".safetensors"), fits=fits)
FLUX_DIFFUSERS = Family(STOCK_RULES, stock_layout, about, stock_needs, {}, written, save, fits=fits)
