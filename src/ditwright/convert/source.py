"""Weights of other projects as they lie on disk. No code is unpickled."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import parse_json
from ..errors import UserError
from ..model.weights import State, read_safetensors, read_torch

WITHIN = "model.diffusion_model."  # of a network in a file that may hold an autoencoder and text encoders beside it
WRAPPED = re.compile(r"(?<![^.])(?:module|_orig_mod)\.")  # by DDP and torch.compile


@dataclass(frozen=True)
class Source:
    """A checkpoint that is read but not understood yet."""

    state: State  # without the prefixes of DDP and torch.compile
    called: dict[str, str] = field(default_factory=dict)  # key -> the file's own name of it
    said: Mapping[str, Any] = field(default_factory=dict)  # beside weights: flags of train.py, or a folder's JSON files
    name: str = ""  # of the file
    folder: Path | None = None
    beside: tuple[str, ...] = ()  # what else than the network the file holds, by the start of its keys


def lists(source: Source, part: str) -> bool:
    """Whether a folder's model_index.json names this part, and not as null."""
    return bool((source.said.get("index", {}).get(part) or [None])[0])


def source_of(state: Mapping[str, Tensor], **rest: Any) -> Source:
    """A source from a state dict. UserError where two keys are one once the prefixes are off."""
    called: dict[str, str] = {}
    within = [key for key in state if key.startswith(WITHIN)] or list(state)
    for key in within:
        name = WRAPPED.sub("", key.removeprefix(WITHIN))
        if name in called:
            raise UserError(f"the keys {called[name]!r} and {key!r} of this checkpoint are the same weight twice")
        called[name] = key
    beside = tuple(sorted({key.partition(".")[0] for key in state.keys() - set(within)}))
    return Source({name: state[key] for name, key in called.items()}, called, beside=beside, **rest)


def read_file(path: Path) -> Source:
    """A `.safetensors` or torch file, plain or as train.py writes it (the EMA where there is one), or shards' index."""
    if not path.is_file():
        raise UserError(f"there is no checkpoint file or folder {str(path)!r}")
    if path.suffix == ".json":
        return source_of(read_shards(path), name=path.name)
    if path.suffix == ".safetensors":
        return source_of(read_safetensors(path), name=path.name)
    content = read_torch(path, [argparse.Namespace])  # how train.py stores its flags: plain data
    told = content.get("args", content.get("config")) if isinstance(content, dict) else None
    said = vars(told) if isinstance(told, argparse.Namespace) else told if isinstance(told, dict) else {}
    for wrapper in ("ema", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(
            f"{str(path)!r} holds no state dict: expected names and tensors, plain or under 'model' or 'ema'"
        )
    return source_of(content, said=said, name=path.name)


def read_shards(index: Path) -> State:
    """Tensors of a sharded checkpoint, from its index."""
    shards: dict[str, State] = {}
    state: State = {}
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict):
        raise UserError(f"{str(index)!r} is no index of shards: 'weight_map' is missing")
    for key, file in weights.items():
        if Path(str(file)).name != file:
            raise UserError(f"{str(index)!r} leads out of its folder: {file!r}")
        if file not in shards:
            path = index.parent / file
            shards[file] = read_safetensors(path) if path.suffix == ".safetensors" else read_file(path).state
        if key not in shards[file]:
            raise UserError(f"the shard {file!r} lacks the key {key!r} that {index.name!r} promises")
        state[key] = shards[file][key]
    return state


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of keys and values, or one clear line."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} is missing or damaged ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} must hold keys and values")
    return content
