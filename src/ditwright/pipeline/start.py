"""Training that starts from weights that are there: of a run, a checkpoint, another project, the hub."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from ..codec.config import CodecConfig
from ..config import differences, to_dict
from ..diffusion.process import Denoiser
from ..errors import UserError
from ..model.config import DiTConfig
from ..model.weights import load_strictly
from ..text.config import TextConfig
from .card import Card
from .folder import Parts, load

CLASSES = "net.vectors.label."  # the embedding of a transformer's classes


@lru_cache(maxsize=1)  # between `card_of` and `start_from`, so that weights are read once
def loaded(name: str) -> tuple[Parts, list[str]]:
    """The parts that a name means, and what was noted as they were read."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        return load(name), [str(note.message) for note in notes]


def card_of(name: str) -> Card:
    """What the checkpoint that a name means says of itself. It is kept for `start_from`, which forgets it."""
    loaded.cache_clear()
    return loaded(name)[0].card


def start_from(name: str, denoiser: Denoiser, card: Card, say: Callable[[str], None]) -> None:
    """Fill a network that `card` describes with the weights that `Pipeline.from_pretrained(name)` would sample with.

    Other classes are learnt anew. `say` is told that, and what may not be meant. UserError where the weights are of
    another network, or where another process or tokenizer would give them another meaning.
    """
    (found, theirs, _), notes = loaded(name)
    loaded.cache_clear()
    changed = differences(to_dict(theirs.model), to_dict(card.model))
    anew = "num_classes" in changed and isinstance(card.model, DiTConfig)
    if set(changed) - ({"num_classes"} if anew else set()):
        raise UserError(
            f"init {name!r} is of another network: {told(changed, 'model')}; take that network's settings: --model init"
        )
    if changed := differences(to_dict(theirs.process), to_dict(card.process)):
        raise UserError(
            f"init {name!r} was trained by another process: {told(changed, 'process')}; "
            "its weights mean something else in this one: take that process, as --model init does"
        )
    check_text(name, theirs.text, card.text)
    lines = list(notes)
    if not alike(theirs.codec, card.codec):
        lines.append(f"init {name!r} is of the codec {named(theirs.codec)}, this run of {named(card.codec)}")
    state = found.state_dict()
    if anew:
        lines.append(
            f"init {name!r} has {theirs.model.num_classes} classes: this run's {card.model.num_classes} are new"
        )
        state = {key: value for key, value in state.items() if not key.startswith(CLASSES)}
        state |= {key: value for key, value in denoiser.state_dict().items() if key.startswith(CLASSES)}
    load_strictly(denoiser, state)
    for line in lines:
        say(f"note: {line}")
    say(f"starting from {name}")


def told(changed: Mapping[str, tuple[Any, Any]], group: str) -> str:
    """The first differences, for people."""
    lines = [f"{group}.{key} is {old} there and {new} here" for key, (old, new) in changed.items()]
    return ", ".join(lines[:3]) + f", and {len(lines) - 3} more" * (len(lines) > 3)


def check_text(name: str, theirs: TextConfig, ours: TextConfig) -> None:
    """UserError where a network would hear texts in another way than it learnt to."""
    if theirs.fingerprint in ("", ours.fingerprint):
        return
    if theirs.kind == ours.kind == "bytes":
        raise UserError(f"init {name!r} reads ids of another tokenizer: give --text.source {theirs.source}")
    raise UserError(
        f"init {name!r} hears text through {theirs.kind} {theirs.source!r} ({theirs.fingerprint[:12]}), this run "
        f"through {ours.kind} {ours.source!r} ({ours.fingerprint[:12]}): take the text.kind and text.source of init"
    )


def alike(theirs: CodecConfig, ours: CodecConfig) -> bool:
    """Whether two codecs may be one: nothing that both of them tell differs."""
    known = theirs.fingerprint and ours.fingerprint
    return theirs.kind == ours.kind and (not known or theirs.fingerprint == ours.fingerprint)


def named(codec: CodecConfig) -> str:
    """A codec for people."""
    return f"{codec.kind} {codec.source!r}" if codec.source else codec.kind
