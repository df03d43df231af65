"""Weights on disk and into networks: safetensors only, strict to the last key."""

from __future__ import annotations

import errno
import hashlib
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

State = dict[str, Tensor]
SAFE_COPY = (
    "make a safe copy with the project that wrote it: "
    "model.load_state_dict(...), then safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)


def load_strictly(net: nn.Module, state: State, source: Mapping[str, str] | None = None) -> None:
    """Fill a network to the last key. UserError naming the first key that is missing, unknown or misshapen.

    `source`: what the keys were called in the file, where they were renamed.
    """
    called = source or {}
    own = net.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise UserError(f"the checkpoint lacks the key for {name!r}")
        if state[name].shape != tensor.shape:
            got, want = tuple(state[name].shape), tuple(tensor.shape)
            raise UserError(
                f"the checkpoint's tensor for {called.get(name, name)!r} has shape {got}; the network needs {want}"
            )
    if extra := sorted(state.keys() - own.keys()):
        raise UserError(f"the network has no place for the checkpoint's key {extra[0]!r}")
    net.load_state_dict(state)


def read_safetensors(path: Path) -> State:
    """Tensors of a safetensors file, or one clear line where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"there is no checkpoint file {str(path)!r}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{str(path)!r} is truncated or is not a safetensors file ({error})") from error


def read_torch(path: Path, allowed: Sequence[type] = ()) -> Any:
    """What a torch file holds, as far as it is plain data or `allowed`; tensors stay on the disk until used."""
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds for a damaged or an unsafe file; all are the file's fault
        text, code = str(error) or type(error).__name__, re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"it needs {code[1]}" if code else text.splitlines()[0].split(". ")[0]
        )  # not torch's advice to unpickle it
        advice = f": {SAFE_COPY}" if "Weights only load failed" in text else ""
        raise UserError(
            f"{str(path)!r} cannot be read as plain weights ({reason}); nothing else is unpickled{advice}"
        ) from error


def read_tensors(path: Path) -> State:
    """A state dict from a `.safetensors` or a torch file. UserError where it is damaged or holds anything else."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    state = read_torch(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{str(path)!r} holds no state dict of names and tensors")
    return state


def digest(state: State, kind: str = "") -> str:
    """SHA-256 of weights by their names, shapes and float32 values, whatever file or format they come from."""
    found = hashlib.sha256(kind.encode())
    for name, tensor in sorted(state.items()):
        found.update(f"\n{name} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return found.hexdigest()


def write_safetensors(path: Path, state: State, metadata: dict[str, str] | None = None) -> None:
    """Tensors into a safetensors file. OSError where the disk does not take them."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, path, metadata)
    except SafetensorError as error:  # safetensors wraps the system's error in its own
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, f"could not write: {error}", str(path)) from error
    path.chmod(0o644)  # safetensors makes it readable by its owner alone
