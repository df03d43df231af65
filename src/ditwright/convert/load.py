"""Foreign weights in, ours out: one call each."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.process import Denoiser, process_from
from ..errors import UserError, lookup
from ..model.dit import DiT
from ..model.weights import load_strictly
from . import numerics, pixart, rules, sd3
from .diffusers import DIFFUSERS
from .dit import DIT
from .family import Also, Family, Portable, check
from .flux import FLUX, FLUX_DIFFUSERS
from .folder import read_folder
from .lightningdit import LIGHTNINGDIT
from .sit import SIT
from .source import Source, read_file, source_of

FAMILIES: dict[str, Family] = {
    "dit": DIT,
    "sit": SIT,
    "lightningdit": LIGHTNINGDIT,
    "diffusers": DIFFUSERS,
    "flux": FLUX,
    "flux-diffusers": FLUX_DIFFUSERS,
    "pixart": pixart.PIXART,
    "pixart-diffusers": pixart.STOCK,
    "sd3": sd3.SD3,
    "sd3-diffusers": sd3.STOCK,
}
SIGNS = {  # start of a key -> whose it is; the first that is found
    "double_blocks.": "flux",
    "single_transformer_blocks.": "flux-diffusers",
    "t_block.": "pixart",
    "adaln_single.": "pixart-diffusers",
    "joint_blocks.": "sd3",
    "time_text_embed.": "sd3-diffusers",
}
LIGHTNING_ONLY = ("feat_rope.", ".mlp.w12.", ".norm1.weight", ".q_norm.weight")


def read(
    path_or_state_dict: str | Path | Mapping[str, Tensor], *, family: str | None = None, heads: int | None = None
) -> Portable:
    """A network of another project: weights under our names, and all that the file tells of its use.

    `path_or_state_dict`: a `.safetensors` or torch file (plain, or {"model", "ema", ...}: the EMA is taken), the
    folder of diffusers' pipeline or its transformer's, or a state dict. `family`: one of FAMILIES where neither keys
    nor file tell it. `heads`: needed where the width is none of the papers' and no config.json tells. UserError names
    the key that is unknown, missing or misshapen. Weights share memory with the state dict.
    """
    if isinstance(path_or_state_dict, Mapping):
        source = source_of(path_or_state_dict)
    else:
        path = Path(path_or_state_dict)
        source = read_folder(path) if path.is_dir() else read_file(path)
    house = lookup("family", family or detect(source), FAMILIES)
    layout = house.layout(source, heads)
    state = rules.read(source.state, house.rules, layout, source.called)
    told = house.about(source, layout)
    if source.beside:
        unread = f"beside the network the file holds {', '.join(source.beside)}, which is not read"
        told["notes"] = (*told.get("notes", ()), unread)
    return Portable(model=layout.model, state=state, **told)


def detect(source: Source) -> str:
    """The family of a checkpoint, by its keys and by what its file says. UserError where they do not tell."""
    keys, first = source.state, sorted(source.state)[:3]
    for sign, name in SIGNS.items():
        if any(key.startswith(sign) for key in keys):
            packed = "x_embedder.weight" in keys  # as FLUX takes its latents, also where it lacks parallel blocks
            return "flux-diffusers" if packed and name == "sd3-diffusers" else name
    if "pos_embed.proj.weight" in keys and any(key.startswith("transformer_blocks.") for key in keys):
        return "diffusers"
    if not {"x_embedder.proj.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight"} <= keys.keys():
        own = "; it is ditwright's own: Pipeline.from_pretrained reads it" if "patchify.proj.weight" in keys else ""
        raise UserError(f"this checkpoint is of no known family ({', '.join(FAMILIES)}): it starts with {first}{own}")
    if "transport" in source.said or any(sign in key for key in keys for sign in LIGHTNING_ONLY):
        return "lightningdit"
    if source.said.get("model") or source.said.get("path_type"):  # flags of train.py: SiT's have a path_type
        return "sit" if "path_type" in source.said else "dit"
    named = [name for name in ("dit", "sit") if name in source.name.lower()]
    if len(named) != 1:
        raise UserError("DiT and SiT checkpoints have the same keys: pass family='dit' or family='sit'")
    return named[0]


def load(
    path_or_state_dict: str | Path | Mapping[str, Tensor], *, family: str | None = None, heads: int | None = None
) -> Denoiser:
    """A denoiser from weights of another project, in eval mode and float32; arguments as of `read`.

    Warns of what of the file is not followed, or is a guess.
    """
    portable = read(path_or_state_dict, family=family, heads=heads)
    for note in portable.notes:
        warnings.warn(note, stacklevel=2)
    with torch.device("meta"):
        net = DiT(portable.model)
    load_strictly(net.to_empty(device="cpu"), portable.state)
    return Denoiser(net, process_from(portable.process)).eval()


def write(portable: Portable, path: str | Path, *, to: str, also: Also = lambda folder: None) -> list[str]:
    """Write a network as a family's own files, whole or not at all; returns notes for the person, a line each.

    `to`: one of FAMILIES: a file in the projects' own layouts (`.safetensors`, `.pt`, PixArt's `.pth`), a folder in
    diffusers' ("diffusers" and those that end so), to which `also(folder)` may add its vae/. UserError where the family
    has no such networks, or the place is taken.
    """
    house, path = lookup("family", to, FAMILIES), Path(path)
    check_place(path, to)
    check(portable, to, house)
    theirs = rules.write(portable.state, house.rules, house.written(portable))
    return numerics.note(portable, to, house.values) + house.save(portable, theirs, path, also)


def check_place(path: Path, to: str) -> None:
    """UserError where a family's weights cannot be written: something is there, or the name does not fit."""
    if (suffixes := lookup("family", to, FAMILIES).suffixes) and path.suffix not in suffixes:
        raise UserError(f"{to} is written to a {' or '.join(suffixes)} file; got {str(path)!r}")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{str(path)!r} exists already; choose another place")
