"""PixArt-alpha and -sigma (Chen et al. 2023, 2024): their own layout, and diffusers' PixArtTransformer2DModel."""

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
from ..files import whole_file
from ..model.config import DiTConfig, Positions, Stage
from ..model.weights import State
from . import dit
from .bins import SIDES
from .family import Also, Family, Portable
from .folder import write_transformer
from .rules import Layout, Rule, Way, halves, joined, kernel, same
from .scheduler import TABLES, TARGETS, read_scheduler, write_scheduler
from .source import Source, lists

BLOCK = Stage(1, "adaln_single", cross=True, cross_norm=False)
SCALES = (2.0, 1.0, 0.5, 0.25)  # of positions, for pictures of 256, 512, 1024 and 2048 pixels
NULL = "y_embedder.y_embedding"

beside = Way(lambda theirs, layout: [], lambda ours, layout: [], needed=False, written=False)  # Portable.null
paired = Way(  # keys and values
    lambda theirs, layout: [torch.cat(list(theirs.values()))], lambda ours, layout: ours[0].chunk(2)
)
unwritten = replace(dit.positions, written=False)

RULES = (
    Rule("pos_embed",                                (),                                             dit.positions),
    Rule(NULL,                                       (),                                             beside),
    Rule("x_embedder.proj.weight",                   "patchify.proj.weight",                         kernel),
    Rule("x_embedder.proj.bias",                     "patchify.proj.bias",                           same),
    Rule("t_embedder.mlp.0.{p}",                     "time.mlp.0.{p}",                               same),
    Rule("t_embedder.mlp.2.{p}",                     "time.mlp.2.{p}",                               same),
    Rule("csize_embedder.mlp.0.{p}",                 "vectors.size.side.mlp.0.{p}",                  same),
    Rule("csize_embedder.mlp.2.{p}",                 "vectors.size.side.mlp.2.{p}",                  same),
    Rule("ar_embedder.mlp.0.{p}",                    "vectors.size.ratio.mlp.0.{p}",                 same),
    Rule("ar_embedder.mlp.2.{p}",                    "vectors.size.ratio.mlp.2.{p}",                 same),
    Rule("t_block.1.{p}",                            "shared.lin.{p}",                               same),
    Rule("y_embedder.y_proj.fc1.{p}",                "text.mlp.0.{p}",                               same),
    Rule("y_embedder.y_proj.fc2.{p}",                "text.mlp.2.{p}",                               same),
    Rule("blocks.{i}.scale_shift_table",
         ("blocks.{i}.attn.x.mod.table", "blocks.{i}.mlp.x.mod.table"),                              halves),
    Rule("blocks.{i}.attn.qkv.{p}",                  "blocks.{i}.attn.x.qkv.{p}",                    same),
    Rule("blocks.{i}.attn.proj.{p}",                 "blocks.{i}.attn.x.proj.{p}",                   same),
    Rule("blocks.{i}.cross_attn.q_linear.{p}",       "blocks.{i}.cross.q.{p}",                       same),
    Rule("blocks.{i}.cross_attn.kv_linear.{p}",      "blocks.{i}.cross.kv.{p}",                      same),
    Rule("blocks.{i}.cross_attn.proj.{p}",           "blocks.{i}.cross.proj.{p}",                    same),
    Rule("blocks.{i}.mlp.fc1.{p}",                   "blocks.{i}.mlp.x.fc1.{p}",                     same),
    Rule("blocks.{i}.mlp.fc2.{p}",                   "blocks.{i}.mlp.x.fc2.{p}",                     same),
    Rule("final_layer.scale_shift_table",            "head.mod.table",                               same),
    Rule("final_layer.linear.{p}",                   "head.proj.{p}",                                same),
)  # fmt: skip

