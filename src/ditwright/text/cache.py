"""Encoded captions on disk: safetensors shards, and the fingerprint of the encoder that made them.

FOLDER/captions-00012.safetensors   the states of a stretch of the captions, and in its header a digest of which
FOLDER/captions.json                the encoder, and all captions in their order; written last

N captions of a shard, M tokens, E width of the states, P width of the pooled state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..config import from_dict, parse_json, to_dict
from ..diffusion.process import Cond
from ..dtypes import DTYPES
from ..errors import UserError
from ..files import whole_file
from ..model.weights import write_safetensors
from .base import TextEncoder, completed, pinned, rooted
from .config import KINDS_OF_ONE, SEVERAL, TextConfig
from .tokenizer import Prompt, checked, encodable

FOLDER, INDEX = "captions", "captions.json"  # of a prepared set; in it
FORMAT = "ditwright-captions-1"
ABOUT = "about"  # in a shard's header; one entry, since several come in any order
OPEN_FILES = 512  # a process may often have 1024
AT_ONCE = 64  # captions between two signs of life
AGAIN = "run the same `ditwright prepare` again"


def write_cache(folder: Path, encoder: TextEncoder, captions: Iterable[str], *, size: int = 1024) -> CachedText:
    """Encode each different caption once, the empty one too, `size` to a shard, in the encoder's dtype.

    Padding that the network does not see is not kept. Shards that are there already are not made again; those of
    another encoder or of other captions are replaced.
    """
    writing = Writing(folder, encoder, captions, size=size)
    for number in writing.todo():
        writing.write(number)
    cached = writing.finish()
    assert cached is not None, "every shard is written"
    return cached


class Writing:
    """Encoded captions in the making. Each shard is whole or absent; several processes may write different ones."""

    def __init__(self, folder: Path, encoder: TextEncoder, captions: Iterable[str], *, size: int = 1024):
        self.folder, self.encoder, self.config = folder, encoder, pinned(encoder)
        todo = list(dict.fromkeys(["", *map(encodable, captions)]))
        self.count, self.parts = len(todo), [todo[first : first + size] for first in range(0, len(todo), size)]

    def todo(self) -> list[int]:
        """The numbers of the shards that are not done."""
        return [number for number in range(len(self.parts)) if not self.done(number)]

    def done(self, number: int) -> bool:
        """Whether a shard is there, whole, of this encoder and these captions."""
        return _header(shard_path(self.folder, number)) == self._about(number)

    def write(self, number: int, progress: Callable[[int], None] = lambda count: None) -> None:
        """Make a shard. `progress` hears of some captions at a time, and may leave by an exception."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / INDEX).unlink(missing_ok=True)
        part, found = self.parts[number], []
        for first in range(0, len(part), AT_ONCE):
            some = part[first : first + AT_ONCE]
            found.append({name: value.cpu() for name, value in self.encoder(some).items()})
            progress(len(some))
        cond = {name: torch.cat([some[name] for some in found]) for name in found[0]}
        with whole_file(shard_path(self.folder, number)) as half:
            write_safetensors(half, _trimmed(cond), {ABOUT: json.dumps(self._about(number))})

    def finish(self) -> CachedText | None:
        """Write the index where every shard is done; None where some are not."""
        if self.todo():
            return None
        if not (self.folder / INDEX).is_file():
            shards = [
                {"bytes": path.stat().st_size, "sha256": _sha256(path), "captions": part}
                for part, path in zip(self.parts, self._paths(), strict=True)
            ]
            index = {"format": FORMAT, "encoder": to_dict(self.config)}
            index |= {name: getattr(self.encoder, name) for name in ("text_width", "pooled_width", "vocab")}
            index["widths"] = getattr(self.encoder, "widths", {})  # of SD3's encoders, each droppable by itself
            with whole_file(self.folder / INDEX) as half:
                half.write_text(json.dumps(index | {"shards": shards}, ensure_ascii=False), "utf-8")
            for left in {*self.folder.glob("captions-*.safetensors")} - {*self._paths()}:
                left.unlink()
        return CachedText(self.folder)

    def _paths(self) -> list[Path]:
        return [shard_path(self.folder, number) for number in range(len(self.parts))]

    def _about(self, number: int) -> dict[str, Any]:
        usual = to_dict(TextConfig()) | {"source": self.config.source, "revision": self.config.revision}
        same = {name: value for name, value in to_dict(self.config).items() if value != usual[name]}  # wherever it lies
        contents = hashlib.sha256(json.dumps([FORMAT, same, self.parts[number]]).encode()).hexdigest()
        return {"encoder": same, "contents": contents}


