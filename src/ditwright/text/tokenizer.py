"""Prompts to ids: one way to cut and pad for every tokenizer, and a byte-level BPE of our own that any string fits.

B batch, M tokens.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..extras import need
from ..files import whole_file

FILE = "tokenizer.json"
PAD, BEGIN, END = "<pad>", "<begin>", "<end>"  # ids 0, 1, 2
SMALLEST = 256 + 3  # every byte, and the three


class CutWarning(UserWarning):
    """A prompt was longer than its encoder hears."""


Prompt = str | tuple[str, ...]  # of several encoders a text for each; those that are left out hear the first


class Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016; Radford et al. 2019). `learn` makes one, `read` finds it again."""

    def __init__(self, backend: Any, length: int = 77):
        self.backend, self.length = backend, length
        backend.encode_special_tokens = True  # a caption that says <end> does not end there

    @classmethod
    def read(cls, place: Path, length: int = 77) -> Tokenizer:
        """From a tokenizer.json or its folder. UserError where there is none, or one of another make."""
        path = place / FILE if place.is_dir() else place
        if not path.is_file():
            advice = "bring it back; a training without text.source learns one from the captions"
            raise UserError(f"there is no tokenizer {str(path)!r}: {advice}")
        library = need("tokenizers", extra="text")
        try:
            backend = library.Tokenizer.from_str(path.read_text())
        except Exception as error:  # tokenizers raises nothing finer
            raise UserError(f"{str(path)!r} is not a tokenizer: {str(error).splitlines()[0]}") from error
        if [backend.token_to_id(name) for name in (PAD, BEGIN, END)] != [0, 1, 2]:
            raise UserError(f"{str(path)!r} does not begin with {PAD}, {BEGIN}, {END}: it was not learnt here")
        return cls(backend, length)

    @property
    def vocab(self) -> int:
        """How many ids there are."""
        return self.backend.get_vocab_size()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides which ids a prompt gets, save the length."""
        return digest_of(self.backend)

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids (B, M) int64 and mask (B, M), true where there is text. Warns of what it cuts."""
        prompts = checked(prompts)
        return fit(self.backend.encode_batch(prompts), prompts, self.length, pad=0)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of one row of ids."""
        return self.backend.decode(list(ids))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        with whole_file(folder / FILE) as half:
            half.write_text(self.backend.to_str(pretty=True))


def learn(captions: Iterable[str], vocab: int, *, length: int = 77) -> Tokenizer:
    """A tokenizer of at most `vocab` ids: 3 marks, 256 bytes, the most frequent merges. The same captions, the same."""
    if vocab < SMALLEST:
        states = ": a network of states (model.text_vocab 0) hears no ids: name another text.kind, or none"
        advice = f"{states} where the captions are encoded" if vocab == 0 else ""
        raise UserError(f"a tokenizer of bytes needs a vocabulary of at least {SMALLEST}; got {vocab}{advice}")
    library = need("tokenizers", extra="text")
    backend = library.Tokenizer(library.models.BPE())
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((encodable(caption) for caption in captions), trainer)
    backend.post_processor = library.processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, 1), (END, 2)]
    )
    return Tokenizer(backend, length)


def checked(prompts: Sequence[Prompt], *, lower: bool = False) -> list[str]:
    """Prompts of one encoder as a list. UserError where they are none, or one string, or hold what is no string."""
    if several := [prompt for prompt in prompts if isinstance(prompt, tuple)]:
        raise UserError(
            f"a text for each of several encoders, as prompt_2 is one, is for those of SD3 and FLUX; this text encoder "
            f"is alone, and got {several[0]!r}"
        )
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts) or not len(prompts):
        raise UserError(f"prompts are a list of one or more strings; got {prompts!r}")
    return [encodable(prompt.lower().strip() if lower else prompt) for prompt in prompts]


def encodable(prompt: str) -> str:
    """Half a surrogate pair, which no UTF-8 can hold, becomes a question mark."""
    return prompt.encode("utf-8", "replace").decode()


def fit(
    encodings: Sequence[Any], prompts: Sequence[str], length: int, *, pad: int, reader: str = ""
) -> tuple[Tensor, Tensor]:
    """Encodings of the tokenizers package, neither cut nor padded, to ids (B, M) int64 and mask (B, M).

    A prompt that is too long loses tokens before its end marks. A warning names what was lost, and `reader` if given.
    """
    ids, mask, lost = torch.full((len(encodings), length), pad), torch.zeros(len(encodings), length).bool(), []
    for row, (encoding, prompt) in enumerate(zip(encodings, prompts, strict=True)):
        kept = list(encoding.ids)
        if len(kept) > length:
            last = kept[len(kept) - _ends(encoding.special_tokens_mask) :]
            kept = kept[: length - len(last)]
            lost.append(prompt[encoding.offsets[len(kept)][0] :].strip())
            kept += last
        ids[row, : len(kept)], mask[row, : len(kept)] = torch.tensor(kept, dtype=torch.int64), True
    if lost:
        others = f" (so were {len(lost) - 1} more of {len(prompts)} prompts)" if len(lost) > 1 else ""
        by = f" by {reader}" if reader else ""
        warnings.warn(
            f"the prompt was cut after {length} tokens{by}; lost: {lost[0]!r}{others}", CutWarning, stacklevel=2
        )
    return ids, mask


def _ends(special: Sequence[int]) -> int:
    """How many marks end a prompt."""
    return next((count for count, mark in enumerate(reversed(special)) if not mark), 0)


def digest_of(backend: Any) -> str:
    """SHA-256 of a tokenizer of the tokenizers package, however a call left its cutting and padding."""
    parts = json.loads(backend.to_str()) | {"padding": None, "truncation": None, "version": None}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