BLOCKS, EMB = "transformer_blocks.{i}.", "adaln_single.emb."
STOCK_RULES = (
    Rule("pos_embed.pos_embed",                      (),                                             unwritten),
    Rule("pos_embed.proj.weight",                    "patchify.proj.weight",                         kernel),
    Rule("pos_embed.proj.bias",                      "patchify.proj.bias",                           same),
    Rule(EMB + "timestep_embedder.linear_1.{p}",     "time.mlp.0.{p}",                               same),
    Rule(EMB + "timestep_embedder.linear_2.{p}",     "time.mlp.2.{p}",                               same),
    Rule(EMB + "resolution_embedder.linear_1.{p}",   "vectors.size.side.mlp.0.{p}",                  same),
    Rule(EMB + "resolution_embedder.linear_2.{p}",   "vectors.size.side.mlp.2.{p}",                  same),
    Rule(EMB + "aspect_ratio_embedder.linear_1.{p}", "vectors.size.ratio.mlp.0.{p}",                 same),
    Rule(EMB + "aspect_ratio_embedder.linear_2.{p}", "vectors.size.ratio.mlp.2.{p}",                 same),
    Rule("adaln_single.linear.{p}",                  "shared.lin.{p}",                               same),
    Rule("caption_projection.linear_1.{p}",          "text.mlp.0.{p}",                               same),
    Rule("caption_projection.linear_2.{p}",          "text.mlp.2.{p}",                               same),
    Rule(BLOCKS + "scale_shift_table",
         ("blocks.{i}.attn.x.mod.table", "blocks.{i}.mlp.x.mod.table"),                              halves),
    Rule((BLOCKS + "attn1.to_q.{p}", BLOCKS + "attn1.to_k.{p}", BLOCKS + "attn1.to_v.{p}"),
         "blocks.{i}.attn.x.qkv.{p}",                                                                joined),
    Rule(BLOCKS + "attn1.to_out.0.{p}",              "blocks.{i}.attn.x.proj.{p}",                   same),
    Rule(BLOCKS + "attn2.to_q.{p}",                  "blocks.{i}.cross.q.{p}",                       same),
    Rule((BLOCKS + "attn2.to_k.{p}", BLOCKS + "attn2.to_v.{p}"),
         "blocks.{i}.cross.kv.{p}",                                                                  paired),
    Rule(BLOCKS + "attn2.to_out.0.{p}",              "blocks.{i}.cross.proj.{p}",                    same),
    Rule(BLOCKS + "ff.net.0.proj.{p}",               "blocks.{i}.mlp.x.fc1.{p}",                     same),
    Rule(BLOCKS + "ff.net.2.{p}",                    "blocks.{i}.mlp.x.fc2.{p}",                     same),
    Rule("scale_shift_table",                        "head.mod.table",                               same),
    Rule("proj_out.{p}",                             "head.proj.{p}",                                same),
)  # fmt: skip

KEYS = {  # where a network's shape is told
    "image": "x_embedder.proj.weight",
    "text": "y_embedder.y_proj.fc1.weight",
    "sizes": "csize_embedder.",
    "blocks": "blocks",
    "mlp": "blocks.0.mlp.fc1.weight",
    "out": "final_layer.linear.bias",
}
STOCK_KEYS = {
    "image": "pos_embed.proj.weight",
    "text": "caption_projection.linear_1.weight",
    "sizes": EMB + "resolution_embedder.",
    "blocks": "transformer_blocks",
    "mlp": "transformer_blocks.0.ff.net.0.proj.weight",
    "out": "proj_out.bias",
}


def has_sizes(source: Source, keys: Mapping[str, str]) -> bool:
    """Whether the network is told the picture's size."""
    return any(key.startswith(keys["sizes"]) for key in source.state)


