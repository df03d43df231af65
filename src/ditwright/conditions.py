"""What a network is told of the samples it trains on: their classes or their captions, a share dropped for guidance.

B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .data.base import Dataset, drop
from .diffusion.process import Cond
from .errors import UserError
from .model.baseline import NetConfig
from .model.config import DiTConfig
from .rng import generator
from .text.base import TextEncoder, agree, completed, encoder_from
from .text.bytes import Bytes
from .text.config import TextConfig
from .text.tokenizer import learn

Encode = Callable[[Sequence[str]], dict[str, Tensor]]  # prompts -> "text", "text_mask", "pooled"


class Conditions(Protocol):
    """(data, items (B,), their places in the sequence, share to drop) -> what the network is told."""

    def __call__(self, data: Dataset, items: np.ndarray, places: range, share: float) -> Cond: ...


@dataclass(frozen=True)
class Classes:
    """The class of each; dropped, it is the null class. `null` 0: the network is told nothing."""

    null: int
    seed: int

    def __call__(self, data: Dataset, items: np.ndarray, places: range, share: float) -> Cond:
        if not self.null:
            return {}
        return {"label": drop(torch.from_numpy(data.labels(items)), self.null, share, self.seed, places)}


@dataclass(frozen=True)
class Captions:
    """The caption of each, encoded; dropped, it is the empty one."""

    encode: Encode
    seed: int

    def __call__(self, data: Dataset, items: np.ndarray, places: range, share: float) -> Cond:
        told = captions(data, items)
        kept = [share == 0 or generator(self.seed, place, "drop").random() >= share for place in places]
        return self.encode([text if keep else "" for text, keep in zip(told, kept, strict=True)])


def captions(data: Dataset, items: np.ndarray) -> list[str]:
    """The captions of some items. UserError where one has none."""
    found = [text for text in data.captions(items) if text is not None]
    if len(found) < len(items):
        raise UserError("the network is conditioned on text, and the data has pictures without captions")
    return found


def encoder_for(text: TextConfig, model: NetConfig, data: Dataset) -> tuple[TextConfig, TextEncoder | None]:
    """The encoder of a run's captions, and its configuration with all that pins it; None where there is none.

    A tokenizer that is not named is learnt from the captions. UserError where network, encoder and data do not suit
    each other.
    """
    if not isinstance(model, DiTConfig):
        if text.kind != "none":
            raise UserError(f"text.kind is {text.kind}, and a U-Net hears no text")
        return text, None
    if text.kind == "none":
        agree(text, model)
        return text, None
    if text.kind == "bytes" and not text.source:
        items = np.concatenate([group.items for group in data.groups])
        learnt = learn(captions(data, items), model.text_vocab, length=text.length)
        text = replace(text, fingerprint=learnt.fingerprint)
        encoder: TextEncoder = Bytes(text, learnt)
    else:
        text = completed(text)
        encoder = encoder_from(text).ready()
    agree(text, model, encoder)
    captions(data, data.groups[0].items[:1])
    return text, encoder
