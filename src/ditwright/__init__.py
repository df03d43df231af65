"""ditwright: train, measure, sample and fine-tune diffusion transformers."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {  # name -> module; looked up when first used, so that importing ditwright imports no torch
    "DiT": "model.dit",
    "DiTConfig": "model.config",
    "Stage": "model.config",
    "PRESETS": "model.presets",
    "conditioned": "model.config",
    "Denoiser": "diffusion.process",
    "Process": "diffusion.process",
    "Prediction": "diffusion.target",
    "Objective": "diffusion.objective",
    "guided": "diffusion.guidance",
    "PATHS": "diffusion.path",
    "TARGETS": "diffusion.target",
    "SAMPLERS": "diffusion.sampler",
    "Draws": "rng",
    "Pipeline": "pipeline",
    "RECIPES": "recipes",
}
_MODULES = ("convert", "diffusion", "model", "nn")
__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