def model_of(source: Source, keys: Mapping[str, str], heads: int | None, positions: Positions) -> DiTConfig:
    """The network of a checkpoint; `keys`: where its parts are."""
    width, channels, *patch = dit.shape(source, keys["image"], 4)
    return DiTConfig(
        width=width,
        heads=dit.heads_of(width, heads),
        stages=(replace(BLOCK, depth=dit.depth_of(source, keys["blocks"])),),
        patch=tuple(patch),
        channels=channels,
        out_channels=dit.outputs_of(source, keys["out"], channels, patch),
        num_classes=0,
        context="cross",
        text_width=dit.shape(source, keys["text"], 2)[1],
        text_mlp=True,
        sizes=has_sizes(source, keys),
        positions=positions,
        mlp_ratio=dit.shape(source, keys["mlp"], 2)[0] / width,
    )


def scale_of(table: Tensor, side: int) -> float:
    """The known scale of positions that a stored table (1, L, D) is nearest to, by its first row's first channel."""
    places, row = torch.arange(side), table[0, :side, 0].float()
    return min(SCALES, key=lambda scale: (row - (scale * places).sin()).square().sum().item())


def layout(source: Source, heads: int | None = None) -> Layout:
    """The network of a file in their own layout; the stored table tells the size that it is for."""
    side = math.isqrt(dit.shape(source, "pos_embed", 3)[1])
    positions = Positions(scale_of(source.state["pos_embed"], side), base=side)
    return Layout(model_of(source, KEYS, heads, positions), side)


