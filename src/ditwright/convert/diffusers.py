"""diffusers' DiTTransformer2DModel: other frequencies, another epsilon, the embedders copied into every block."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from ..errors import UserError
from ..model.config import DiTConfig, Stage
from .dit import check_table, halves, heads_of, process
from .rules import Family, Rule, State, read_state

EMB = r"transformer_blocks\.0\.norm1\.emb"
RULES: list[Rule] = [
    (r"pos_embed\.pos_embed",                               None,                                       None),
    (r"pos_embed\.proj\.weight",                            r"patchify.proj.weight",     lambda w: w.flatten(1)),
    (r"pos_embed\.proj\.bias",                              r"patchify.proj.bias",                      None),
    (EMB + r"\.timestep_embedder\.linear_1\.(weight|bias)", r"time.mlp.0.\1",                           None),
    (EMB + r"\.timestep_embedder\.linear_2\.(weight|bias)", r"time.mlp.2.\1",                           None),
    (EMB + r"\.class_embedder\.embedding_table\.weight",    r"vectors.label.table.weight",              None),
    (r"transformer_blocks\.[1-9]\d*\.norm1\.emb\..*",      None,                                       None),
    (r"transformer_blocks\.(\d+)\.norm1\.linear\.(weight|bias)",
     (r"blocks.\1.attn.x.mod.lin.\2", r"blocks.\1.mlp.x.mod.lin.\2"),                                  halves),
    (r"transformer_blocks\.(\d+)\.attn1\.to_qkv\.(weight|bias)",      r"blocks.\1.attn.x.qkv.\2",      None),
    (r"transformer_blocks\.(\d+)\.attn1\.to_out\.0\.(weight|bias)",   r"blocks.\1.attn.x.proj.\2",     None),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.(weight|bias)",   r"blocks.\1.mlp.x.fc1.\2",       None),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.(weight|bias)",         r"blocks.\1.mlp.x.fc2.\2",       None),
    (r"proj_out_1\.(weight|bias)",                          r"head.mod.lin.\1",                         None),
    (r"proj_out_2\.(weight|bias)",                          r"head.proj.\1",                            None),
]  # fmt: skip


def infer(state: State, heads: int | None = None) -> DiTConfig:
    """The network of a state dict, with diffusers' two numerical differences as values of its configuration.

    A third shows only at sizes other than the trained one: diffusers squeezes positions into the trained range, ours
    go on counting.
    """
    needed = ("pos_embed.proj.weight", "proj_out_2.bias", f"{block(0)}.ff.net.0.proj.weight", f"{emb(0)}.{TABLE}")
    for key, axes in zip(needed, (4, 1, 2, 2), strict=True):
        if key not in state or state[key].ndim != axes:
            raise UserError(
                f"diffusers' DiT needs the key {key!r} with {axes} axes; this one starts {sorted(state)[:3]}"
            )
    projection, out, hidden, table = (state[key].shape for key in needed)
    width, channels, *patch = projection
    depth = len({key.split(".")[1] for key in state if key.startswith("transformer_blocks.")})
    return DiTConfig(
        width=width,
        heads=heads_of(width, heads),
        stages=(Stage(depth),),
        patch=tuple(patch),
        channels=channels,
        out_channels=out[0] // math.prod(patch),
        num_classes=table[0] - 1,
        mlp_ratio=hidden[0] / width,
        mlp_norm_eps=1e-5,
        time_shift=1,
    )


TABLE = "class_embedder.embedding_table.weight"


def block(i: int) -> str:
    """The prefix of a block's keys."""
    return f"transformer_blocks.{i}"


def emb(i: int) -> str:
    """The embedders of the condition, of which every block has a copy."""
    return f"{block(i)}.norm1.emb"


def expected(config: DiTConfig) -> list[str]:
    """Every key that a checkpoint of this layout must have."""
    ends = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "norm1.linear", "ff.net.0.proj", "ff.net.2")
    ends += tuple(f"norm1.emb.timestep_embedder.linear_{n}" for n in (1, 2))
    parts = [
        "pos_embed.proj",
        "proj_out_1",
        "proj_out_2",
        *(f"{block(i)}.{e}" for i in range(config.depth) for e in ends),
    ]
    tables = [f"{emb(i)}.{TABLE}" for i in range(config.depth)]
    return [*tables, *(f"{part}.{end}" for part in parts for end in ("weight", "bias"))]


def join(state: State, config: DiTConfig) -> tuple[State, DiTConfig]:
    """Queries, keys and values in one projection; copies of the embedders checked to be copies."""
    joined = dict(state)
    for i in range(config.depth):
        for end in ("weight", "bias"):
            parts = [joined.pop(f"{block(i)}.attn1.to_{name}.{end}") for name in "qkv"]
            if any(part.shape[0] != config.width or part.shape[1:] not in ((), (config.width,)) for part in parts):
                raise UserError(f"'{block(i)}.attn1.to_q, to_k, to_v.{end}' are not square in the width {config.width}")
            joined[f"{block(i)}.attn1.to_qkv.{end}"] = torch.cat(parts)
    for key in [key for key in state if key.startswith(emb(0))]:
        for i in range(1, config.depth):
            if not torch.equal(state[key], state[key.replace(emb(0), emb(i))]):
                raise UserError(f"{key.replace(emb(0), emb(i))!r} differs from block 0's: embedders must be the same")
    return joined, config


def read(path: Path) -> tuple[State, int | None]:
    """A transformer's folder, a DiTPipeline's, or a bare file; the number of heads where config.json tells it."""
    if not path.is_dir():
        return read_state(path), None
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{str(folder / 'config.json')!r} is missing or damaged ({error})") from error
    if config.get("_class_name") != "DiTTransformer2DModel" or "num_attention_heads" not in config:
        raise UserError(f"{str(folder)!r} holds a {config.get('_class_name')!r}, not a DiTTransformer2DModel")
    agree(config, ARCHITECTURE, folder)
    if (scheduler := path / "scheduler" / "scheduler_config.json").is_file():
        agree(json.loads(scheduler.read_text()), SCHEDULE, scheduler)
    return read_state(folder / "diffusion_pytorch_model.safetensors"), config["num_attention_heads"]


ARCHITECTURE = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "norm_eps": 1e-5,
    "norm_elementwise_affine": False,
    "attention_bias": True,
}
SCHEDULE = {
    "prediction_type": "epsilon",
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
    "trained_betas": None,
}


def agree(config: dict, ours: dict, where: Path) -> None:
    """UserError for a setting that would make the network or its process another one than we load."""
    for key, value in ours.items():
        if config.get(key, value) != value:
            raise UserError(f"{str(where)!r} has {key} = {config[key]!r}; only {value!r} is known here")


DIFFUSERS = Family(RULES, infer, expected, check_table("pos_embed.pos_embed"), process, read=read, prepare=join)
