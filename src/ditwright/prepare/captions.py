"""Captions encoded once, by the frozen encoder that a network will hear, into shards beside those of the pictures.

They are those of the finished set, in its order. Every process that finds the pictures done takes whatever shard nobody
else is at; the one that finds all of them done writes the index.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np

from ..config import differences, to_dict
from ..data.base import uncaptioned
from ..data.shards import Shards
from ..errors import UserError
from ..text.base import TextEncoder, encoder_from, pinned
from ..text.cache import FOLDER, CachedText, Writing, begun
from ..text.config import TextConfig
from ..text.cuts import cuts_told_once
from ..train.job import stop_asked
from ..train.log import say
from .folder import locked
from .place import Place
from .progress import Progress

SHARD = 1024  # captions
MAY_DIFFER = {"source", "revision"}  # the fingerprint tells whether it is the same


def encoder_of(config: TextConfig, source: Any, output: Path) -> TextEncoder | None:
    """The encoder that a configuration names, its files hashed, its weights not read yet; None where there is none.

    UserError where it would not do: before the pictures are begun.
    """
    if config.kind == "none":
        return None
    if config.kind == "bytes":
        raise UserError(
            "text.kind bytes gives ids that the network itself learns to read: there is nothing to encode ahead; leave "
            "it out here and name it in training"
        )
    if hasattr(source, "__getitem__") and len(source) and source[0].caption is None:
        raise UserError(uncaptioned(source[0].name, source))
    encoder = encoder_from(config)
    asked = pinned(encoder)
    if (there := begun(output / FOLDER)) is not None:
        for key, (old, new) in differences(to_dict(there), to_dict(asked)).items():
            if key not in MAY_DIFFER:
                raise UserError(
                    f"{str(output / FOLDER)!r} holds captions encoded with other settings: text.{key} is {old} there "
                    f"and {new} now; delete it to encode them anew, or choose the settings of that"
                )
    return encoder


def encode_captions(folder: Path, encoder: TextEncoder, here: Place) -> CachedText | None:
    """Encode the captions of a finished set. None where other processes are still at some of them.

    SIGTERM and Ctrl-C leave by SystemExit; shards that are done are kept.
    """
    shards = Shards(folder)
    told = shards.captions(np.arange(len(shards)))
    bare = [number for number, caption in enumerate(told) if caption is None]
    if bare:
        first = shards.facts(np.array(bare[:1]))[0]["name"]
        raise UserError(
            f"{len(bare):,} of {len(told):,} pictures in {str(folder)!r} have no caption, {first!r} first: there is "
            "nothing to encode; give all of them one and start in another folder"
        )
    place = folder / FOLDER
    writing = Writing(place, encoder.to(here.device), (text for text in told if text is not None), size=SHARD)
    place.mkdir(exist_ok=True)
    with (
        stop_asked() as asked,
        Progress(writing.count, shown=here.rank == 0, unit="captions") as progress,
        cuts_told_once(say),
    ):

        def step(count: int) -> None:
            progress.step(count)
            if asked:
                raise SystemExit(128 + asked[0])

        todo = writing.todo()
        progress.skip(writing.count - sum(len(writing.parts[number]) for number in todo))
        first = here.rank * len(todo) // here.size
        for number in todo[first:] + todo[:first]:
            with locked(place / f".captions-{number:05d}.lock", wait=False) as ours:
                if ours and not writing.done(number):
                    try:
                        writing.write(number, step)
                    except SystemExit:
                        done = len(writing.parts) - len(writing.todo())
                        name = signal.Signals(asked[0]).name
                        say(f"{name}: {done} shards of captions are done; the same command goes on")
                        raise
    with locked(place / ".index.lock", wait=True):
        if (cached := writing.finish()) is not None:
            for left in [*place.glob(".captions*.half"), *place.glob(".captions-*.lock")]:
                left.unlink(missing_ok=True)
        return cached