class CachedText:
    """What `write_cache` wrote, as a text encoder that knows those captions alone and needs no weights.

    `config`: the encoder that the captions should be of. UserError where it differs in what counts, or asks for more
    digits than are stored; of fp32 any dtype is made. Any number of threads may share it.
    """

    def __init__(self, folder: Path, config: TextConfig | None = None):
        index = _read_index(folder)
        self.config: TextConfig = index["encoder"]
        if config is not None:
            self.config = agreed(folder, self.config, config)
        self.text_width, self.pooled_width, self.vocab = (index[k] for k in ("text_width", "pooled_width", "vocab"))
        self.widths = index.get("widths", {})
        self.fingerprint, self.commit = self.config.fingerprint, self.config.revision
        self.device, self.dtype = torch.device("cpu"), DTYPES[self.config.dtype]
        self._places: dict[str, tuple[Path, int]] = {}
        for number, shard in enumerate(index["shards"]):
            path = shard_path(folder, number)
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"the encoded captions {str(path)!r} are missing or not as they were written; {AGAIN}")
            self._places |= {caption: (path, row) for row, caption in enumerate(shard["captions"])}
        self._open = lru_cache(OPEN_FILES)(_slices)

    def __len__(self) -> int:
        """How many captions."""
        return len(self._places)

    def __contains__(self, prompt: object) -> bool:
        """Whether it is one of them."""
        return prompt in self._places

    def __call__(self, prompts: Sequence[Prompt], length: int | None = None) -> Cond:
        """As the encoder: "text" (B, M, E), and so on; zeros where padding was not kept.

        UserError for other prompts, and for another length than theirs.
        """
        own = self.config.t5_length if self.config.kind in SEVERAL else self.config.length
        if length not in (None, own):
            raise UserError(f"these captions were encoded with {own} tokens; encode them with the encoder for {length}")
        found = [self._row(prompt) for prompt in checked(prompts)]
        return {name: torch.stack([row[name] for row in found]).to(self.device) for name in found[0]}

    def learn(self, folder: Path) -> None:
        """Know the captions of another folder too. UserError where they are of another encoder."""
        other = CachedText(folder, self.config)
        self._places = other._places | self._places

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
        if prompt not in self._places:
            raise UserError(f"{prompt!r} is not among the {len(self)} encoded captions: encode it with the encoder")
        path, row = self._places[prompt]
        try:
            cond = {name: value[row] for name, value in self._open(path).items()}
        except (OSError, IndexError) as error:
            raise UserError(
                f"the encoded captions {str(path)!r} are damaged ({error}); delete it and {AGAIN}"
            ) from None
        missing = self.config.length - len(cond["text"]) if "text_mask" in cond else 0
        if missing:  # padding, which nobody sees
            after = (0, missing) if self.vocab else (0, 0, 0, missing)
            cond |= {"text": F.pad(cond["text"], after), "text_mask": F.pad(cond["text_mask"], (0, missing))}
        return {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in cond.items()}


