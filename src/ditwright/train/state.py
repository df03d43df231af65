"""All that a run must remember to go on bit for bit: weights, optimizer, average, loss history, place.

Randomness and data order are pure functions of (seed, place), so the place is all there is to save of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model.weights import State, load_strictly, read_safetensors, write_safetensors
from .ema import EMA
from .optim import KEEPS, movers

TENSORS, FACTS = "train.safetensors", "train.json"
SHARDS = "train.dcp"  # a folder in place of the first, where several processes hold a part of the weights each


def save_state(
    folder: Path, net: nn.Module, optim: torch.optim.Optimizer, ema: EMA, loss: object, facts: dict[str, Any]
) -> None:
    """Write the training state into a checkpoint folder. The average's weights are the checkpoint's own."""
    write_safetensors(folder / TENSORS, training_state(net, optim, loss))
    write_facts(folder, {**facts, "ema_updates": ema.updates})


def training_state(net: nn.Module, optim: torch.optim.Optimizer, loss: object) -> State:
    """Weights (`net.W`), what the optimizer remembers of each (`optim.W.exp_avg`), the loss's history (`loss.*`)."""
    names = {id(p): name for name, p in net.named_parameters()}
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    for p, moments in optim.state.items():
        state |= {f"optim.{names[id(p)]}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    if isinstance(loss, nn.Module):
        state |= {f"loss.{name}": tensor for name, tensor in loss.state_dict().items()}
    return state


def read_whole(path: Path) -> State:
    """Tensors of a safetensors file, or of the shards that lie in its place, put together."""
    if path.exists() or not path.with_name(SHARDS).is_dir():
        return read_safetensors(path)
    from .dcp import read  # torch takes its time to import this

    return read(path.with_name(SHARDS))


def load_state(
    folder: Path,
    net: nn.Module,
    optim: torch.optim.Optimizer,
    ema: EMA,
    loss: object,
    average: State,
    read: Callable[[Path], State] = read_whole,
) -> dict[str, Any]:
    """Bring everything back to where `save_state` left it; `average` are the checkpoint's own weights."""
    state = read(folder / TENSORS)
    load_strictly(net, _under("net.", state))
    load_strictly(ema.module, average)
    if isinstance(loss, nn.Module):
        load_strictly(loss, _under("loss.", state))
    params = dict(net.named_parameters())
    moments: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _under("optim.", state).items():
        name, _, kind = key.rpartition(".")
        if name not in params:
            raise UserError(f"{str(folder)!r} has optimizer state for {name!r}, which the network lacks")
        moments.setdefault(name, {})[kind] = tensor.to(params[name].device)
    moved = movers(optim)
    for name, kept in moments.items():
        by = type(moved.get(params[name], optim))
        if kept.keys() != KEEPS.get(by, kept.keys()):
            raise UserError(
                f"{str(folder)!r} remembers {', '.join(sorted(kept))} of {name!r}, which {by.__name__} does not keep: "
                "another optimizer moved it then; begin a new run from its weights (--init)"
            )
    optim.state.clear()  # of steps that are undone
    for name, kept in moments.items():
        optim.state[params[name]] = kept
    facts = read_facts(folder)
    ema.updates = facts["ema_updates"]
    return facts


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """The JSON beside the tensors."""
    (folder / FACTS).write_text(json.dumps(facts, indent=1))


def read_facts(folder: Path) -> dict[str, Any]:
    """The JSON beside the tensors."""
    try:
        return json.loads((folder / FACTS).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(folder / FACTS)!r} is missing or damaged ({error})") from error


def _under(prefix: str, state: State) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first. Half-written ones have other names."""
    found = (run / "checkpoints").glob("step-*") if (run / "checkpoints").is_dir() else []
    return sorted(path for path in found if re.fullmatch(r"step-\d+", path.name))
