"""Whether a checkpoint of a run is as it was written, as far as it is read to sample from it."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..files import damage
from ..train.state import checkpoints
from .card import CARD, WEIGHTS

READ = (CARD, WEIGHTS)  # tokenizer and autoencoder beside them are known by fingerprints in the card


def check_whole(checkpoint: Path) -> None:
    """UserError where card or weights are not those that were written; it names an older checkpoint where they are.

    Files are read to their end for it. One without checksums, as `save_pretrained` writes it, is not looked at.
    """
    if not (why := damage(checkpoint, only=READ)):
        return
    older = [path for path in siblings(checkpoint) if path.name < checkpoint.name]
    whole = next((path for path in reversed(older) if not damage(path, only=READ)), None)
    advice = f"use the older {str(whole)!r}, which is whole" if whole else "bring it back, or take another checkpoint"
    raise UserError(f"{str(checkpoint)!r} is not as it was written: {why}; {advice}")


def siblings(checkpoint: Path) -> list[Path]:
    """The checkpoints of the run that one lies in, oldest first; none where it lies in no run."""
    folder = checkpoint.absolute().parent
    return checkpoints(folder.parent) if folder.name == "checkpoints" else []