def agreed(folder: Path, stored: TextConfig, asked: TextConfig) -> TextConfig:
    """The description of stored captions in the words and the dtype of the one that is asked for.

    UserError, naming both, where anything else that counts differs, or where the stored dtype holds less. An encoder of
    another place without a fingerprint is looked at.
    """
    names = ["kind", "length", "layer", "masked", "lower", "drop", "t5_length", "dtype"]
    if stored.kind in KINDS_OF_ONE:
        names.remove("t5_length")
    moved = bool(asked.source) and stored.source not in (asked.source, str(Path(asked.source).expanduser().absolute()))
    for name in [*names, "fingerprint"]:
        if name == "fingerprint" and not asked.fingerprint and (moved or asked.revision not in ("", stored.revision)):
            asked = completed(asked)
        have, want = getattr(stored, name), getattr(asked, name)
        if have == want or (name == "fingerprint" and not want) or (name == "dtype" and have == "fp32"):
            continue
        option = f"text.{'mask' if name == 'masked' else name}"
        if name == "masked":
            have, want = stored.mask, asked.mask
        advice = f"set {option} {_shown(have)}, or encode" if name != "fingerprint" else "encode"
        raise UserError(
            f"the captions in {str(folder)!r} were encoded with {option} {_shown(have)}; the configuration asks for "
            f"{_shown(want)}: {advice} them anew"
        )
    found = replace(stored, source=rooted(stored.source), dtype=asked.dtype)
    return replace(found, source=rooted(asked.source), revision=asked.revision) if moved else found


def begun(folder: Path) -> TextConfig | None:
    """The encoder of a folder's captions, done or not; None where there are none yet. UserError where it is damaged."""
    if (folder / INDEX).is_file():
        return _read_index(folder)["encoder"]
    for path in sorted(folder.glob("captions-*.safetensors")):
        if "encoder" in (about := _header(path)):
            return from_dict(TextConfig, about["encoder"], "encoder")
    return None


def verify(folder: Path) -> Iterator[tuple[str, bool]]:
    """The name of each shard, and whether its bytes are those that were written."""
    for number, shard in enumerate(_read_index(folder)["shards"]):
        path = shard_path(folder, number)
        yield f"{folder.name}/{path.name}", path.is_file() and _sha256(path) == shard["sha256"]


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"captions-{number:05d}.safetensors"


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise UserError(f"there are no encoded captions in {str(folder)!r}: {INDEX} is missing")
    try:
        about = parse_json(path.read_bytes())
        if about["format"] != FORMAT:
            raise UserError(f"{str(path)!r} is of the format {about['format']!r}; this version reads {FORMAT!r}")
        encoder = from_dict(TextConfig, about["encoder"], "encoder")
        kinds = {"bytes": int, "sha256": str, "captions": list}
        sound = all(isinstance(shard[key], kind) for shard in about["shards"] for key, kind in kinds.items())
        sound &= all(isinstance(about[name], int) for name in ("text_width", "pooled_width", "vocab"))
        if not sound or not all(isinstance(c, str) for shard in about["shards"] for c in shard["captions"]):
            raise TypeError("a value is of another type")
    except (ValueError, LookupError, TypeError) as error:
        foreign = isinstance(error, UserError) and str(path) in str(error)
        raise error if foreign else UserError(f"{str(path)!r} is damaged ({error}); delete it and {AGAIN}") from None
    return about | {"encoder": encoder}


def _header(path: Path) -> dict[str, Any]:
    """What a shard says of itself; {} where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = parse_json(file.metadata()[ABOUT])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _slices(path: Path) -> dict[str, Any]:
    """What reads one row of a tensor without the others."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(value: Any) -> str:
    """As an option has it; a digest by its beginning."""
    if isinstance(value, tuple):
        return ",".join(value) or "()"
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _trimmed(cond: Cond) -> Cond:
    """Where padding is hidden: zeros in its place, and none of the columns that are padding in every row."""
    if "text_mask" not in cond:
        return cond
    last = int(cond["text_mask"].any(0).sum())
    text, mask = cond["text"][:, :last].clone(), cond["text_mask"][:, :last]
    text[~mask] = 0
    return cond | {"text": text, "text_mask": mask}
