"""Encoded captions on disk: safetensors shards, and the fingerprint of the encoder that made them.

N captions of a shard, M tokens, E width of the states, P width of the pooled state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import from_dict, to_dict
from ..diffusion.process import Cond
from ..errors import UserError
from ..files import whole_folder
from ..model.weights import read_safetensors, write_safetensors
from .base import TextEncoder
from .config import TextConfig
from .frozen import DTYPES
from .tokenizer import checked, encodable

INDEX = "captions.json"
OPEN = 8  # shards held in memory


def write_cache(folder: Path, encoder: TextEncoder, captions: Iterable[str], *, size: int = 1024) -> CachedText:
    """Encode each different caption once, the empty one too, `size` to a shard, in the encoder's dtype.

    Padding that the network does not see is not kept. The folder is replaced when all is written.
    """
    todo = iter(dict.fromkeys(["", *map(encodable, captions)]))
    shards: list[dict[str, Any]] = []
    config = replace(encoder.config, revision=encoder.commit or encoder.config.revision)
    config = replace(config, fingerprint=encoder.fingerprint)
    with whole_folder(folder) as half:
        while part := list(islice(todo, size)):
            name = f"captions-{len(shards):05d}.safetensors"
            about = {"fingerprint": config.fingerprint, "dtype": config.dtype}
            write_safetensors(half / name, _trimmed(encoder(part)), about)
            shards.append({"file": name, "captions": part})
        index = {"encoder": to_dict(config), "shards": shards}
        index |= {name: getattr(encoder, name) for name in ("text_width", "pooled_width", "vocab")}
        (half / INDEX).write_text(json.dumps(index, ensure_ascii=False))
    return CachedText(folder)


class CachedText:
    """What `write_cache` wrote, as a text encoder that knows those captions alone and needs no weights.

    `config`: the encoder that the captions should be of. UserError where it differs in more than its dtype; another
    dtype is made of the stored one.
    """

    def __init__(self, folder: Path, config: TextConfig | None = None):
        if not (folder / INDEX).is_file():
            raise UserError(f"there are no encoded captions in {str(folder)!r}: {INDEX} is missing")
        about = json.loads((folder / INDEX).read_text())
        self.config = from_dict(TextConfig, about["encoder"], "encoder")
        if config is not None:
            self.config = _agreed(folder, self.config, config)
        self.text_width, self.pooled_width, self.vocab = about["text_width"], about["pooled_width"], about["vocab"]
        self.fingerprint, self.commit = about["encoder"]["fingerprint"], self.config.revision
        self.device, self.dtype = torch.device("cpu"), DTYPES[self.config.dtype]
        self._files = [folder / shard["file"] for shard in about["shards"]]
        self._place = {
            c: (n, row) for n, shard in enumerate(about["shards"]) for row, c in enumerate(shard["captions"])
        }
        self._shard = lru_cache(OPEN)(self._read)

    def __len__(self) -> int:
        """How many captions."""
        return len(self._place)

    def __call__(self, prompts: Sequence[str]) -> Cond:
        """As the encoder: "text" (B, M, E), and so on; zeros where padding was not kept.

        UserError for other prompts.
        """
        found = [self._row(prompt) for prompt in checked(prompts)]
        return {name: torch.stack([row[name] for row in found]).to(self.device) for name in found[0]}

    def ready(self) -> CachedText:
        """Itself: there is nothing to read."""
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> CachedText:
        """Gives its states on a device, in a dtype; returns itself."""
        self.device, self.dtype = torch.device(device or self.device), dtype or self.dtype
        return self

    def save(self, folder: Path) -> None:
        """Nothing: the encoder that made the captions is what a checkpoint names."""

    def _row(self, prompt: str) -> Cond:
        if prompt not in self._place:
            raise UserError(f"{prompt!r} is not among the {len(self)} encoded captions: encode it with the encoder")
        number, row = self._place[prompt]
        cond = {name: value[row] for name, value in self._shard(number).items()}
        missing = self.config.length - len(cond["text"]) if "text_mask" in cond else 0
        if missing:  # padding, which nobody sees
            after = (0, missing) if self.vocab else (0, 0, 0, missing)
            cond |= {"text": F.pad(cond["text"], after), "text_mask": F.pad(cond["text_mask"], (0, missing))}
        return {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in cond.items()}

    def _read(self, number: int) -> dict[str, Tensor]:
        return read_safetensors(self._files[number])


def _agreed(folder: Path, stored: TextConfig, asked: TextConfig) -> TextConfig:
    """The stored description in the dtype that is asked for. UserError where anything else that counts differs."""
    for name in ("kind", "fingerprint", "length", "t5_length", "layer", "masked", "lower", "drop"):
        have, want = getattr(stored, name), getattr(asked, name)
        if have != want and not (name == "fingerprint" and not want):
            raise UserError(
                f"the captions in {str(folder)!r} were encoded with text.{name} {have}; the configuration asks for "
                f"{want}: encode them anew"
            )
    return replace(stored, dtype=asked.dtype)


def _trimmed(cond: Cond) -> Cond:
    """Where padding is hidden: zeros in its place, and none of the columns that are padding in every row."""
    if "text_mask" not in cond:
        return cond
    last = int(cond["text_mask"].any(0).sum())
    text, mask = cond["text"][:, :last].clone(), cond["text_mask"][:, :last]
    text[~mask] = 0
    return cond | {"text": text, "text_mask": mask}
