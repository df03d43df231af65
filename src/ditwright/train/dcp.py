"""Tensors in shards on disk, through torch's DCP: written by any number of processes, read by any other.

The files are safetensors, whose headers tell which part of a tensor lies where, beside a list of all shapes. DCP's own
format keeps that in a pickle, which is neither written nor read here.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from ..errors import UserError
from ..model.weights import State

SHAPES = "shapes.json"  # of all tensors: what a folder lacks cannot be told from the shards that are there
DAMAGE = (
    SafetensorError,
    OSError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
)  # what reading raises


def write(place: Path, state: State, group: dist.ProcessGroup, *, later: bool) -> Callable[[], None]:
    """Write a process's part of a state into a folder; all processes of `group` call it. Returns what waits for it.

    `later`: in the background, of a copy that is made now. OSError where the disk does not take it, on all processes.
    """
    writer = HuggingFaceStorageWriter(str(place), save_distributed=True)
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    if later:
        flying = cast("Future[Any]", dcp.async_save(state, storage_writer=writer, process_group=group))
    else:
        _done(partial(dcp.save, state, storage_writer=writer, process_group=group))

    def finish() -> None:
        if later:
            _done(flying.result)
        if group.rank() == 0:
            (place / SHAPES).write_text(json.dumps(shapes, indent=1))

    return finish


def read(
    place: Path, like: Mapping[str, Tensor] = MappingProxyType({}), together: dist.ProcessGroup | None = None
) -> State:
    """Tensors of a safetensors file, or of a folder of shards.

    Each is laid out as the weight of `like` to which it belongs, or whole where there is none. `together`: processes
    that all read at the same time, and fail together. UserError where something is missing or damaged.
    """
    if not place.exists():
        raise UserError(f"there is no checkpoint file {str(place)!r}")
    try:
        reader = HuggingFaceStorageReader(str(place if place.is_dir() else place.parent))
        told = reader.read_metadata().state_dict_metadata
        names = sorted(safe_open(place, "pt").keys()) if place.is_file() else _complete(place, told)
        state: State = {}
        for name in names:
            entry = cast(dcp.TensorStorageMetadata, told[name])
            if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != entry.size.numel():
                raise UserError(f"{str(place)!r} lacks a part of {name!r}: a shard is missing")
            weight = like.get(weight_of(name, like))
            if weight is not None and weight.shape == entry.size:
                state[name] = torch.zeros_like(weight, dtype=entry.properties.dtype, requires_grad=False)
            else:
                state[name] = torch.zeros(entry.size, dtype=entry.properties.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is")  # disabled here: as asked
            dcp.load(state, storage_reader=reader, process_group=together, no_dist=together is None)
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        if not isinstance(first, DAMAGE):
            raise
        raise UserError(f"{str(place)!r} is damaged or incomplete ({_line(first)})") from first
    except DAMAGE as error:
        raise UserError(f"{str(place)!r} is damaged or incomplete ({_line(error)})") from error
    return state


def _complete(place: Path, told: Mapping[str, Any]) -> list[str]:
    """The names of all tensors in a folder of shards, where their files tell of all of them, to the last row."""
    shapes = json.loads((place / SHAPES).read_text())
    for name, shape in shapes.items():
        if name not in told or list(told[name].size) != shape:
            raise UserError(f"{str(place)!r} lacks a part of {name!r}: a shard is missing")
    return sorted(shapes)


def weight_of(name: str, weights: Container[str]) -> str:
    """The weight that a tensor of a checkpoint is (`net.W`), belongs to (`optim.W.exp_avg`), or is the average of.

    "" where it is none of them.
    """
    owned = (name, name.removeprefix("net."), name.removeprefix("optim.").rpartition(".")[0])
    return next((own for own in owned if own in weights), "")


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _done(write: Callable[[], object]) -> None:
    """Do it; raise what kept a process from writing as what it is, such as an OSError."""
    try:
        write()
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
