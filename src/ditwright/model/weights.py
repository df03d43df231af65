"""Weights on disk and into networks: safetensors only, strict to the last key."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..errors import UserError

State = dict[str, Tensor]


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
