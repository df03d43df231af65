"""What a network is told of the samples it trains on: their classes or their captions, a share dropped for guidance.

Where it asks, their size and the guidance that it imitates besides. B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .data.base import Dataset, drop, uncaptioned
from .data.shards import Shards
from .diffusion.process import Cond
from .errors import UserError
from .model.baseline import NetConfig
from .model.config import DiTConfig
from .rng import generator
from .text.base import TextEncoder, agree, encoder_from, pinned
from .text.bytes import Bytes
from .text.cache import AGAIN, FOLDER, INDEX, CachedText, begun
from .text.config import TextConfig
from .text.sd3 import PARTS, widths_of, without
from .text.tokenizer import learn

Encode = Callable[[Sequence[str]], dict[str, Tensor]]  # prompts -> "text", "text_mask", "pooled"


class Conditions(Protocol):
    """(data, items (B,), their places in the sequence, shares to drop) -> what the network is told.

    `share`: of the condition as a whole; `parts`: of each of SD3's encoders by itself, none unless given.
    """

    def __call__(
        self, data: Dataset, items: np.ndarray, places: range, share: float, parts: Sequence[float] = ()
    ) -> Cond: ...


@dataclass(frozen=True)
class Classes:
    """The class of each; dropped, it is the null class. `null` 0: the network is told nothing."""

    null: int
    seed: int

    def __call__(
        self, data: Dataset, items: np.ndarray, places: range, share: float, parts: Sequence[float] = ()
    ) -> Cond:
        if not self.null:
            return {}
        return {"label": drop(torch.from_numpy(data.labels(items)), self.null, share, self.seed, places)}


@dataclass(frozen=True)
class Captions:
    """The caption of each, encoded; dropped, it is the empty one, and what one encoder gave of it is zeros.

    SD3 drops each of its three at a share of 0.464 (Esser et al. 2024), which is all at once at 0.1.
    """

    encode: Encode
    seed: int

    def __call__(
        self, data: Dataset, items: np.ndarray, places: range, share: float, parts: Sequence[float] = ()
    ) -> Cond:
        told = captions(data, items)
        kept = [share == 0 or generator(self.seed, place, "drop").random() >= share for place in places]
        cond = self.encode([text if keep else "" for text, keep in zip(told, kept, strict=True)])
        for part, share_of_it in zip(PARTS, parts, strict=False):
            if share_of_it > 0:
                lost = [generator(self.seed, place, f"drop {part}").random() < share_of_it for place in places]
                widths, length = widths_of(self.encode), self.encode.config.length
                cond = without(cond, part, torch.tensor(lost), widths, length)
        return cond


@dataclass(frozen=True)
class Beside:
    """What others tell, and what `pipeline/asks.told_beside` tells when sampling: never dropped, as there.

    "size": (B, 3), height and width in pixels of the samples' group and their ratio, where `sizes`; "guidance": (B,),
    where there is a scale.
    """

    told: Conditions
    sizes: bool = False
    guidance: float | None = None

    def __call__(
        self, data: Dataset, items: np.ndarray, places: range, share: float, parts: Sequence[float] = ()
    ) -> Cond:
        cond = self.told(data, items, places, share, parts)
        if self.guidance is not None:
            cond = cond | {"guidance": torch.full((len(items),), self.guidance)}
        if self.sizes:
            height, width = size_of(data, items[0])
            cond = cond | {"size": torch.tensor([[height, width, height / width]] * len(items))}
        return cond


def size_of(data: Dataset, item: int) -> tuple[int, int]:
    """Height and width in pixels of the group that an item is of."""
    return next(group.size for group in data.groups if item in group.items)


def conditions_of(model: NetConfig, encoder: TextEncoder | None, seed: int, *, guidance: float) -> Conditions:
    """What a network is told in training: captions where they have an encoder, else classes, and what it asks besides.

    `guidance`: the scale that one which imitates guidance is told.
    """
    told: Conditions = Classes(model.num_classes, seed) if encoder is None else Captions(encoder, seed)
    if not isinstance(model, DiTConfig) or not (model.sizes or model.guidance):
        return told
    return Beside(told, model.sizes, guidance if model.guidance else None)


def captions(data: Dataset, items: np.ndarray) -> list[str]:
    """The captions of some items. UserError where one has none."""
    told = data.captions(items)
    found = [text for text in told if text is not None]
    if len(found) < len(told):
        name, source = f"picture {items[told.index(None)]}", getattr(data, "source", data)
        raise UserError(
            "the network is conditioned on text, and the data has pictures without captions: "
            + uncaptioned(name, source)
        )
    return found


def everything(data: Dataset) -> np.ndarray:
    """All items of all groups, (N,) int64."""
    return np.concatenate([group.items for group in data.groups])


def encoder_for(text: TextConfig, model: NetConfig, data: Dataset) -> tuple[TextConfig, TextEncoder | None]:
    """The encoder of a run's captions, and its configuration with all that pins it; None where there is none.

    A tokenizer that is not named is learnt from the captions. Where `ditwright prepare` encoded the captions those are
    taken, and no weights are needed; so is their encoder where none is named. UserError where network, encoder and
    data do not suit each other.
    """
    if not isinstance(model, DiTConfig):
        if text.kind != "none":
            raise UserError(f"text.kind is {text.kind}, and a U-Net hears no text")
        return text, None
    states = bool(model.text_width or model.pooled_width) and not model.text_vocab
    place = encoded(data) if states and text.kind != "bytes" else None
    if text.kind == "none" and place is not None:
        text = CachedText(place).config
    if text.kind == "none":
        agree(text, model)
        return text, None
    if text.kind == "bytes" and not text.source:
        learnt = learn(captions(data, everything(data)), model.text_vocab, length=text.length)
        text = replace(text, fingerprint=learnt.fingerprint)
        encoder: TextEncoder = Bytes(text, learnt)
    elif place is not None:
        encoder = CachedText(place, text)
        text = encoder.config
    else:
        encoder = encoder_from(text)
        text = pinned(encoder)
        encoder.ready()
    agree(text, model, encoder)
    captions(data, data.groups[0].items[:1])
    return text, encoder


def encoded(data: Dataset) -> Path | None:
    """The folder of a data set's encoded captions, None where it has none. UserError where they are half done."""
    place = data.folder / FOLDER if isinstance(data, Shards) else None
    if place is None or begun(place) is None:
        return None
    if not (place / INDEX).is_file():
        raise UserError(f"the captions in {str(place)!r} are not all encoded: {AGAIN}, or delete them")
    return place


def heard_too(encoder: TextEncoder | None, data: Dataset) -> None:
    """See that the captions of held-out data can be encoded as well. UserError where that takes weights."""
    if not isinstance(encoder, CachedText):
        return
    if (place := encoded(data)) is not None:
        encoder.learn(place)
    elif unknown := [text for text in captions(data, everything(data)) if text not in encoder]:
        raise UserError(
            f"the captions of data.source are encoded, those of data.validation are not ({unknown[0]!r}): give its "
            "`ditwright prepare` the same --text options"
        )
