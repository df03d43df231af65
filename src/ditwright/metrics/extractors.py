"""Extractors by the names that people type."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..errors import UserError, did_you_mean
from .features import Extractor
from .inception import inception
from .judge import load_judge
from .transformers import clip, dinov2

EXTRACTORS: dict[str, tuple[str, Callable[..., Extractor]]] = {  # what follows the colon, and what makes it
    "inception": ("FILE", inception),
    "inception-pytorch-fid": ("FILE", partial(inception, prepare="pytorch-fid")),
    "dinov2": ("FOLDER_OR_NAME", dinov2),
    "clip": ("FOLDER_OR_NAME", clip),
    "judge": ("FILE", load_judge),
}


def extractor_from(name: str, device: torch.device | str = "cpu") -> Extractor:
    """`kind:place` -> the extractor, its weights read: `inception:pt_inception-2015-12-05-6726825d.pth`, `judge:FILE`.

    UserError for an unknown kind, with the list of them, and for weights that are not there or do not fit.
    """
    kind, _, place = name.partition(":")
    if kind not in EXTRACTORS or not place:
        known = ", ".join(f"{kind}:{what}" for kind, (what, _) in EXTRACTORS.items())
        raise UserError(f"unknown extractor {name!r}; known: {known}{did_you_mean(kind, EXTRACTORS)}")
    return EXTRACTORS[kind][1](place, device)
