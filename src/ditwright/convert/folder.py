"""Folders of diffusers: a DiTPipeline's, or a transformer's alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import whole_folder
from ..model.weights import State, write_safetensors
from .family import Also
from .source import Source, lists, read_file, read_json

WEIGHTS = "diffusion_pytorch_model"
VERSION = "0.35.0"  # the oldest that these folders are for
CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")  # the second: published before there was the first
ARCHITECTURE = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
    "attention_bias": True,
}
NETWORKS: dict[str, Mapping[str, Any]] = {  # class -> what is known of it alone
    **dict.fromkeys(CLASSES, ARCHITECTURE),
    "FluxTransformer2DModel": {"patch_size": 1},
    "PixArtTransformer2DModel": ARCHITECTURE | {"norm_type": "ada_norm_single", "norm_eps": 1e-6},
    "SD3Transformer2DModel": {},
}
PARTS = {"transformer": "config.json", "scheduler": "scheduler_config.json", "vae": "config.json"}


def read_folder(path: Path) -> Source:
    """The transformer of a folder, and what its JSON files say. UserError for a part that is missing."""
    index = read_json(path / "model_index.json") if (path / "model_index.json").is_file() else {}
    for part, file in PARTS.items():
        if lists(Source({}, said={"index": index}), part) and not (path / part / file).is_file():
            raise UserError(
                f"{str(path)!r} lacks {part}/{file}, which its model_index.json lists: the copy is not whole"
            )
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    if not (folder / "config.json").is_file():
        raise UserError(f"{str(path)!r} is no folder of diffusers: {folder.name}/config.json is missing")
    said = {"index": index, "transformer": read_json(folder / "config.json")}
    check_class(said["transformer"], folder)
    for part in ("scheduler", "vae"):
        if folder != path and (path / part / PARTS[part]).is_file():
            said[part] = read_json(path / part / PARTS[part])
    return replace(read_file(weights_of(folder)), said=said, folder=path)


def check_class(config: Mapping[str, Any], folder: Path) -> None:
    """UserError for a network that is none of those known."""
    name = config.get("_class_name")
    if name not in NETWORKS or "num_attention_heads" not in config:
        known = " or ".join(name for name in NETWORKS if name != CLASSES[1])
        raise UserError(f"{str(folder)!r} holds a {name!r}, not a {known}")
    if name == CLASSES[1] and config.get("norm_type") == "ada_norm_single":
        name = "PixArtTransformer2DModel"  # as published before there was the class
    for key, value in NETWORKS[name].items():
        if config.get(key, value) != value:
            raise UserError(f"{str(folder)!r} has {key} = {config[key]!r}; only {value!r} is known here")


def weights_of(folder: Path) -> Path:
    """The file of a folder's weights, or the index of its shards; whole precision before a variant's."""
    for name in (f"{WEIGHTS}.safetensors", f"{WEIGHTS}.safetensors.index.json", f"{WEIGHTS}.bin"):
        if (folder / name).is_file():
            return folder / name
    variants = [
        f for f in folder.glob(f"{WEIGHTS}.*") if "-of-" not in f.name and f.suffix in (".safetensors", ".json")
    ]
    variants += folder.glob(f"{WEIGHTS}.bin.index.json")
    if len(set(variants)) != 1:
        found = ", ".join(sorted(f.name for f in folder.iterdir())) or "nothing"
        raise UserError(f"{str(folder)!r} lacks {WEIGHTS}.safetensors; it holds {found}")
    return variants[0]


def write_folder(
    path: Path,
    weights: State,
    transformer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    class_names: Sequence[str],
    also: Also,
) -> list[str]:
    """A DiTPipeline folder, whole or not at all; `also` may add a vae/ folder to it."""
    version = {"_diffusers_version": VERSION}
    index: dict[str, Any] = {
        "_class_name": "DiTPipeline",
        **version,
        "transformer": ["diffusers", transformer["_class_name"]],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    if class_names:
        index["id2label"] = {str(i): name for i, name in enumerate(class_names)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(path) as folder:
        write_parts(folder, weights, transformer, scheduler)
        also(folder)
        vae = folder / "vae" / "config.json"
        if vae.is_file():
            index["vae"] = ["diffusers", read_json(vae)["_class_name"]]
        write_json(folder / "model_index.json", index)
    return notes(read_json(path / "vae" / "config.json") if "vae" in index else {})


def write_parts(folder: Path, weights: State, transformer: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
    """What a pipeline has beside text encoders and autoencoder."""
    version = {"_diffusers_version": VERSION}
    for part in ("transformer", "scheduler"):
        (folder / part).mkdir()
    write_safetensors(folder / "transformer" / f"{WEIGHTS}.safetensors", weights, metadata={"format": "pt"})
    write_json(folder / "transformer" / "config.json", {**transformer, **version})
    write_json(folder / "scheduler" / "scheduler_config.json", {**scheduler, **version})


def write_transformer(
    path: Path, weights: State, transformer: Mapping[str, Any], scheduler: Mapping[str, Any], also: Also
) -> list[str]:
    """A text-to-image network and its scheduler, whole or not at all; a pipeline lacks its text encoders there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(path) as folder:
        write_parts(folder, weights, transformer, scheduler)
        also(folder)
    return ["there are no text encoders: give stock diffusers this transformer/ in place of a whole pipeline's"]


def notes(vae: Mapping[str, Any]) -> list[str]:
    """What DiTPipeline cannot do with an autoencoder."""
    if not vae:
        return ["there is no autoencoder: DiTPipeline needs a vae/ folder beside transformer/"]
    unread = [key for key in ("shift_factor", "latents_mean", "latents_std") if vae.get(key)]
    told = [f"stock DiTPipeline does not read the {', '.join(unread)} of its autoencoder"] if unread else []
    if vae["_class_name"] != "AutoencoderKL":
        told += [f"stock DiTPipeline is made for AutoencoderKL; this autoencoder is an {vae['_class_name']}"]
    return told


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """As diffusers writes it: two spaces, keys in order."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