def stock_layout(source: Source, heads: int | None = None) -> Layout:
    """The network of diffusers' weights; config.json tells the size, or that the network is told it (1024 pixels)."""
    told = source.said.get("transformer", {})
    if not told and not has_sizes(source, STOCK_KEYS):
        raise UserError("these weights do not tell the size that they are for: read the folder with its config.json")
    latent = told.get("sample_size", 128)
    side = latent // dit.shape(source, STOCK_KEYS["image"], 4)[2]
    scale = 1 / (told.get("interpolation_scale") or max(latent // 64, 1))
    heads = told.get("num_attention_heads") if heads is None else heads
    return Layout(model_of(source, STOCK_KEYS, heads, Positions(scale, base=side)), side)


def about(source: Source, layout: Layout) -> dict[str, Any]:
    """DDPM's linear table, the noise predicted, the variance learned; 20 steps of DPM-Solver++ as released."""
    model, said = layout.model, source.said
    process, notes = ProcessConfig("ddpm", "noise"), list[str]()
    sample = SampleConfig("dpmpp_2m", timestep_spacing="linspace")
    if said.get("scheduler"):
        process, sample, notes = read_scheduler(said["scheduler"], f"{str(source.folder)!r} (scheduler)")
    levels = said.get("vae", {}).get("block_out_channels")
    factor = 2 ** (len(levels) - 1) if levels else 8
    side = layout.side * model.patch[0] * factor
    return {
        "process": replace(process, learned_var=model.out_channels == 2 * model.channels),
        "sample": replace(sample, num_inference_steps=20, guidance_scale=4.5, use_resolution_binning=side in SIDES),
        "image_size": (side, side),
        "codec": str(source.folder) if said.get("vae") else "",
        "text": {
            "kind": "t5",
            "source": str(source.folder) if lists(source, "text_encoder") else "",
            "length": tokens_of(source),
            "lower": True,
        },
        "factor": factor,
        "null": {"text": source.state[NULL]} if NULL in source.state else {},
        "notes": tuple(notes),
    }


def tokens_of(source: Source) -> int:
    """How long a caption is: 300 tokens in sigma, 120 in alpha, which is also what files are that do not tell."""
    if NULL in source.state:
        return len(source.state[NULL])
    return 300 if "Sigma" in source.said.get("index", {}).get("_class_name", "") else 120


def needs(model: DiTConfig) -> dict[str, tuple[Any, ...]]:
    """What PixArt's own scripts sample."""
    return {
        "process.path": ("ddpm",),
        "process.target": ("noise",),
        "process.steps": (1000,),
        "process.span": (None,),
        "model.patch": (model.patch[:1] * 2,),
        "model.num_classes": (0,),
        "model.context": ("cross",),
        "model.text_width": (model.text_width or 4096,),
        "model.text_vocab": (0,),
        "model.text_mlp": (True,),
        "model.pooled_width": (0,),
        "model.guidance": (False,),
        "model.sincos": ((1, 0),),
        "model.positions.largest": (0,),
        "model.positions.origin": (0.0,),
        "model.rope": ((),),
        "model.qk_norm": (False,),
        "model.norm": ("layer",),
        "model.mlp": ("gelu",),
        "model.mlp_ratio": (4.0,),
        "model.mlp_norm_eps": (1e-6,),
        "model.time_shift": (0,),
    }


def stock_needs(model: DiTConfig) -> dict[str, tuple[Any, ...]]:
    """What diffusers' pipelines sample: any of its tables and predictions."""
    ours = needs(model) | {"process.path": tuple(TABLES), "process.target": tuple(TARGETS.values())}
    return {key: values for key, values in ours.items() if key != "process.steps"}


def fits(portable: Portable, name: str) -> None:
    """UserError unless a network has PixArt's blocks and a size that its positions are for."""
    model = portable.model
    if any(replace(stage, depth=1) != BLOCK for stage in model.stages):
        raise UserError(f"{name} has blocks of adaln_single with an unnormed cross-attention only; train such stages")
    if model.positions.base < 1:
        raise UserError(f"{name} stretches positions to a trained size; this network has none (model.positions.base)")


def written(portable: Portable) -> Layout:
    """What their code loads."""
    return Layout(portable.model, portable.model.positions.base)


def save(portable: Portable, theirs: State, path: Path, also: Also) -> list[str]:
    """`.pth` as published, under "state_dict", or `.safetensors`; with the null caption where it is known."""
    null = portable.null.get("text")
    theirs = theirs if null is None else theirs | {NULL: null}
    told = [f"no null caption is known: the file lacks {NULL}, which PixArt's own guidance reads"]
    told = told if null is None else []
    if path.suffix == ".safetensors":
        return dit.save(portable, theirs, path, also) + told
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as half:
        torch.save({"state_dict": {key: dit.alone(tensor) for key, tensor in theirs.items()}}, half)
    return told


def scheduler_of(portable: Portable) -> dict[str, Any]:
    """The settings of a scheduler that steps as the network is sampled: DPM-Solver++ of two steps, or DDIM."""
    config = write_scheduler(portable.process, portable.sample)
    if portable.sample.sampler != "dpmpp_2m":
        return config
    solver = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "solver_order": 2}
    table = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "trained_betas", "prediction_type")
    return solver | {key: config[key] for key in table}


def stock_save(portable: Portable, theirs: State, path: Path, also: Also) -> list[str]:
    """A folder whose transformer/ the pipelines of PixArt-alpha and -sigma take."""
    model, positions = portable.model, portable.model.positions
    config = {
        "_class_name": "PixArtTransformer2DModel",
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "in_channels": model.channels,
        "out_channels": model.out_channels,
        "num_layers": model.depth,
        "cross_attention_dim": model.width,
        "caption_channels": model.text_width,
        "patch_size": model.patch[0],
        "sample_size": positions.base * model.patch[0],
        "interpolation_scale": int(1 / positions.scale) if (1 / positions.scale).is_integer() else 1 / positions.scale,
        "use_additional_conditions": model.sizes,
        "norm_type": "ada_norm_single",
        "norm_eps": 1e-6,
    }
    told = [f"diffusers has no place for the null caption ({NULL}): its pipelines take the states of an empty text"]
    return write_transformer(path, theirs, config, scheduler_of(portable), also) + (told if portable.null else [])


PIXART = Family(RULES, layout, about, needs, {}, written, save, (".pth", ".safetensors"), fits)
STOCK = Family(STOCK_RULES, stock_layout, about, stock_needs, {}, written, stock_save, fits=fits)
