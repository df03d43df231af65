"""LightningDiT (hustvl/LightningDiT, Yao et al. 2025): DiT with rotary positions, gated MLPs, norms with weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..diffusion.config import SampleConfig
from ..errors import UserError
from ..model.config import DiTConfig
from ..nn.position import rope
from . import dit, sit
from .rules import Layout, Rule, Way, same, stored
from .source import Source


def angles(layout: Layout) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every channel of a head, (L, d) each; pairs of channels have the same."""
    places = torch.arange(layout.side) / layout.side * layout.side  # as they count: a last bit off 0, 1, 2 ...
    grid = torch.stack(torch.meshgrid(places, places, indexing="ij"), -1).flatten(0, 1)[None]
    cos, sin = rope(grid, layout.model.rope)
    return cos[0, 0].repeat_interleave(2, -1), sin[0, 0].repeat_interleave(2, -1)


def turns(index: int) -> Way:
    """The way of one of the two tables."""
    return stored(lambda layout: angles(layout)[index], "the rotation of a square grid", when=lambda m: bool(m.rope))


RULES = (
    *dit.RULES,
    Rule("feat_rope.freqs_cos",                    (),                                               turns(0)),
    Rule("feat_rope.freqs_sin",                    (),                                               turns(1)),
    Rule("blocks.{i}.norm1.weight",                "blocks.{i}.attn.x.mod.norm.weight",              same),
    Rule("blocks.{i}.norm2.weight",                "blocks.{i}.mlp.x.mod.norm.weight",               same),
    Rule("blocks.{i}.attn.q_norm.weight",          "blocks.{i}.attn.x.q_norm.weight",                same),
    Rule("blocks.{i}.attn.k_norm.weight",          "blocks.{i}.attn.x.k_norm.weight",                same),
    Rule("blocks.{i}.mlp.w12.{p}",                 "blocks.{i}.mlp.x.w12.{p}",                       same),
    Rule("blocks.{i}.mlp.w3.{p}",                  "blocks.{i}.mlp.x.w3.{p}",                        same),
    Rule("final_layer.norm_final.weight",          "head.mod.norm.weight",                           same),
)  # fmt: skip


def layout(source: Source, heads: int | None = None) -> Layout:
    """The network of a LightningDiT checkpoint: which of its options it has is told by the keys."""
    keys, table = source.state, source.state.get("feat_rope.freqs_cos")
    if "blocks.0.attn.q_norm.bias" in keys:
        raise UserError("this LightningDiT norms queries and keys by LayerNorm; only its RMSNorm is known here")
    gated = "blocks.0.mlp.w12.weight" in keys
    hidden = dit.shape(source, f"blocks.0.mlp.{'w12' if gated else 'fc1'}.weight", 2)[0] // (2 if gated else 1)
    width = dit.shape(source, "x_embedder.proj.weight", 4)[0]
    half = width // dit.heads_of(width, heads) // 2
    model = dit.model_of(
        source,
        heads,
        hidden=hidden,
        rope=(half, half) if table is not None else (),
        qk_norm="blocks.0.attn.q_norm.weight" in keys,
        norm="rms" if "blocks.0.norm1.weight" in keys else "layer",
        mlp="swiglu" if gated else "gelu",
    )
    regressed = dit.shape(source, "blocks.0.adaLN_modulation.1.bias", 1)[0]
    side = dit.side_of(keys.get("pos_embed")) or dit.side_of(table, axis=0)
    return replace(dit.single(Layout(model, side)), shiftless=regressed == 4 * width)


RELEASED = {"cfg_scale": 6.7, "cfg_interval_start": 0.125, "timestep_shift": 0.3}  # XL/1 of 800 epochs


def about(source: Source, layout: Layout) -> dict[str, Any]:
    """SiT's process; picture and sampling of the released models, whose latents are VA-VAE's (f16d32)."""
    channels, told = layout.model.channels, source.said
    factor = part(told, "vae").get("downsample_ratio", {4: 8}.get(channels, 16))
    sample = {**(RELEASED if channels != 4 else {}), **part(told, "sample")}
    shift, start = sample.get("timestep_shift", 0), sample.get("cfg_interval_start", 0)
    return {
        **dit.picture(source, layout, int(factor)),
        "process": sit.process(part(told, "transport")),
        "sample": SampleConfig(
            "euler",
            sample.get("num_sampling_steps", 250),
            guidance_interval=(0.0, 1.0 - start),
            shift=1 / shift if shift else 1.0,  # theirs counts from noise to data
            **dit.guidance(layout.model, sample.get("cfg_scale", 4.0)),
        ),
        "codec": "",
    }


def part(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A group of the configuration that its train.py stores."""
    group = told.get(name)
    return group if isinstance(group, Mapping) else {}


def needs(model: DiTConfig) -> dict[str, tuple[Any, ...]]:
    """What LightningDiT's inference.py samples."""
    half = model.width // model.heads // 2
    normed = (False, True) if model.norm == "rms" else (False,)
    return sit.REVERSED | dit.PLAIN | {"model.rope": ((half, half), ()), "model.qk_norm": normed}


LIGHTNINGDIT = replace(sit.SIT, rules=RULES, layout=layout, about=about, needs=needs, written=dit.written)
