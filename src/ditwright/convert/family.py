"""What passes between two houses, and what is known of each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from ..diffusion.config import ProcessConfig, SampleConfig
from ..errors import UserError
from ..model.config import DiTConfig, Stage
from ..model.weights import State
from .rules import Layout, Rule
from .source import Source


@dataclass(frozen=True)
class Portable:
    """A network between two houses: its weights under our names, and all that a file tells of its use."""

    model: DiTConfig
    process: ProcessConfig
    state: State  # of DiT(model), in the number format of the file
    sample: SampleConfig = field(default_factory=SampleConfig)
    image_size: tuple[int, int] | None = None  # height, width in pixels, where known
    class_names: tuple[str, ...] = ()
    codec: str = ""  # folder or hub name of its autoencoder; "" where unknown
    factor: int = 8  # pixels per latent of that autoencoder, along a side
    text: Mapping[str, Any] = field(
        default_factory=dict
    )  # its text encoder, as fields of TextConfig; {}: it hears none
    null: State = field(default_factory=dict)  # conditions that stand for none, of one sample: "text" (M, E)
    notes: tuple[str, ...] = ()  # what of the file is not followed, or is a guess, a line each


Also = Callable[[Path], None]  # adds files to a folder that is being written


def of_classes(portable: Portable, name: str) -> None:
    """UserError unless a network has the blocks of the families that are told a class, square patches and pictures."""
    model = portable.model
    if any(replace(stage, depth=1) != Stage(1) for stage in model.stages):
        raise UserError(f"{name} has blocks of adaln_zero without cross-attention only; train a network of such stages")
    if len(model.patch) != 2 or model.patch[0] != model.patch[1]:
        raise UserError(f"{name} cuts pictures into square patches; this network's are {model.patch}")
    if model.num_classes < 1:
        raise UserError(f"{name} is conditioned on classes; this network has none (model.num_classes)")
    square(portable, name)


@dataclass(frozen=True)
class Family:
    """All that is known of one project's checkpoints."""

    rules: tuple[Rule, ...]
    layout: Callable[[Source, int | None], Layout]  # of a file; heads, where they are given
    about: Callable[[Source, Layout], dict[str, Any]]  # what a file tells beside weights: fields of Portable
    needs: Callable[[DiTConfig], Mapping[str, tuple[Any, ...]]]  # dotted key -> the values that can be written
    values: Mapping[str, Any]  # what its own code has, whatever the network had
    written: Callable[[Portable], Layout]
    save: Callable[[Portable, State, Path, Also], list[str]]  # their weights to disk; notes, a line each
    suffixes: tuple[str, ...] = ()  # of its files; () where it is a folder
    fits: Callable[[Portable, str], None] = of_classes  # what `needs` cannot say: UserError, given its name


def check(portable: Portable, name: str, family: Family) -> None:
    """UserError with what would have to be trained for a network to be of a family."""
    model = portable.model
    if not isinstance(model, DiTConfig):
        raise UserError(f"{name} has transformers only; this network is a {model}")
    family.fits(portable, name)
    for key, allowed in family.needs(model).items():
        got = attrgetter(key)(portable)
        if got not in allowed:
            want = " or ".join(map(repr, allowed))
            raise UserError(
                f"{name} needs {key} = {want}; this network has {got!r}, "
                f"which no conversion changes: train one with --{key} {option(allowed[0])}"
            )


def option(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "[]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def square(portable: Portable, name: str) -> int:
    """Latents along a side of the pictures that a network is for."""
    if portable.image_size is None:
        raise UserError(f"{name} stores a picture size; this checkpoint does not tell its own (image_size)")
    height, width = portable.image_size
    unit = portable.factor * portable.model.patch[0]
    if height != width or height % unit:
        raise UserError(
            f"{name} is for square pictures of a multiple of {unit} pixels; this network's are {height}x{width}"
        )
    return height // portable.factor
