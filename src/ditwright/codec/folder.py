"""Autoencoders as diffusers lays them out: found, read to the last key, told apart, written."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..config import parse_json
from ..errors import UserError, did_you_mean
from ..extras import need
from ..files import CHECKSUMS, damage
from ..model.weights import State, load_strictly, read_tensors, write_safetensors
from .config import CodecConfig

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
FILES = (WEIGHTS, "diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors")
PLACES = ("", "vae", "codec")  # of an autoencoder: a folder of its own, a pipeline's, a run's
CLASSES = {"AutoencoderKL": "kl", "AutoencoderTiny": "tiny", "AutoencoderDC": "dc"}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # attention, before 2023


def locate(source: str, revision: str = "") -> tuple[Path, str]:
    """The folder of an autoencoder's config.json and weights; and the commit, where it came from the hub."""
    path = Path(source).expanduser()
    if source and path.is_dir():
        return _inside(path), ""
    if source and path.exists():
        raise UserError(f"the codec {source!r} is a file; name the folder that holds its {CONFIG} and {FILES[0]}")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
        raise UserError(f"there is no codec folder {source!r}, and names on the hub look like OWNER/NAME")
    return _fetched(source, revision)


def _inside(folder: Path) -> Path:
    newest = sorted(folder.glob("checkpoints/step-*"))[-1:]  # a run that has not finished
    for place in (*(folder / place for place in PLACES), *newest):
        if (place / CONFIG).is_file():
            return place
    raise UserError(f"{str(folder)!r} holds no autoencoder: {CONFIG} is missing, here and in vae/ and codec/")


def _fetched(name: str, revision: str) -> tuple[Path, str]:
    """From the hub, or from its cache: the configuration, and the first file of weights that there is."""
    hub, errors = need("huggingface_hub", extra="hf"), need("huggingface_hub.errors", extra="hf")

    def first(files: list[str]) -> Path | None:
        for file in files:
            try:
                return Path(hub.hf_hub_download(name, file, revision=revision or None))
            except errors.LocalEntryNotFoundError:
                raise  # not reached: it may be there
            except errors.EntryNotFoundError:
                continue
        return None

    try:
        config = first([f"{place}/{CONFIG}".lstrip("/") for place in PLACES[:2]])
        if config is None:
            raise UserError(f"{name!r} on the hub holds no autoencoder: {CONFIG} is missing, there and in vae/")
        place = f"{config.parent.name}/" if config.parent.name == PLACES[1] else ""
        if first([place + file for file in FILES]) is None:
            raise UserError(f"{name!r} on the hub has no weights in {place or '.'}; looked for {', '.join(FILES)}")
    except (OSError, errors.HFValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"the codec {name!r} is no folder here and could not be had from the hub ({reason}); where there is "
            f"a connection run: hf download {name} --local-dir DIR, copy DIR here and name it as the codec"
        ) from error
    return config.parent, (config.parent.parent if place else config.parent).name


def skeleton(folder: Path) -> tuple[str, nn.Module]:
    """Which kind of autoencoder a folder holds, and that network without its weights."""
    try:
        config = parse_json((folder / CONFIG).read_bytes())
        name = config.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{str(folder / CONFIG)!r} is not the configuration of an autoencoder ({error})") from error
    if not isinstance(name, str) or name not in CLASSES:
        known = f"known: {', '.join(CLASSES)}{did_you_mean(str(name), CLASSES)}"
        raise UserError(f"{str(folder / CONFIG)!r} is of the class {name!r}, which is no codec here; {known}")
    try:
        with torch.device("meta"):
            net = getattr(need("diffusers", extra="hf"), name).from_config(config)
    except (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
        raise UserError(f"diffusers cannot build the {name} of {str(folder / CONFIG)!r}: {error}") from error
    return CLASSES[name], net.eval().requires_grad_(False)


def filled(net: nn.Module, folder: Path) -> nn.Module:
    """A skeleton with its weights, float32. UserError for a file or a key that is missing, unknown or misshapen.

    And for one that is not as it was written, where the folder has checksums: those that are trained here have.
    """
    path = next((folder / file for file in FILES if (folder / file).is_file()), None)
    if path is None:
        raise UserError(f"{str(folder)!r} has no weights; looked for {', '.join(FILES)}")
    if why := damage(folder, only=(CONFIG, path.name)):
        raise UserError(
            f"the codec {str(folder)!r} is not as it was written: {why}; bring it back, or where that was changed on "
            f"purpose remove its {CHECKSUMS}"
        )
    state = {_renamed(name): tensor for name, tensor in read_tensors(path).items()}
    try:
        net = net.to_empty(device="cpu")
        load_strictly(net, state)
    except UserError as error:
        raise UserError(f"{str(path)!r} does not fit its {CONFIG}: {error}") from None
    return net


def _renamed(name: str) -> str:
    """The present name of a weight: attention was spelt otherwise when Stable Diffusion's were published."""
    found = re.fullmatch(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return f"{found[1]}.{OLD_NAMES[found[2]]}.{found[3]}" if found else name


def affine(net: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and shift by config.json, as diffusers' pipelines apply them.

    scaling_factor and shift_factor; latents_mean and latents_std, a value per channel, where both are there.
    """
    factor = net.config.get("scaling_factor") or 1.0
    mean, std = net.config.get("latents_mean"), net.config.get("latents_std")
    if mean and std:  # float32, in which they are applied: written and read again they are the same
        return tuple(float(np.float32(factor / s)) for s in std), tuple(float(m) for m in mean)
    return (float(factor),), (float(net.config.get("shift_factor") or 0.0),)


def write(net: nn.Module, state: State, folder: Path, config: CodecConfig) -> None:
    """config.json, with the scale and shift of `config`, and weights: what stock diffusers loads.

    One value per channel goes to latents_mean and latents_std. Stock pipelines read those, and shift_factor, with
    AutoencoderKL where their model family has them; with the other kinds they apply scaling_factor alone.
    """
    values: dict[str, Any] = {"scaling_factor": 1.0, "shift_factor": None, "latents_mean": None, "latents_std": None}
    if len(config.scale) == len(config.shift) == 1:
        values |= {"scaling_factor": config.scale[0], "shift_factor": config.shift[0] or None}
    else:
        values["latents_mean"] = list(np.broadcast_to(config.shift, config.channels).tolist())
        values["latents_std"] = [_inverse(s) for s in np.broadcast_to(config.scale, config.channels).tolist()]
    known = json.loads(net.to_json_string())
    values = {key: value for key, value in values.items() if value is not None or key in known}
    if CLASSES[known["_class_name"]] == "tiny":  # there no shift is 0
        values["shift_factor"] = values["shift_factor"] or 0.0
    (folder / CHECKSUMS).unlink(missing_ok=True)  # of what was there before
    (folder / CONFIG).write_text(json.dumps(known | values, indent=2, sort_keys=True) + "\n")
    write_safetensors(folder / WEIGHTS, state)


def _inverse(scale: float) -> float:
    """The standard deviation from which `affine` makes this scale again, to the last bit of float32."""
    near = 1 / scale
    for std in (near, math.nextafter(near, 0), math.nextafter(near, math.inf)):
        if np.float32(1 / std) == np.float32(scale):
            return std
    raise AssertionError(f"no inverse of {scale}")
