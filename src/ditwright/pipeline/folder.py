"""Checkpoints on disk: ours, those of other projects, and the hub's; and how ours are written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ..codec.base import Codec, codec_from, find_codec
from ..codec.config import CodecConfig
from ..config import dump_yaml, read_yaml
from ..convert import read as read_foreign
from ..diffusion.process import Denoiser, process_from
from ..errors import UserError
from ..extras import at_revision
from ..files import CHECKSUMS, whole_folder
from ..model.build import empty
from ..model.weights import State, load_strictly, read_safetensors, write_safetensors
from ..text.base import TextEncoder
from ..text.config import TextConfig
from ..text.tokenizer import FILE
from ..train.state import checkpoints
from .card import CARD, CODEC, README, TEXT, WEIGHTS, Card, readme
from .hub import fetch, is_hub_name
from .whole import check_whole

FOREIGN = ("model_index.json", "config.json", "transformer")  # what tells a folder of diffusers
# The autoencoders that published networks were trained with: known without the hub, so that latents need none of it.
KNOWN = {
    name: CodecConfig("kl", 4, 8, (0.18215,), (0.0,), source=name)
    for name in ("stabilityai/sd-vae-ft-ema", "stabilityai/sd-vae-ft-mse")
}


class Parts(NamedTuple):
    """What a pipeline is made of."""

    denoiser: Denoiser
    card: Card
    codec: Codec


def load(
    name: str | Path, *, family: str | None = None, heads: int | None = None, codec: str = "", revision: str = ""
) -> Parts:
    """The parts that a name means. UserError where one is missing, naming it."""
    if not revision:
        name, revision = at_revision(str(name))
    path, hub = Path(name).expanduser(), ""
    if not path.exists() and is_hub_name(str(name)):
        path, hub = fetch(str(name), revision or None), str(name)
    elif revision:
        raise UserError(f"revision is for names on the hub; {str(name)!r} is a path")
    if path.name == WEIGHTS and (path.parent / CARD).exists():
        path = path.parent
    if is_foreign(path):
        return _foreign(path, family, heads, codec, hub)
    if family is not None or heads is not None:
        raise UserError(f"family and heads are for weights of other projects; {str(name)!r} is not of another project")
    return _checkpoint(find_checkpoint(path), codec)


def save(
    path: Path,
    denoiser: Denoiser,
    card: Card,
    codec: Codec | None,
    *,
    encoder: TextEncoder | None = None,
    name: str,
    also: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a checkpoint folder, whole or not at all; with the weights of a codec where one is given and has any."""
    if path.exists() and not (path / CARD).exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{str(path)!r} exists and is not a checkpoint; choose another place")
    parameters = sum(p.numel() for p in denoiser.parameters())
    taken = codec is not None and card.codec.kind not in ("auto", "pixels")
    if taken and not is_hub_name(card.codec.source):
        card = replace(card, codec=replace(card.codec, source=""))  # a path of this machine means nothing elsewhere
    with whole_folder(path) as folder:
        (folder / CARD).write_text(dump_yaml(card))
        (folder / README).write_text(readme(card, name, parameters))
        write_safetensors(folder / WEIGHTS, denoiser.state_dict())
        if taken:
            (folder / CODEC).mkdir()
            codec.save(folder / CODEC)
        if encoder is not None:
            (folder / TEXT).mkdir()
            encoder.save(folder / TEXT)
        also(folder)


def is_foreign(path: Path) -> bool:
    """Whether a path holds weights of another project: a file, or a folder of diffusers."""
    return path.is_file() or (not (path / CARD).exists() and any((path / part).exists() for part in FOREIGN))


def resolved(name: str) -> str:
    """The same, but the newest checkpoint in place of a run, so that it stays what it was while the run goes on."""
    path = Path(name).expanduser()
    return str(find_checkpoint(path)) if path.is_dir() and not is_foreign(path) else name


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a path means: itself, or the newest one of a run folder."""
    if (path / CARD).is_file() or os.path.lexists(path / CHECKSUMS):  # without its card it is damaged, as is told then
        return path
    if not path.is_dir():
        raise UserError(f"there is no run or checkpoint folder {str(path)!r}")
    if not (found := checkpoints(path)):
        raise UserError(f"{str(path)!r} is neither a checkpoint ({CARD} is missing) nor a run that has saved one yet")
    return found[-1]


def best_device() -> torch.device:
    """The GPU where there is one, under torchrun this process's own, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= torch.cuda.device_count():
        raise UserError(f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}")
    return torch.device("cuda", local) if "LOCAL_RANK" in os.environ else torch.device("cuda")


