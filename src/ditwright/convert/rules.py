"""Foreign checkpoints by tables: every key must match exactly one rule, or the error names it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.config import ProcessConfig
from ..errors import UserError
from ..model.config import DiTConfig
from ..model.weights import State, read_safetensors

Transform = Callable[[Tensor], "Tensor | Sequence[Tensor]"]
# (pattern of the whole key, new name or names or None to drop, transform of the tensor); names may use \\1
Rule = tuple[str, "str | tuple[str, ...] | None", "Transform | None"]


@dataclass(frozen=True)
class Family:
    """All that is known of one project's checkpoints."""

    rules: list[Rule]
    infer: Callable[[State, int | None], DiTConfig]  # the network, from the shapes; heads where they are told
    expected: Callable[[DiTConfig], list[str]]  # every key that must be there
    check: Callable[[State, DiTConfig], None]  # what is dropped is what we compute
    process: Callable[[DiTConfig], ProcessConfig]  # how such networks were trained
    read: Callable[[Path], tuple[State, int | None]] = lambda path: (read_state(path), None)  # and heads, if told
    prepare: Callable[[State, DiTConfig], tuple[State, DiTConfig]] = lambda state, config: (state, config)


def rename(state: State, rules: Sequence[Rule]) -> tuple[State, dict[str, str]]:
    """Apply a table: tensors by new name, and the key that each came from. UserError unless one rule knows each key."""
    renamed: State = {}
    source: dict[str, str] = {}
    for key, tensor in state.items():
        hits = [(m, new, transform) for pattern, new, transform in rules if (m := re.fullmatch(pattern, key))]
        if len(hits) != 1:
            what = "no rule knows" if not hits else f"{len(hits)} rules claim"
            raise UserError(f"{what} the key {key!r} of this checkpoint; is it of another family?")
        match, new, transform = hits[0]
        if new is None:
            continue
        names = [match.expand(name) for name in ((new,) if isinstance(new, str) else new)]
        parts = transform(tensor) if transform else tensor
        parts = (parts,) if isinstance(parts, Tensor) else parts
        renamed |= zip(names, parts, strict=True)
        source |= dict.fromkeys(names, key)
    return renamed, source


def read_state(path: str | Path) -> State:
    """Tensors of a `.safetensors` or `.pt` file. A `.pt` is read without unpickling code; its EMA is preferred."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint file {str(path)!r}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        # argparse.Namespace is how the original train.py stores its flags: plain data, allowed by name.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or an unsafe file; all are the file's fault
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{str(path)!r} cannot be read as plain weights ({reason}); nothing else is unpickled"
        ) from error
    for wrapper in ("ema", "model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(
            f"{str(path)!r} holds no state dict: expected names and tensors, plain or under 'model' or 'ema'"
        )
    return content
