"""The original SiT layout: DiT's keys, time from noise to data, and an output whose second half nothing reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..diffusion.config import ProcessConfig, SampleConfig
from ..errors import lookup
from ..model.config import DiTConfig
from ..model.weights import State
from . import dit
from .family import Also, Portable
from .rules import Layout
from .source import Source

PATHS = {"Linear": "linear", "GVP": "cosine", "VP": "vp"}  # --path-type
TARGETS = {"velocity": "velocity", "noise": "noise", "score": "score"}  # --prediction


def layout(source: Source, heads: int | None = None) -> Layout:
    """The network of a SiT checkpoint, without the half of the last layer that `learn_sigma` (its default) adds."""
    return dit.single(dit.layout(source, heads))


def process(flags: Mapping[str, Any]) -> ProcessConfig:
    """How train.py's flags say a network was trained; without them as the released models were."""
    path = lookup("path_type", flags.get("path_type", "Linear"), PATHS)
    target = lookup("prediction", flags.get("prediction", "velocity"), TARGETS)
    all_noise = target != "velocity" and path != "vp"  # where such a network says nothing of the sample
    return ProcessConfig(path, target, reversed_time=True, span=(0.0, 0.999) if all_noise else None)


def about(source: Source, layout: Layout) -> dict[str, Any]:
    """Straight lines and their velocity, the time told as 1 - t."""
    return {
        "process": process(source.said),
        "sample": SampleConfig("euler", num_inference_steps=250, **dit.guidance(layout.model, 4.0)),
        **dit.picture(source, layout),
    }


REVERSED = {
    "process.reversed_time": (True,),
    "process.path": tuple(PATHS.values()),
    "process.target": tuple(TARGETS.values()),
}


def needs(model: DiTConfig) -> dict[str, tuple[Any, ...]]:
    """What SiT's sample.py samples."""
    return REVERSED | dit.NEEDS


def written(portable: Portable) -> Layout:
    """What SiT's constructor makes: its `learn_sigma` doubles the output."""
    return replace(dit.written(portable), doubled=True)


def save(portable: Portable, theirs: State, path: Path, also: Also) -> list[str]:
    """As DiT's; a network of another path or target than the default needs to be sampled so there."""
    process = portable.process
    flags = {"path_type": process.path, "prediction": process.target}
    names = {ours: name for table in (PATHS, TARGETS) for name, ours in table.items()}
    unusual = [f"{flag} {names[value]}" for flag, value in flags.items() if value not in ("linear", "velocity")]
    return dit.save(portable, theirs, path, also) + ([f"sample it there with {', '.join(unusual)}"] if unusual else [])


SIT = replace(dit.DIT, layout=layout, about=about, needs=needs, written=written, save=save)