def _checkpoint(folder: Path, codec: str) -> Parts:
    check_whole(folder)
    card, state = read_yaml(Card, folder / CARD), read_safetensors(folder / WEIGHTS)
    config = card.codec
    if codec:
        config = _moved(card.codec, codec)
    elif (folder / CODEC).is_dir():
        config = replace(card.codec, source=str(folder / CODEC), revision="")
    if codec or not card.codec.source:
        card = replace(card, codec=config)
    if source := _tokenizer(folder, card.text):
        card = replace(card, text=replace(card.text, source=source))
    return Parts(_denoiser(card, state), card, codec_from(config))


def _tokenizer(folder: Path, text: TextConfig) -> str:
    """Where a checkpoint's own tokenizer is, or should be; "" where it brings none, or its card knows another place."""
    own = folder / TEXT
    if text.kind != "bytes":
        return str(own) if own.is_dir() and any(own.iterdir()) else ""
    if not (own / FILE).is_file():
        known = bool(text.source) and Path(text.source).expanduser().exists()
        return "" if known else str(own / FILE)
    return str(own)


def moved(config: TextConfig, place: str) -> TextConfig:
    """The text encoder of a checkpoint at another place. UserError where it does not tell of which kind it is."""
    if config.kind == "none":
        raise UserError(
            f"a place of a text encoder, {place!r}, is for weights that tell its kind, and these do not: pass "
            "encoder=encoder_from(TextConfig(kind, place)) where the network hears text"
        )
    source, revision = at_revision(place)
    return replace(config, source=source, revision=revision)


def _moved(config: CodecConfig, name: str) -> CodecConfig:
    """A codec with the weights of another place, which may be others (a better decoder), but not another shape."""
    found = find_codec(name)
    ours, theirs = ((c.channels, c.factor) for c in (config, found))
    if ours != theirs:
        raise UserError(
            f"the codec {name!r} has {theirs[0]} channels and factor {theirs[1]}; "
            f"the network needs {ours[0]} and {ours[1]}"
        )
    if found.kind == "tiny":  # it decodes latents as networks see them
        return found
    scale, shift = config.scale or found.scale, config.shift or found.shift  # those that the network was trained with
    return replace(found, scale=scale, shift=shift)


def _foreign(path: Path, family: str | None, heads: int | None, codec: str, hub: str = "") -> Parts:
    portable = read_foreign(path, family=family, heads=heads)
    for note in portable.notes:
        warnings.warn(note, stacklevel=4)
    name, model = codec or portable.codec, portable.model
    unknown = CodecConfig("kl", model.channels, portable.factor)  # sizes are known; decoding asks for a source
    config = KNOWN.get(name) or (find_codec(name) if name else unknown)
    if config.kind == "pixels":
        config = replace(config, channels=model.channels)
    if config.channels != model.channels:
        raise UserError(f"the codec {name!r} has {config.channels} channels; the network takes {model.channels}")
    size = portable.image_size and tuple(side // portable.factor * config.factor for side in portable.image_size)
    sample = portable.sample
    if size != portable.image_size:  # of an autoencoder of another factor
        sample = replace(sample, use_resolution_binning=False)
    text = TextConfig(**portable.text)
    if hub and text.source:  # a place in the cache means nothing elsewhere
        text = replace(text, source=hub, revision=path.name)
    card = Card(model, portable.process, config, sample, portable.class_names, size, text)
    state = {f"net.{key}": tensor for key, tensor in portable.state.items()}
    return Parts(_denoiser(card, state), card, codec_from(config))


def _denoiser(card: Card, state: State) -> Denoiser:
    with torch.device("meta"):
        net = empty(card.model)
    denoiser = Denoiser(net.to_empty(device="cpu"), process_from(card.process))
    load_strictly(denoiser, state)
    return denoiser
