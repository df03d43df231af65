"""diffusers' DiTTransformer2DModel: other frequencies, another epsilon, the embedders copied into every block."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..model.config import DiTConfig, Stage
from ..model.weights import State
from . import dit
from .family import Also, Family, Portable, square
from .folder import ARCHITECTURE, CLASSES, write_folder
from .rules import Layout, Rule, copies, halves, joined, kernel, same
from .scheduler import TABLES, TARGETS, read_scheduler, write_scheduler
from .source import Source

NULL = 1000  # the null class of stock DiTPipeline, whatever the network has
EMB = "transformer_blocks.{i}.norm1.emb"
positions = replace(dit.positions, written=False)

RULES = (
    Rule("pos_embed.pos_embed",                              (),                              positions),
    Rule("pos_embed.proj.weight",                            "patchify.proj.weight",          kernel),
    Rule("pos_embed.proj.bias",                              "patchify.proj.bias",            same),
    Rule(EMB + ".timestep_embedder.linear_1.{p}",            "time.mlp.0.{p}",                copies),
    Rule(EMB + ".timestep_embedder.linear_2.{p}",            "time.mlp.2.{p}",                copies),
    Rule(EMB + ".class_embedder.embedding_table.weight",     "vectors.label.table.weight",    copies),
    Rule("transformer_blocks.{i}.norm1.linear.{p}",
         ("blocks.{i}.attn.x.mod.lin.{p}", "blocks.{i}.mlp.x.mod.lin.{p}"),                   halves),
    Rule(("transformer_blocks.{i}.attn1.to_q.{p}",
          "transformer_blocks.{i}.attn1.to_k.{p}",
          "transformer_blocks.{i}.attn1.to_v.{p}"),          "blocks.{i}.attn.x.qkv.{p}",     joined),
    Rule("transformer_blocks.{i}.attn1.to_out.0.{p}",        "blocks.{i}.attn.x.proj.{p}",    same),
    Rule("transformer_blocks.{i}.ff.net.0.proj.{p}",         "blocks.{i}.mlp.x.fc1.{p}",      same),
    Rule("transformer_blocks.{i}.ff.net.2.{p}",              "blocks.{i}.mlp.x.fc2.{p}",      same),
    Rule("proj_out_1.{p}",                                   "head.mod.lin.{p}",              same),
    Rule("proj_out_2.{p}",                                   "head.proj.{p}",                 same),
)  # fmt: skip


def layout(source: Source, heads: int | None = None) -> Layout:
    """The network of a checkpoint, with diffusers' two numerical differences as values of its configuration.

    A third shows only at sizes other than the trained one: diffusers squeezes positions into the trained range, ours
    go on counting.
    """
    told = source.said.get("transformer", {})
    width, channels, *patch = dit.shape(source, "pos_embed.proj.weight", 4)
    model = DiTConfig(
        width=width,
        heads=dit.heads_of(width, told.get("num_attention_heads") if heads is None else heads),
        stages=(Stage(dit.depth_of(source, "transformer_blocks")),),
        patch=tuple(patch),
        channels=channels,
        out_channels=dit.outputs_of(source, "proj_out_2.bias", channels, patch),
        num_classes=dit.shape(source, EMB.format(i=0) + ".class_embedder.embedding_table.weight", 2)[0] - 1,
        mlp_ratio=dit.shape(source, "transformer_blocks.0.ff.net.0.proj.weight", 2)[0] / width,
        mlp_norm_eps=told.get("norm_eps", 1e-5),
        time_shift=1,
    )
    return Layout(model, dit.side_of(source.state.get("pos_embed.pos_embed")))


def about(source: Source, layout: Layout) -> dict[str, Any]:
    """Process and sampling of a pipeline's scheduler, its picture size, class names and autoencoder."""
    model, said = layout.model, source.said
    process, sample, notes = read_scheduler(said.get("scheduler", {}), f"{str(source.folder)!r} (scheduler)")
    blocks = said.get("vae", {}).get("block_out_channels")
    factor = 2 ** (len(blocks) - 1) if blocks else 8
    side = said.get("transformer", {}).get("sample_size", layout.side * model.patch[0]) * factor
    names = said.get("index", {}).get("id2label") or {}
    told = tuple(names.get(str(i)) for i in range(len(names)))
    if None in told or len(told) > model.num_classes:
        told, notes = (), [*notes, "the names in id2label do not count 0, 1, 2 ...; classes go by number"]
    return {
        "process": replace(process, learned_var=model.out_channels == 2 * model.channels),
        "sample": sample,
        "image_size": (side, side) if side else None,
        "class_names": told,
        "codec": str(source.folder) if said.get("vae") else "",
        "factor": factor,
        "notes": tuple(notes),
    }


def needs(model: DiTConfig) -> dict[str, tuple[Any, ...]]:
    """What DiTPipeline samples: DDIM over a table; an MLP of four times the width."""
    process = {"process.path": tuple(TABLES), "process.target": tuple(TARGETS.values()), "process.span": (None,)}
    fixed = round(model.width * model.mlp_ratio) == 4 * model.width
    return process | dit.NEEDS | {"model.mlp_ratio": (model.mlp_ratio,) if fixed else (4.0,)}


def written(portable: Portable) -> Layout:
    """What DiTTransformer2DModel loads."""
    return Layout(portable.model)


def save(portable: Portable, theirs: State, path: Path, also: Also) -> list[str]:
    """A DiTPipeline folder; without an autoencoder, one whose transformer/ alone can be loaded."""
    model = portable.model
    config = ARCHITECTURE | {
        "_class_name": CLASSES[0],
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "in_channels": model.channels,
        "out_channels": model.out_channels,
        "num_layers": model.depth,
        "num_embeds_ada_norm": model.num_classes,
        "norm_eps": model.mlp_norm_eps,
        "patch_size": model.patch[0],
        "sample_size": square(portable, "diffusers"),
    }
    scheduler = write_scheduler(portable.process, portable.sample)
    return write_folder(path, theirs, config, scheduler, portable.class_names, also) + notes(portable)


def pad_classes(portable: Portable) -> Portable:
    """The same network with its null class where stock DiTPipeline looks for it; the classes before it are copies."""
    name, classes = "vectors.label.table.weight", portable.model.num_classes
    if classes > NULL:
        raise UserError(f"stock DiTPipeline takes class {NULL} for the null class; this network has {classes} classes")
    table = portable.state[name]  # (classes + 1, D)
    padded = torch.cat((table, table[-1:].expand(NULL - classes, -1)))
    model = replace(portable.model, num_classes=NULL)
    return replace(portable, model=model, state=portable.state | {name: padded})


def notes(portable: Portable) -> list[str]:
    """What stock DiTPipeline does in its own way, whatever the folder says."""
    classes, sample = portable.model.num_classes, portable.sample
    told = []
    if classes != NULL:
        told += [
            f"stock DiTPipeline takes class {NULL} for the null class and this network has {classes} classes: it can "
            "be called there with guidance_scale=1 only (pad_classes moves the null class)"
        ]
    spacing = "leading" if sample.timestep_spacing == "auto" else sample.timestep_spacing
    theirs: dict[str, Any] = {"sampler": "ddim", "timestep_spacing": spacing, "guidance_channels": None}
    if sample.clip is not None:
        theirs["use_clipped_model_output"] = False
    if other := [f"{key}={value}" for key, value in theirs.items() if getattr(sample, key) != value]:
        told += [f"stock DiTPipeline samples with {', '.join(other)}; with that here too the pictures are the same"]
    return told


DIFFUSERS = Family(RULES, layout, about, needs, {"time_shift": 1}, written, save)
